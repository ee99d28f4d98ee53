"""Uses of a trained network: predict, evaluate, explain, export."""
