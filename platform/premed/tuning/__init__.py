"""A sweep: Ray Tune and Optuna over any fields of an experiment; each pre-training is trained once.

Doors: `sweep.run`, `space.load_sweep` (a sweep's YAML), `study.Study` (its history).
"""
