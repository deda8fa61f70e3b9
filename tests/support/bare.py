"""Processes that find some packages not installed."""

WITHOUT_RAY = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow", "optuna"):
            raise ModuleNotFoundError(f"{name} is not on a bare machine", name=name)

sys.meta_path.insert(0, Absent())
"""
"""Begins a script that finds neither Ray nor MLflow nor Optuna."""
PREMED_WITHOUT_RAY = f"{WITHOUT_RAY}from premed.cli.app import main\nmain()\n"
"""The command premed in such a process."""
