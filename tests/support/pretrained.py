"""A pre-training alone on made-up pictures without labels, and a fine-tuning of its encoder on others with labels."""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image
from support.experiments import PUBLISHING, settle_in, store_of
from support.stores import copied

from premed.config.compose import merge, validate_experiment
from premed.execution import publisher, runner
from premed.tracking.pretrainings import FILE

pytest_plugins = ["support.experiment_fixtures"]

ROI = {"roi": [16, 16], "stored": [20, 20]}
VIT = {"name": "vit", "width": 24, "depth": 2, "heads": 2, "patch": 8}
TRAINING = {"epochs": 2, "batch": 8, "lr": 1e-3, "validations": 1}
IN_PROCESS = {"workers": 0, "log_steps": 2, "save_minutes": 0, "precision": "fp32"}
NAME = "models:/scans-mae-encoder/1"


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (24, 24), np.uint8)
    Image.fromarray(values).save(path)


def scans(root: Path) -> Path:
    """Twelve patients with two pictures each, in folders."""
    for number in range(24):
        picture(root / f"p{number // 2:02d}" / f"{number}.png", number)
    return root


def labelled(root: Path) -> Path:
    """Twenty patients with a picture each, of two kinds."""
    rows = []
    for number in range(20):
        picture(root / f"{number}.png", 1000 + number)
        rows.append({"path": f"{number}.png", "patient": f"q{number}", "kind": "ab"[number % 2]})
    with open(root / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def alone(root: Path, *changes) -> dict:
    """The pre-training's YAML."""
    tree = {
        "task": {"name": "unlabelled", "root": str(root / "scans"), "patient": "(p..)/.*"} | ROI,
        "encoder": VIT,
        "pretext": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
        "pretrain": TRAINING,
        "train": IN_PROCESS,
    }
    for change in changes:
        tree = merge(tree, change)
    return tree


def tuned(root: Path, *changes, encoder: str = NAME) -> dict:
    """The fine-tuning's YAML."""
    tree = {
        "task": {"name": "images", "root": str(root / "labelled"), "label": "kind"} | ROI,
        "encoder": VIT,
        "pretext": "mae",
        "pretrain": {"encoder": encoder},
        "finetune": TRAINING | {"head": {"name": "linear", "pool": "mean"}},
        "train": IN_PROCESS,
    }
    for change in changes:
        tree = merge(tree, change)
    return tree


def move_alias(home: Path, encoder: dict) -> str:
    """Has models:/scans-mae-encoder@newest name another pre-training, with the record of this one; its digest."""
    store, digest = store_of(home), "e" * 64
    client, first = store.client, store.get(encoder["run_id"])
    tags = {"premed.kind": "pretrain", "premed.digest": digest}
    other = client.create_run(first.experiment_id, tags=tags).info.run_id
    with TemporaryDirectory() as folder:
        client.log_artifact(other, str(store.file(first, FILE, folder)))
    client.set_terminated(other)
    version = client.create_model_version("scans-mae-encoder", f"{first.artifact_uri}/none", other).version
    client.set_registered_model_alias("scans-mae-encoder", "newest", version)
    return digest


def run(tree: dict, show=lambda event: None) -> dict:
    return runner.run(validate_experiment(tree), show)


@pytest.fixture(scope="session")
def pool(shared) -> Path:
    """The folder of `scans` and `labelled`."""

    def fill(folder: Path) -> None:
        scans(folder / "scans")
        labelled(folder / "labelled")

    return shared("pool", fill)


@pytest.fixture(scope="session")
def pretrained_home(home_after, pool):
    """A home in which the pre-training has run and its encoder is registered, and the outcome."""

    def work() -> dict:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publisher, "register", PUBLISHING)
            return run(alone(pool))

    return home_after("pretrained", work)


@pytest.fixture
def pretrained(pretrained_home, tmp_path, monkeypatch) -> dict:
    """The outcome, with a copy of that home in use."""
    home, outcome = pretrained_home
    settle_in(monkeypatch, copied(home, tmp_path / "home"))
    return outcome
