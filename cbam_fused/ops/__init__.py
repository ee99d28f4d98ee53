"""The raw operators: registry.py loads them, autograd.py gives them derivatives."""
