"""MLflow, which nothing else imports: runs, models, leases of stages, and writes that survive an outage of the server.

Entry points: `run_store.RunStore`, `tracker.Tracker` (the interface), `mlflow_tracker.MLflowTracker`.
"""
