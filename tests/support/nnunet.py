"""nnU-Net's raw data with empty files, since listing and dealing cases opens none."""

import json
from pathlib import Path

from support.tasks import PARTS, names

from premed.tasks import nnunet

ABOUT = {
    "channel_names": {"0": "T2", "1": "ADC"},
    "labels": {"background": 0, "PZ": 1, "TZ": 2},
    "numTraining": 10,
    "file_ending": ".nii.gz",
    "overwrite_image_reader_writer": "SimpleITKIO",
}
BRATS = {
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}
EVERY = [f"case_{number:02d}" for number in range(10)]
FOLDS = [{"train": EVERY[:i] + EVERY[i + 2 :], "val": EVERY[i : i + 2]} for i in range(0, 10, 2)]


def raw(root: Path, *, channels: int = 2, test: int = 2, held_out: int = 0, ending: str = ".nii.gz", **fields) -> Path:
    """Ten training cases and `test` in imagesTs, of which `held_out` have a label; empty files: a split opens none."""
    for number in range(10 + test):
        name, part = f"case_{number:02d}", "Tr" if number < 10 else "Ts"
        files = [f"images{part}/{name}_{channel:04d}" for channel in range(channels)]
        files += [f"labels{part}/{name}"] * (number < 10 + held_out)
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / f"{file}{ending}").touch()
    (root / "dataset.json").write_text(json.dumps(ABOUT | {"file_ending": ending} | fields))
    return root


def folds(root: Path, content: object = FOLDS, name: str = "splits_final.json") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))
    return root


def task(root: Path, **settings) -> nnunet.LabelTask | nnunet.RegionTask:
    return nnunet.build(nnunet.Config(root=root, **{"roi": (16, 16, 16)} | settings))


def change(root: Path, **fields) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def parts(found: nnunet.LabelTask | nnunet.RegionTask) -> dict[str, list[str]]:
    return {part: names(found.split(part)) for part in PARTS}


def findings_of(found: nnunet.LabelTask | nnunet.RegionTask, **settings) -> list[tuple[str, str]]:
    return [(f.severity, f"{f.where.removeprefix(f'{found.root}/')}: {f.what}") for f in found.check(**settings)]
