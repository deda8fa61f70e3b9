"""The task `images`: what its check says, which mistakes are refused, and training on a real folder."""

import csv
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_tables import findings_of, rows, task, write_table
from support.made_up import ct_series
from support.suite import REPOSITORY
from support.tasks import PARTS, refused

from premed.config.compose import load
from premed.errors import UserError
from premed.tasks import images
from premed.training.setup import StageJob
from premed.training.stage import run_stage

pytest_plugins = ["support.image_tables"]


# What check says -----------------------------------------------------------------------------------------------------


def test_a_clean_folder_is_told_nothing_but_what_has_no_label(folder):
    assert findings_of(folder(), label="kind") == [
        "note: labels.csv: 2 images have no label and are used for pre-training only"
    ]


def test_check_says_everything_at_once(folder):
    table = rows()
    table[0]["part"], table[4]["a"], table[5]["a"], table[6]["path"] = "val", "x", "x", "../out.png"
    table[7] |= {"path": table[8]["path"]}
    table[10] |= {"patient": ""}
    table[12] |= {"part": "tset"}
    root = folder(table)
    (root / "pictures/2.png").unlink()
    Image.new("L", (4, 4)).save(root / "pictures/more.png")
    (root / "pictures/link.png").symlink_to("/etc/hostname")
    table[3]["path"] = "pictures/link.png"
    write_table(root, table)
    findings = findings_of(root)
    remedy = "is neither 1, 0 nor empty; fix it, or name it in task.unknown (none so far)"
    assert set(findings) >= {
        f"error: labels.csv, line 6: 'x' in column a {remedy} (so in 2 lines)",
        "error: labels.csv, line 8: ../out.png leads out of the folder; keep images inside it",
        "error: labels.csv, line 10: pictures/8.png is listed in line 9 already; keep one of them",
        "error: labels.csv, line 12: '' in column patient is no patient; say whose the image is",
        "error: labels.csv, line 14: 'tset' in column part is none of train, val, test; "
        "fix it, or name it in task.parts",
        "error: labels.csv: patient p00 is in train and val; keep each patient in one part",
        "error: pictures/2.png: is missing; copy it there, or set task.partial=true",
        "error: pictures/link.png: leads out of the folder, by a link; keep images inside it",
        "note: pictures/more.png: has no row in labels.csv; it is not used",
    }
    refused(lambda: task(root).split("train"), f"{root}/labels.csv, line 6: 'x' in column a")
    refused(lambda: task(root).images(), "line 6")


def test_missing_patients_and_labels_are_notes(folder):
    table = [row for row in rows() if row["part"] != "test"]
    assert findings_of(folder(table, without=("patient",)))[-2:] == [
        "note: labels.csv: has no column of patients, so each image counts as one; "
        "set task.columns.patient or task.patient",
        "note: labels.csv: 2 images have no label and are used for pre-training only",
    ]


def test_a_folder_of_slices_is_a_row_and_its_files_are_not_without_one(tmp_path):
    ct_series(tmp_path / "scan.1", np.zeros((4, 4, 4), np.int16))
    ct_series(tmp_path / "scan.2", np.zeros((4, 4, 4), np.int16))
    write_table(tmp_path, [{"path": "scan.1", "a": "1", "part": "train"}])
    findings = findings_of(tmp_path, labels=("a",), dims=3, roi=(8, 8, 8))
    assert sum("scan.2" in line for line in findings) == 4 and not any("scan.1" in line for line in findings)


