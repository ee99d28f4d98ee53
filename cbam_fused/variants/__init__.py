"""Public CBAMs: config.py has what they differ in, table.py the implementations, state_dict.py their key names."""
