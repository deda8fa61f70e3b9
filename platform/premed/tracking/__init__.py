"""MLflow, which nothing else imports: runs, models, leases, and records that outlive an outage of the server.

Doors: `store.RunStore`, `tracker.Tracker` (what stages are recorded by), `mlflow_tracker.MLflowTracker`.
"""
