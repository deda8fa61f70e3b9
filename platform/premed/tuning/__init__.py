"""Sweeps: Ray Tune and Optuna over any fields of an experiment; trials share stages, each pre-training is trained once.

Entry points: `sweep.run` and `sweep.report`, `space.load_sweep` (a sweep's YAML), `study.Study` (its history).
"""
