"""Training: loop.py is the loop, the other files are its parts; compare.py trains three networks."""
