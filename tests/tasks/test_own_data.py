"""docs/own-data.md: every YAML on the page is run on made-up images, with the CSV columns that it shows."""

import csv
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image
from support.made_up import ct_series, radiograph
from support.suite import REPOSITORY

from premed.config.compose import merge, validate_experiment
from premed.training.setup import StageJob
from premed.training.stage import run_stage

PAGE = (REPOSITORY / "docs" / "own-data.md").read_text()
FILES = {text.splitlines()[0][2:]: text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)}
LISTINGS = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
HEADERS = {name: re.findall(r"```csv\n(.*?)\n", PAGE[: PAGE.index(f"# {name}")], re.DOTALL)[-1:] for name in FILES}
rng = np.random.default_rng(0)


def volume(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), path)


def hounsfield(*shape: int) -> np.ndarray:
    return rng.integers(-1000, 400, shape).astype(np.int16)


def table(path: Path, name: str, rows: list[dict[str, str]]) -> None:
    """Writes a CSV with the columns that the page shows for a YAML."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, HEADERS[name][0].split(","))
        writer.writeheader()
        writer.writerows(rows)


def prostates(root: Path) -> None:
    for number in range(10):
        folder = "Tr" if number < 8 else "Ts"
        for channel in range(2):
            volume(root / f"images{folder}/p{number}_{channel:04d}.nii.gz", hounsfield(20, 22, 10))
        if number < 8:
            volume(root / f"labelsTr/p{number}.nii.gz", rng.integers(0, 3, (20, 22, 10)).astype(np.uint8))
    every = [f"p{number}" for number in range(8)]
    (root / "dataset.json").write_text(json.dumps(LISTINGS[0]))
    (root / "splits_final.json").write_text(json.dumps([{"train": every[2:], "val": every[:2]}]))


def organs(root: Path) -> None:
    entries = []
    for number in range(8):
        entry = {"image": f"images/p{number}.nii.gz", "label": f"labels/p{number}.nii.gz"}
        volume(root / entry["image"], hounsfield(20, 22, 18))
        volume(root / entry["label"], rng.integers(0, 3, (20, 22, 18)).astype(np.uint8))
        entries.append({"image": entry["image"]} if number == 7 else entry)
    (root / "dataset.json").write_text(json.dumps(LISTINGS[1] | {"training": entries}))


def diagnoses(root: Path) -> None:
    rows = []
    for number in range(9):
        scan = f"dicom/p{number}/series" if number % 3 == 2 else f"nifti/p{number}.nii.gz"
        if number % 3 == 2:
            ct_series(root / scan, hounsfield(16, 18, 12))
        else:
            volume(root / scan, hounsfield(30, 30, 20))
        kind = ["normal", "covid", "pneumonia"][number // 3] if number < 8 else ""
        rows.append({"scan": scan, "patient": f"p{number}", "diagnosis": kind})
    table(root / "diagnoses.csv", "ct-diagnosis.yaml", rows)


def xrays(root: Path) -> None:
    rows = []
    for number in range(8):
        file = f"2021/{number}.{'jpg' if number % 2 else 'png'}"
        (root / "2021").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60, 50), np.uint8)).save(root / file)
        part, mass = ["train", "val", "test", "train"][number // 2], "" if number == 1 else str(number % 2)
        rows.append({"file": file, "patient_id": str(number // 2), "part": part})
        rows[-1] |= {"effusion": str((number + 1) % 2), "mass": mass}
    table(root / "findings.csv", "xrays.yaml", rows)


def radiographs(root: Path) -> None:
    rows = []
    for number in range(16):
        path = f"study{number}/IM0001" + (".dcm" if number % 2 else "")
        radiograph(root / path, rng.integers(0, 4096, (40, 36)).astype(np.uint16), inverted=number % 2 == 0)
        rows.append({"path": path, "patient": str(number), "pneumonia": "" if number == 15 else str(number // 2 % 2)})
    table(root / "labels.csv", "dicom.yaml", rows)


MADE = {
    "prostates.yaml": prostates,
    "ct-organs.yaml": organs,
    "ct-diagnosis.yaml": diagnoses,
    "xrays.yaml": xrays,
    "dicom.yaml": radiographs,
}
TINY = {
    "encoder": {"width": 24, "depth": 4, "heads": 2},
    "pretext": {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "pretrain": {"steps": 2, "batch": 2, "validations": 1},
    "finetune": {"steps": 2, "batch": 2, "validations": 1},
    "train": {"workers": 0, "precision": "fp32"},
}
SMALLER = {
    "unetr": {"finetune": {"head": {"feature_size": 2}}},
    3: {"task": {"roi": [32, 32, 32]}},
}  # for the time it takes


def test_every_yaml_of_the_page_is_tried():
    assert set(FILES) == set(MADE)


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_the_page_s_yaml_pretrains_finetunes_and_tests(name, tmp_path):
    MADE[name](tmp_path / "data")
    documented = yaml.safe_load(FILES[name])
    validate_experiment(documented)  # as it stands
    tree = merge(merge(documented, TINY), {"task": {"root": str(tmp_path / "data")}})
    for what in (len(tree["task"]["roi"]), tree["finetune"]["head"]["name"]):
        tree = merge(tree, SMALLER.get(what, {}))
    experiment, before, kinds = validate_experiment(tree), None, []
    for stage in experiment.stages(lambda kind: "data"):
        job = StageJob(stage, before, experiment.train, str(tmp_path / "checkpoints"), tmp_path / "cache")
        run_stage(job, lambda event: None, lambda numbers: None)
        assert job.stage_storage.get_json("failure.json") is None, job.stage_storage.get_json("failure.json")
        kinds.append(job.stage_storage.get_json("result.json")["kind"])
        before = stage
    assert kinds == ["pretrain", "finetune", "test"]
    assert np.isfinite(job.stage_storage.get_json("result.json")["value"])
