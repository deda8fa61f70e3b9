"""A run store in memory: what a comparison reads of `RunStore`, a thousand times as fast. Files are real."""

import shutil
from dataclasses import replace
from pathlib import Path

from premed.tracking.artifacts import ArtifactMissing
from premed.tracking.entities import flatten, json_cell, truncated, valid_name
from premed.tracking.run_store import Run


class MemoryStore:
    def __init__(self, folder: Path, uri: str = "sqlite:///mlflow.db"):
        self.folder, self.uri, self.runs, self.client = folder, uri, {}, self
        self.tables: dict[str, dict[str, list]] = {}

    def start(self, experiment, name, *, digest, kind, parent=None, tags=None, params=None):
        run_id = f"run{len(self.runs):03d}"
        tags = {name: truncated(value) for name, value in (tags or {}).items()}
        tags |= {"premed.digest": digest, "premed.kind": kind} | ({"mlflow.parentRunId": parent} if parent else {})
        params = {valid_name(name): truncated(value) for name, value in flatten(params or {})}
        experiments = [*dict.fromkeys([*(run.experiment for run in self.runs.values()), experiment])]
        place, number = str(self.folder / run_id), str(experiments.index(experiment) + 1)
        self.runs[run_id] = Run(run_id, name, experiment, "RUNNING", tags, {}, params, place, parent, number)
        return run_id

    def finish(self, run_id, status="FINISHED"):
        self.runs[run_id] = replace(self.runs[run_id], status=status)

    def set_tags(self, run_id, tags):
        self.runs[run_id].tags.update({name: truncated(value) for name, value in tags.items()})

    def log_rows(self, run_id, rows):
        for row in sorted(rows, key=lambda row: row["step"]):
            self.runs[run_id].metrics.update(row["metrics"])

    def log_scores(self, run_id, rows):
        self.tables[run_id] = {name: [json_cell(row[name]) for row in rows] for name in rows[0]}

    def log_files(self, run_id, folder_or_file, path=""):
        (self.folder / run_id / path).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder_or_file, self.folder / run_id / path)

    def search(self, tags):
        """Newest first."""
        return [run for run in reversed(self.runs.values()) if tags.items() <= run.tags.items()]

    def get(self, run_id):
        return self.runs[run_id]

    def columns(self, run):
        if run.run_id not in self.tables:
            raise ArtifactMissing(f"run {run.run_id}: {self.folder} has no scores.json any more")
        return self.tables[run.run_id]

    def file(self, run, path, to):
        if not (self.folder / run.run_id / path).exists():
            raise ArtifactMissing(f"run {run.run_id}: {self.folder} has no {path} any more")
        return self.folder / run.run_id / path
