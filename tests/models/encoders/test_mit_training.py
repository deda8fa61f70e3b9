"""MiT from a folder to a test score, in this process."""

import pytest
from support.mit import NUMBERS

from premed.config.compose import validate_experiment
from premed.data.phantoms.thorax import write_images
from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.execution import runner

pytest_plugins = ["support.experiment_fixtures"]


# From a folder to a test score, in this process -----------------------------------------------------------------------


TRAINING = {"epochs": 1, "steps": 4, "batch": 4, "lr": 0.03, "validations": 2, "drop_path": 0.1, "layer_decay": 0.9}


def run(task: dict, head: dict) -> dict:
    """Fine-tuning from random weights, and test."""
    tree = {
        "task": task,
        "encoder": {"name": "mit", "size": "tiny", **NUMBERS},
        "pretext": {"name": "none"},
        "finetune": {"head": head, **TRAINING},
        "train": {"workers": 0, "log_steps": 2, "precision": "fp32"},
    }
    outcome = runner.run(validate_experiment(tree), lambda event: None)
    assert [stage["kind"] for stage in outcome["stages"]] == ["finetune", "test"]
    return outcome["stages"][1]


@pytest.mark.slow
def test_pictures_are_classified_end_to_end(tmp_path, home):
    root = write_chestxray14(tmp_path / "chest", 20, 0, size=32)
    task = {"name": "chestxray14", "root": str(root), "size": 32, "stored": 32}
    test = run(task, {"name": "linear", "pool": "cls"})
    assert 0 <= test["value"] <= 1 and test["loaded"]["encoder"]["dropped"] == []


@pytest.mark.slow
@pytest.mark.whole
def test_volumes_are_classified_end_to_end(tmp_path, home):
    root = write_images(tmp_path / "ct", 14, 0, kind="nifti", size=32)
    task = {"name": "images", "root": str(root), "labels": ["pneumonia"], "dims": 3, "roi": [32, 32, 16]}
    test = run(task, {"name": "linear", "pool": "cls"})
    assert 0 <= test["value"] <= 1 and test["num_cases"] >= 3


@pytest.mark.slow
@pytest.mark.whole
def test_volumes_are_segmented_end_to_end(tmp_path, home):
    root = write_msd(tmp_path / "hippocampus", 8, 0, shape=(24, 30, 16))
    task = {"name": "msd", "root": str(root), "roi": [32, 32, 16], "percentiles": [0.5, 99.5], "normalise": "zscore"}
    test = run(task, {"name": "conv"})
    assert {"test/dice", "test/dice/Anterior", "test/hd95"} <= set(test["summary"]) and 0 <= test["value"] <= 1
