"""nnU-Net's raw data with several scans of a patient: `task.patient` keeps them in one part."""

from pathlib import Path

import pytest
from support.nnunet import EVERY, findings_of, folds, parts, raw, task
from support.tasks import check_parts, names, refused

from premed.data.check import listings

PATIENT = r"(p\d|case).*"


def scans(root: Path) -> list[str]:
    """Names the cases so that each patient has two: p0_0, p0_1, p1_0, …; and one of imagesTs p0_2."""
    raw(root)
    new = {name: f"p{number // 2}_{number % 2}" for number, name in enumerate(EVERY)} | {"case_10": "p0_2"}
    for name, other in new.items():
        for file in [*root.rglob(f"{name}*")]:
            file.rename(file.with_name(file.name.replace(name, other)))
    return list(new.values())[:10]


@pytest.mark.parametrize("seed", range(3))
def test_all_scans_of_a_patient_go_to_one_part(tmp_path, seed):
    scans(tmp_path)
    found = task(tmp_path, patient=PATIENT, split_seed=seed)
    check_parts(found)
    held = {name[:2] for part in ("val", "test") for name in parts(found)[part]}
    assert {len(some) % 2 for some in parts(found).values()} == {0}
    assert ("p0_2" in names(found.images())) == ("p0" not in held) and "case_11" in names(found.images())


def test_folds_that_divide_a_patient_are_refused_and_val_is_carved_by_patient(tmp_path):
    every = scans(tmp_path)
    found = task(folds(tmp_path, [{"train": every[4:], "val": every[:4]}]), patient=PATIENT)
    check_parts(found)
    assert len(found.split("val")) == 2 and names(found.images())[-1] == "case_11"  # p0_2 is of a patient of the test
    folds(tmp_path, [{"train": every[1:], "val": every[:1]}])
    errors = [each.what for each in listings(task(tmp_path, patient=PATIENT), test=True) if each.severity == "error"]
    assert errors and all("keep each patient in one part" in what for what in errors)


def test_a_rule_that_finds_no_patient_is_named_and_names_that_suggest_scans_are_a_note(tmp_path):
    scans(tmp_path)
    refused(lambda: task(tmp_path, patient="p(.)_.").split("train"), "task.patient", "finds no patient in case_11")
    assert [what for _, what in findings_of(task(tmp_path)) if "set task.patient" in what]
    assert findings_of(task(tmp_path, patient=PATIENT)) == []


def test_scans_whose_names_write_one_patient_in_two_ways_are_refused(tmp_path):
    scans(tmp_path)
    for file in [*tmp_path.rglob("p0_1*")]:
        file.rename(file.with_name(file.name.replace("p0_1", "P0_1")))
    refused(lambda: task(tmp_path, patient="(.+?)(?:_.*)?").split("train"), "patients 'P0' and 'p0' would be two")