@pytest.mark.slow
def test_112120_rows_are_read_dealt_and_checked(tmp_path):
    (tmp_path / "x").mkdir()
    lines = [f"x/{i}.png,{i // 4},{i % 2},{(i >> 1) % 2}" for i in range(112_120)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,patient,a,b", *lines]))
    for i in range(0, 112_120, 10_000):
        (tmp_path / f"x/{i}.png").touch()
    one = task(tmp_path, partial=True)
    assert sum(len(one.rows(part)) for part in PARTS) == 112_120
    assert len({case.patient for case in one.rows("train")}) == round(0.6 * 28_030)
    assert sum("is missing" in finding.what for finding in one.check()) == 112_120 - 12


# Mistakes ------------------------------------------------------------------------------------------------------------


WRONG = {
    "nothing asked": ({}, "set labels"),
    "both asked": ({"labels": ("a",), "label": "b"}, "not both"),
    "a separator of columns": ({"labels": ("a",), "separator": "|"}, "go with label"),
    "none without a separator": ({"label": "a", "none": "x"}, "needs a separator"),
    "roi": ({"labels": ("a",), "dims": 3}, "must have 3 numbers"),
    "stored": ({"labels": ("a",), "stored": (100, 100)}, "smaller than roi"),
    "stored volumes": ({"labels": ("a",), "dims": 3, "roi": (8, 8, 8), "stored": (9, 9)}, "is for dims: 2"),
    "shares": ({"labels": ("a",), "shares": (0.5, 0.1, 0.1)}, "do not add up"),
    "grey volumes": ({"labels": ("a",), "dims": 3, "roi": (8, 8, 8), "normalise": "grey"}, "are for dims: 2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_fields_that_do_not_go_together_are_refused(what):
    settings, words = WRONG[what]
    with pytest.raises(ValueError, match=words):
        images.Config(**settings)


SPLITS = {
    "twice": ({"train": ("p00",), "val": ("p00",)}, ["task.split: p00 is in two parts"]),
    "a stranger": ({"train": ("p99",)}, ["task.split: p99 is no patient with a label"]),
    "an empty part": ({"val": ("p01",)}, ["has no labelled image for train", "task.split"]),
}


@pytest.mark.parametrize("what", SPLITS)
def test_a_wrong_listed_split_is_refused(folder, what):
    split, words = SPLITS[what]
    refused(lambda: task(folder(), split=split).split("train"), *words)


def test_few_patients_leave_a_part_empty_and_that_is_said(folder):
    refused(lambda: task(folder(rows(6), without=("part",))).split("test"), "labels.csv", "no labelled image for test")


def test_nothing_on_disk_is_said_in_one_line(folder):
    root = folder()
    for path in (root / "pictures").iterdir():
        path.unlink()
    refused(lambda: task(root, partial=True).split("train"), "none of 14 listed images is there", "task.columns.path")


WINDOWS = "\\"  # between folders
MISSPELT = {
    "pictures/0.PNG": "pictures/0.PNG: is missing; 0.png is there: write it like that in the table",
    f"pictures{WINDOWS}0.png": f"pictures{WINDOWS}0.png: is missing; write / in place of {WINDOWS} in the table",
    unicodedata.normalize("NFC", "pictures/ä.png"): "ä.png is there: write it like that in the table",
}


@pytest.mark.parametrize("path", MISSPELT)
def test_a_name_that_is_spelt_otherwise_on_disk_is_said(folder, path):
    root = folder()
    (root / unicodedata.normalize("NFD", "pictures/ä.png")).write_bytes((root / "pictures/0.png").read_bytes())
    write_table(root, [{**rows()[0], "path": path}, *rows()[1:]])
    findings = next(line for line in findings_of(root) if line.startswith("error"))
    assert unicodedata.normalize("NFC", MISSPELT[path]) in unicodedata.normalize("NFC", findings)


def test_absolute_paths_are_taken_where_the_root_is_a_link(folder, tmp_path):
    root = folder()
    write_table(root, [{**row, "path": str(root / row["path"])} for row in rows()])
    (tmp_path / "link").symlink_to(root)
    assert [case.name for case in task(tmp_path / "link").cases] == [row["path"] for row in rows()]
    assert not [line for line in findings_of(tmp_path / "link") if line.startswith("error")]


# Training ------------------------------------------------------------------------------------------------------------


def trained(tmp_path: Path, *overrides: str, files: tuple[str, ...]) -> dict:
    experiment, before, result = load(files, overrides), None, {}
    for stage in experiment.stages(lambda kind: "data"):
        job = StageJob(stage, before, experiment.train, str(tmp_path / "checkpoints"), tmp_path / "cache")
        run_stage(job, lambda event: None, lambda numbers: None)
        assert job.stage_storage.get_json("failure.json") is None, job.stage_storage.get_json("failure.json")
        result[stage.kind], before = job.stage_storage.get_json("result.json"), stage
    return result


SHORT = ["train.workers=0", "finetune.steps=3", "finetune.validations=1", "finetune.label_fraction=0.05"]


@pytest.mark.slow
def test_the_real_pneumonia_folder_prepares_crops_pretrains_and_finetunes(real, tmp_path):
    """Its table says train and val alone: val is the test part there, and val is carved from train."""
    folder, recipes = real("pneumonia"), REPOSITORY / "experiments" / "pneumonia"
    small = tmp_path / "few"
    (small / "images").mkdir(parents=True)
    with open(folder / "labels.csv", newline="") as file:
        table = list(csv.DictReader(file))[::40]
    for row in table:
        os.symlink(folder / row["path"], small / row["path"])
    write_table(small, table)
    with pytest.raises(UserError, match="leads out of the folder, by a link"):
        task(small, labels=("pneumonia",), parts={"train": ("train",), "test": ("val",)}).split("train")
    for row in table:
        (small / row["path"]).unlink()
        (small / row["path"]).write_bytes((folder / row["path"]).read_bytes())
    files = (str(recipes / "mae.yaml"), str(recipes / "small.yaml"))
    result = trained(tmp_path, *SHORT, f"task.root={small}", "pretrain.steps=3", "pretrain.validations=1", files=files)
    assert [result[kind]["num_cases"] for kind in ("pretrain", "finetune", "test")] == [78, 4, 13]
    assert 0 <= result["test"]["summary"]["test/mauc"] <= 1 and result["test"]["constant"] == 0.5


def test_the_real_pneumonia_table_is_clean(real):
    one = task(real("pneumonia"), labels=("pneumonia",), parts={"train": ("train",), "test": ("val",)})
    assert list(one.check()) == []
    assert [len(one.split(part)) for part in PARTS] == [3106, 776, 524]
    assert one.name == "pneumonia" and one.score == "mauc"


def test_a_table_whose_paths_lack_their_folder_is_one_finding_and_a_prefix_mends_it(folder, tmp_path):
    root = folder()
    (root / "scans").mkdir()
    (root / "pictures").rename(root / "scans" / "pictures")
    errors = [line for line in findings_of(root) if line.startswith("error")]
    assert errors == [f"error: labels.csv: its images are not in {root} but below scans; set task.prefix=scans"]
    refused(lambda: task(root).split("train"), "but below scans; set task.prefix=scans")
    one = task(root, prefix="scans")
    assert not [line for line in findings_of(root, prefix="scans") if line.startswith("error")]
    assert {case.name for case in one.split("train")} == {
        f"scans/{case.name}" for case in task(folder()).split("train")
    }


@pytest.mark.parametrize("cell", ["{elsewhere}/{i}.png", "../elsewhere/{i}.png"])
def test_paths_out_of_the_folder_begin_below_none_of_its_folders(folder, tmp_path, cell):
    (tmp_path / "elsewhere").mkdir()
    table = rows()
    for i, row in enumerate(table):
        row["path"] = cell.format(elsewhere=tmp_path / "elsewhere", i=i)
        (tmp_path / "elsewhere" / f"{i}.png").touch()
    root = folder(table)
    (root / "sub").mkdir()
    assert not [line for line in findings_of(root) if "task.prefix" in line]
