"""PLUG-INS: `{name: vit, …}` under `encoder` means vit.py: a `Config` and `build(config, channels, roi, *more)`."""
