"""The household-garbage classifier behind train_example.py."""


class InputError(ValueError):
    """What the user gave cannot work; the message says what and why, and nothing has been written."""


class Interrupted(Exception):
    """A signal ended training; all that was done is saved, and the message says how to go on."""
