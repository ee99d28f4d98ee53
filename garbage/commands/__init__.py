"""The sub-commands of train_example.py: each adds its parser and sets ``run_command``, which returns the exit code."""
