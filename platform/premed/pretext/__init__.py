"""Strategies: `{name: mae, …}` in a YAML means mae.py here.

Each has a `Config` and `build(config, encoder, task, weight_decay)`; `build = None` where there is nothing to train.
"""
