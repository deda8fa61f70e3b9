"""Encoders: `{name: vit, …}` in a YAML means vit.py here. Each has a `Config` and `build(config, channels, roi)`."""
