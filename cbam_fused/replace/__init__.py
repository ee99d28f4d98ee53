"""replace_cbam: layers.py and candidates.py propose a function, match.py compares, fuse_masks.py fuses two masks."""
