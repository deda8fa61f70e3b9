"""Strategies: `{name: mae, …}` in a YAML means mae.py here.

Each has a `Config` and `build(config, encoder, task, weight_decay)`; `build = None` where there is nothing to train.
Such a one may bring weights instead: its experiments begin with an import stage (`importing.py`). It has

- `content(config) -> str`: the hash of all that the weights come from; by it the stage is known, not by a path;
- `weights(config, encoder, task) -> (state, report)`: all of the encoder's weights, and `file`, `kept` (a number),
  `changed` (name: how) and `dropped` (names). The encoder has names and shapes and no memory. UserError where the
  weights cannot be had or do not fit: it is asked before anything is started.
"""
