"""Uses trained networks: loads them from their runs, predicts new images, exports.

Public: `load.open_trained`, `predict.run`, `export.run`.
"""
