"""PLUG-INS, a data set with a question each: `{name: msd, …}` under `task` means msd.py: `Config`, `build(config)`."""
