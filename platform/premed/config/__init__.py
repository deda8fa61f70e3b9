"""The schema of a YAML, and how files and overrides become experiments; imports no torch.

Public: `loader.load` and `expand.load_all` (YAMLs to Experiments), `experiment.Experiment` and `Stage`, `settings`
(training, `Train`), `transforms`, `plugins.plugin` (a name to its module), `spec.Spec` (digests).
"""
