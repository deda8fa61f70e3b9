"""Tasks: `{name: msd, …}` in a YAML means msd.py here. Each file has a `Config` and `build(config)`."""
