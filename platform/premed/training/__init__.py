"""What a worker does with one stage: build, resume, fit, validate, checkpoint, save. No Ray, no MLflow.

Doors: `stage.run_stage` (a `setup.StageJob` to a result), `fit.fit` (the only loop), `artifacts` (saved weights and
cards).
"""
