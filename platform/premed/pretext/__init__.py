"""Strategies: `{name: mae, …}` in a YAML means mae.py here.

Each has a `Config` and `build(config, encoder, domains, weight_decay)`. domains: the data sets that it learns from, the
task's own or those of `pretrain.sources`. How their images come to steps may be said by
`plan(config, settings, sizes, draws) -> Plan`: of the pre-training's settings, the images of each data set, and what
names the draws (`plans.py`); without it, each epoch is all of them in a new order. One that sees them otherwise than
their tasks show them has `adapt_data_sets(encoder's config, data_sets) -> data_sets` (`slices.py`).

Where there is nothing to train, `build = None`. Such a strategy may bring weights instead: its experiments begin with
an import stage (`importing.py`). It has

- `content(config) -> str`: the hash of all that the weights come from; by it the stage is known, not by a path;
- `weights(config, encoder, task) -> (state, report)`: all of the encoder's weights, and `file`, `kept` (a number),
  `changed` (name: how) and `dropped` (names). The encoder has names and shapes and no memory. UserError where the
  weights cannot be had or do not fit: it is asked before anything is started.
"""
