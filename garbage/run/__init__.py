"""A run on disk: folder.py has its files, environment.py describes the machine."""
