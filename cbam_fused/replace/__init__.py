"""replace_cbam: match.py proves that a module is a CBAM, fuse_masks.py fuses two masks of a caller."""
