"""Public CBAMs: config.py: the switches, table.py: the implementations, state_dict.py: their key names."""
