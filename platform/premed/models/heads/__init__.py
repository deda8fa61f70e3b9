"""Heads: `{name: linear, …}` in a YAML means linear.py here. Each has a `Config` and `build(config, encoder, task)`."""
