"""`premed demo`: two tasks on phantoms, from scratch against MAE, with a small ViT on two Ray workers."""

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from premed import launch, phantoms
from premed.console import Presenter
from premed.experiment import Experiment, checked

ENCODER = {"name": "vit", "width": 144, "depth": 4, "heads": 3, "patch": 8}
MAE = {"name": "mae", "decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3}
MASK_RATIOS = {"chestxray14": 0.75, "msd": 0.25}  # volumes want low ones, as SelfMedMAE found
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
MRI = {
    "task": {"name": "msd", "folder": "phantom_mri", "roi": (24, 32, 24)},
    "encoder": ENCODER,
    "pretrain": {
        "epochs": 20,
        "warmup_epochs": 1,
        "steps": 2000,  # past the gate only after more than 1,000
        "batch": 16,
        "lr": 2.4e-2,
        "clip": 1.0,
        "validations": 4,
        "augment": {"shift": 2},
    },
    "finetune": {
        "head": {"name": "unetr", "feature_size": 8},
        "epochs": 14,
        "warmup_epochs": 1,
        "batch": 4,
        "lr": 0.192,
        "clip": 1.0,
        "layer_decay": 0.9,
        "validations": 4,
        "augment": {"flip": 0.5, "shift": 4},
    },
    "train": TRAIN,
}
WRITERS = {
    "chestxray14": partial(phantoms.write_chestxray14, num_patients=500, seed=0, size=64, prevalence=0.3),
    "phantom_mri": partial(phantoms.write_msd, num_cases=120, seed=0, shape=(26, 36, 26)),
}


def run(folder: Path) -> list[dict[str, Any]]:
    """Writes phantoms, runs the experiments, copies their pictures; what is there already is not done again."""
    os.environ.setdefault("PREMED_HOME", str(folder / "home"))
    os.environ["PREMED_DATA"] = str(folder / "data")
    with Presenter() as presenter:
        presenter.say(f"phantoms, runs and pictures: {folder}")
        write_phantoms(folder / "data", presenter)
        outcomes = launch.run_all(experiments(), presenter)
    for outcome in outcomes:
        copy_pictures(outcome, folder / "pictures")
    return outcomes


def write_phantoms(folder: Path, presenter: Presenter) -> None:
    """Each data set as a whole or not at all, side by side."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        missing = [name for name in WRITERS if not (folder / name).is_dir()]
        for name in missing:
            presenter.say(f"drawing {name}")
        list(pool.map(partial(draw, folder), missing))


def draw(folder: Path, name: str) -> None:
    unfinished = folder / f".{name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    WRITERS[name](unfinished)
    unfinished.rename(folder / name)


def experiments() -> list[Experiment]:
    """`none` and `mae` on each data set; everything but the strategy is the same."""
    return [
        checked(tree | {"pretext": strategy, "pretrain": tree["pretrain"] if strategy["name"] == "mae" else None})
        for tree in (CHEST, MRI)
        for strategy in ({"name": "none"}, MAE | {"mask_ratio": MASK_RATIOS[tree["task"]["name"]]})
    ]


def copy_pictures(outcome: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stage in outcome["stages"]:
        for picture in sorted(Path(stage["where"]).glob("pictures/*.png")):
            shutil.copy(picture, folder / f"{outcome['task']}-{outcome['strategy']}-{stage['kind']}-{picture.name}")
