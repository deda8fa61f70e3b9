"""docs/unlabelled.md: both YAMLs of the page, one after the other, on DICOM series and NIfTI without labels."""

import csv
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from support.made_up import ct_series
from support.suite import REPOSITORY

from premed.config.compose import parse_yaml
from premed.config.expand import load_all

pytest_plugins = ["support.experiment_fixtures"]

PAGE = (REPOSITORY / "docs" / "unlabelled.md").read_text()
FILES = {text.splitlines()[0][2:]: text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)}
TINY = {
    "encoder": {"width": 24, "depth": 2, "heads": 2, "patch": 8},
    "task": {"roi": [16, 16, 16]},
    "train": {"workers": 0, "precision": "fp32"},
}
STEPS = {"steps": 2, "batch": 4, "validations": 1}
rng = np.random.default_rng(0)


def hounsfield() -> np.ndarray:
    return rng.integers(-1000, 400, (24, 20, 18)).astype(np.int16)


def volume(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(hounsfield(), np.diag([2.0, 2.0, 3.0, 1.0])), path)


@pytest.fixture
def pages(tmp_path) -> Path:
    """A folder with the page's YAMLs."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.replace("/data/", f"{tmp_path}/data/"))
    return tmp_path


def test_the_page_s_yamls_have_at_most_12_lines_and_are_valid(pages):
    assert [*FILES] == ["pretrain.yaml", "finetune.yaml"]
    assert all(len(text.splitlines()) <= 12 for text in FILES.values())
    (alone,), tuned = load_all([pages / "pretrain.yaml"]), load_all([pages / "finetune.yaml"])
    assert alone.kinds == ["pretrain"] and [each.strategy for each in tuned] == ["none"] * 3 + ["mae"] * 3
    assert {each.task.preprocessing() for each in (alone, *tuned)} == {alone.task.preprocessing()}
    block = re.findall(r"```\n(pretrain:\n.*?)```", PAGE, re.DOTALL)[0].replace(", …", "")
    assert len(parse_yaml(block)["pretrain"]["sources"]) == 2


@pytest.mark.slow
def test_the_page_s_way_from_scans_to_a_comparison(pages, home, premed):
    for number in range(8):
        ct_series(pages / f"data/scans/p{number}/series", hounsfield(), PatientID=f"P{number // 2}")
        volume(pages / f"data/scans/nifti/n{number}.nii.gz")
    rows = []
    for number in range(16):
        volume(pages / f"data/labelled/{number}.nii.gz")
        rows.append({"path": f"{number}.nii.gz", "patient": str(number), "diagnosis": "ab"[number % 2]})
    with open(pages / "data/labelled/labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (pages / "less.yaml").write_text(
        yaml.safe_dump(TINY | {"pretext": {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}})
    )
    (pages / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"finetune": STEPS}))
    steps = [f"pretrain.{name}={value}" for name, value in STEPS.items()]
    code, out, err = premed("data", "check", pages / "pretrain.yaml", pages / "less.yaml", "--json")
    assert code == 0 and json.loads(out)["parts"] == {"unlabelled": 16}, err
    code, out, err = premed("run", pages / "pretrain.yaml", pages / "less.yaml", *steps, "--json")
    assert code == 0, err
    encoder = json.loads(out)["encoder"]
    name = encoder["name"] or encoder["digest"]  # tests register no model unless they are `whole`
    tuned = pages / "finetune.yaml", pages / "tiny.yaml", "seeds=[0]", f"pretrain.encoder={name}"
    code, out, err = premed("run", *tuned, "--json")
    assert code == 0, err
    assert [each["strategy"] for each in json.loads(out)["outcomes"]] == ["none", "mae"]
    code, out, err = premed("compare", "--task", "labelled")
    assert code == 0 and "that pre-training is in its cost" in " ".join(out.split()), err
