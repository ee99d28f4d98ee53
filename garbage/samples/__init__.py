"""Draws the built-in sample set."""
