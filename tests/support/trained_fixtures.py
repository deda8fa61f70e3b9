"""Fixtures of the tests that use what was trained: real little runs, each in a home of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.experiments import experiment, settle_in

from premed.config.compose import merge, validate_experiment
from premed.config.experiment import plugin
from premed.data.phantoms.brain import write_brats
from premed.data.phantoms.writers import write_msd
from premed.execution import runner

pytest_plugins = ["support.experiment_fixtures"]

VOLUMES: dict[str, Any] = {
    "encoder": {"name": "vit", "width": 24, "depth": 3, "heads": 2, "patch": 8},
    "pretext": {"name": "none"},
    "finetune": {
        "head": {"name": "unetr", "feature_size": 4},
        **{"epochs": 1, "steps": 120, "batch": 4, "lr": 0.6, "validations": 2, "clip": 1.0},
        "augment": {"positive": 0.9},
    },
    "train": {"workers": 0, "log_steps": 20, "precision": "fp32"},
}


@dataclass(frozen=True)
class Finished:
    """A run, and where it was made."""

    home: Path
    root: Path
    task: Any
    outcome: dict[str, Any]

    @property
    def run_id(self) -> str:
        return self.outcome["run_id"]

    def stage(self, kind: str) -> dict[str, Any]:
        return next(stage for stage in self.outcome["stages"] if stage["kind"] == kind)


def finished(home_after, name, experiment, **more) -> Finished:
    home, outcome = home_after(name, lambda: runner.run(experiment, lambda event: None), **more)
    task = plugin("tasks", experiment.task).build(experiment.task)
    return Finished(home, Path(experiment.task.root), task, outcome)


@pytest.fixture(scope="session")
def chest_run(home_after, chest) -> Finished:
    """Pictures, several labels; pre-trained by MAE."""
    whole = experiment(chest, {"task": {"stored": 20}, "finetune": {"lr": 0.1, "epochs": 20}})
    return finished(home_after, "chest run", whole, whole=True)


@pytest.fixture(scope="session")
def organ_run(home_after, shared) -> Finished:
    """Volumes in several orientations, one label per voxel."""
    root = shared("organs", lambda folder: write_msd(folder / "msd", 8, seed=0)) / "msd"
    task = {"name": "msd", "root": str(root), "roi": [16, 16, 16], "spacing": [3.0, 3.0, 3.0]}
    return finished(home_after, "organ run", validate_experiment(merge(VOLUMES, {"task": task})))


@pytest.fixture(scope="session")
def brain_run(home_after, shared) -> Finished:
    """Four channels, three regions that lie in each other."""
    root = shared("brains", lambda folder: write_brats(folder / "brats", 6, seed=0, shape=(32, 32, 20))) / "brats"
    task = {"name": "brats", "root": str(root), "roi": [16, 16, 16], "spacing": [6.0, 6.0, 6.0]}
    whole = merge(VOLUMES, {"task": task | {"crop_foreground": True}})
    return finished(home_after, "brain run", validate_experiment(whole))


@pytest.fixture
def at_home(monkeypatch):
    """Makes a run's home the one in use; its data is nobody's business there."""

    def settle(run: Finished) -> Finished:
        settle_in(monkeypatch, run.home)
        monkeypatch.delenv("PREMED_DATA", raising=False)
        return run

    return settle
