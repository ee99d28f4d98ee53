"""The household-garbage classifier of train_example.py."""


class InputError(ValueError):
    """Invalid input of the user; the message gives the reason, and nothing was written."""


class Interrupted(Exception):
    """A signal ended training; the state is saved, and the message says how to resume."""
