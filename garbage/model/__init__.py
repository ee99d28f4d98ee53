"""The network: classifier.py builds it, weights.py fills it."""
