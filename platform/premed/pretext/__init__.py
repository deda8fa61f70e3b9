"""Strategies: `{name: mae, …}` in a YAML means mae.py here. Each file has a `Config` and `build(config, encoder, task, training)`."""
