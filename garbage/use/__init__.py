"""A trained network at work: predict, evaluate, explain, export."""
