"""`premed demo`: three tasks on phantoms, from scratch against MAE, with a small ViT on two Ray workers."""

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from premed.cli.progress import ProgressPrinter
from premed.config.compose import merge, validate_experiment
from premed.config.experiment import Experiment
from premed.data.phantoms import abdomen, brain
from premed.data.phantoms.writers import write_chestxray14
from premed.execution import runner

ENCODER = {"name": "vit", "width": 144, "depth": 4, "heads": 3, "patch": 8}
MAE = {"name": "mae", "mask_ratio": 0.75, "decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3}
TRAIN = {"workers": 2, "log_steps": 10}

CHEST = {
    "task": {"name": "chestxray14", "size": 64, "stored": 64},
    "encoder": ENCODER,
    "pretrain": {
        "epochs": 16,
        "warmup_epochs": 1,
        "batch": 32,
        "lr": 1.2e-2,
        "clip": 1.0,
        "validations": 4,
        "augment": {"scale": (0.8, 1.0)},
    },
    "finetune": {
        "head": {"name": "linear", "pool": "cls"},
        "epochs": 7,
        "warmup_epochs": 1,
        "batch": 32,
        "lr": 1.6e-2,
        "clip": 1.0,
        "layer_decay": 0.9,
        "validations": 3,
        "augment": {"flip": 0.5},
    },
    "train": TRAIN,
}
VOLUMES = {
    "encoder": ENCODER,
    "pretrain": {
        "epochs": 20,
        "warmup_epochs": 1,
        "batch": 8,
        "lr": 4.8e-2,
        "clip": 1.0,
        "validations": 4,
        "augment": {"shift": 0},  # shifted crops blur positions, so that the gate is passed much later
    },
    "finetune": {
        "head": {"name": "unetr", "feature_size": 8},
        "epochs": 20,
        "warmup_epochs": 2,
        "steps": 75,
        "batch": 2,
        "lr": 1.0,
        "clip": 1.0,
        "betas": (0.9, 0.95),
        "validations": 3,
        "augment": {"shift": 4},
    },
    "train": TRAIN,
}
# test_images: pre-trains on volumes without labels, too; fewer than a hundred would soon be overfitted
CT = merge(
    VOLUMES,
    {
        "task": {
            "name": "btcv",
            "roi": (32, 24, 24),
            "spacing": (10.0, 10.0, 10.0),
            "val_share": 0.2,
            "test_images": True,
        },
        "pretrain": {"steps": 1100},
        "finetune": {"head": {"feature_size": 16}, "steps": 160, "lr": 6.0, "augment": {"shift": 0}},
    },
)
MRI = merge(
    VOLUMES,
    {
        "task": {
            "name": "brats",
            "roi": (32, 32, 24),
            "spacing": (5.0, 5.0, 5.0),
            "val_share": 0.2,
            "test_images": True,
        },
        "pretrain": {"steps": 1500, "augment": {"flip": 0.5, "flip_axes": (0,)}},
    },
)
WRITERS = {
    "chestxray14": partial(write_chestxray14, num_patients=500, seed=0, size=64, prevalence=0.3),
    "btcv": partial(abdomen.write_btcv, num_cases=30, num_unlabelled=90, seed=0, shape=(60, 48, 40)),
    "Task01_BrainTumour": partial(brain.write_brats, num_cases=60, num_unlabelled=100, seed=0, shape=(48, 48, 40)),
}


def run(folder: Path) -> list[dict[str, Any]]:
    """Writes the phantoms, runs the experiments and copies their pictures; finished parts are not done again."""
    os.environ.setdefault("PREMED_HOME", str(folder / "home"))
    os.environ["PREMED_DATA"] = str(folder / "data")
    with ProgressPrinter() as printer:
        printer.print_line(f"phantoms, runs and pictures: {folder}")
        write_phantoms(folder / "data", printer)
        outcomes = runner.run_all(experiments(), printer)
    for outcome in outcomes:
        copy_pictures(outcome, folder / "pictures")
    return outcomes


def write_phantoms(folder: Path, printer: ProgressPrinter) -> None:
    """Writes the data sets that are missing, each in a process, and each completely or not at all."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        missing = [name for name in WRITERS if not (folder / name).is_dir()]
        for name in missing:
            printer.print_line(f"writing phantoms: {name}")
        list(pool.map(partial(write_phantom, folder), missing))


def write_phantom(folder: Path, name: str) -> None:
    """Writes a data set into a hidden folder, which is renamed once it is complete."""
    unfinished = folder / f".{name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    WRITERS[name](unfinished)
    unfinished.rename(folder / name)


def experiments() -> list[Experiment]:
    """`none` and `mae` on each data set; everything but the strategy is the same."""
    return [
        validate_experiment(
            tree | {"pretext": strategy, "pretrain": tree["pretrain"] if strategy["name"] == "mae" else None}
        )
        for tree in (CHEST, CT, MRI)
        for strategy in ({"name": "none"}, MAE)
    ]


def copy_pictures(outcome: dict[str, Any], folder: Path) -> None:
    """Copies the pictures of an experiment's stages; their names say which task, strategy and stage they are of."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in outcome["stages"]:
        for picture in sorted(Path(stage["where"]).glob("pictures/*.png")):
            shutil.copy(picture, folder / f"{outcome['task']}-{outcome['strategy']}-{stage['kind']}-{picture.name}")
