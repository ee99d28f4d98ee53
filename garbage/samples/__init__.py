"""The built-in sample set, drawn by the program."""
