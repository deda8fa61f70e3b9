"""PLUG-INS: `{name: linear, …}` under `head` means linear.py: a `Config` and `build(config, encoder, task)`."""
