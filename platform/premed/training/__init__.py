"""What a worker does with one stage: build, resume, fit, validate, checkpoint, save. No Ray, no MLflow.

Entry points: `stage.run_stage` (runs a `setup.StageJob`), `fit.fit` (the only loop), `artifacts` (weights and cards).
"""
