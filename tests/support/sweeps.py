"""Small sweeps over tiny experiments."""

import yaml
from support.experiments import tree

QUICK = {
    "pretrain": {"epochs": 2, "validations": 1},
    "finetune": {"epochs": 4, "validations": 4},
    "train": {"workers": 1, "save_minutes": 0, "log_steps": 1},
}
NOT_A_NUMBER = 1e30  # as a learning rate
GRID = {"space": {"pretext.mask_ratio": [0.5, 0.75], "finetune.lr": [1e-3, 1e-2]}}
ASHA = {
    "space": {"pretext.mask_ratio": [0.5, 0.75], "finetune.lr": {"loguniform": [1e-4, 1e-1]}},
    "search": "optuna",
    "scheduler": {"name": "asha", "grace": 1, "reduction": 2},
    "trials": 6,
    "concurrency": 1,
}


def write_chest_base(folder):
    """base.yaml of a fine-tuning from scratch on X-rays that are not there: nothing of it is trained."""
    task = {"name": "chestxray14", "root": str(folder)}
    finetune = {"epochs": 2, "batch": 4, "lr": 1e-3, "head": "linear"}
    base = {"task": task, "encoder": "vit", "pretext": "none", "finetune": finetune}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))


def write_sweep(folder, chest, search, *changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(tree(chest, QUICK, *changes)))
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"base": "base.yaml"} | search, sort_keys=False))
    return folder / "sweep.yaml"
