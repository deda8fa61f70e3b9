"""Strategies: `{name: mae, …}` in a YAML means mae.py here.

Each has a `Config` and `build(config, encoder, data_sets, weight_decay) -> Objective`. data_sets: those to learn from,
the task's own or those of `pretrain.sources`. Two functions are optional:

- `plan(config, settings, sizes, draws) -> BatchSampler`: which images make up each step (`data/samplers.py`), from the
  pre-training's settings, the number of images of each data set, and the key of the draws. Without it, each epoch is a
  new permutation of all images.
- `transform_data_sets(encoder's config, data_sets) -> data_sets`: replaces tasks whose views the encoder cannot take as
  they are, such as volumes by their slices (`common/slices.py`).

A strategy that trains nothing has `build = None`. It may import weights instead: its experiments then begin with an
import stage (`training/import_weights.py`). It has

- `content(config) -> str`: the hash of all that the weights come from; the stage's digest holds it, and no path;
- `weights(config, encoder, task) -> (state, report)`: all of the encoder's weights, and `file`, `kept` (a number),
  `changed` (name: how), `dropped` (names) and, where initial values stand in for it, what is `missing` (names). The
  encoder is on the meta device: names and shapes alone. Raises UserError where the weights cannot be read or do not
  fit; it is called before any stage starts;
- optionally `preparation_notes(config, task) -> findings`: where the task prepares images otherwise than those of the
  weights were, or has images that these were trained on; for `premed data check`, and told by the import stage.
"""
