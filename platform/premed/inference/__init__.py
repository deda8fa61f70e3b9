"""A trained network used: loaded from its run, asked about new images, exported.

Doors: `load.opened`, `predict.run`, `export.run`.
"""
