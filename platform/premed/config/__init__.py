"""What a YAML says, without torch.

Doors: `loader.load` and `expand.load_all` (YAMLs to Experiments), `experiment.Experiment` and `Stage`, `settings`
(training, `Train`), `transforms`, `plugins.plugin` (a name to its module), `spec.Spec` (digests).
"""
