"""Heads: `{name: linear, …}` in a YAML means linear.py here. Each file has a `Config` and `build(config, encoder, task)`."""
