"""patients.py: scans of one patient are in one part and count as one patient, in every task that lists files."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.image_tables import rows, write_table
from support.suite import examples
from support.tasks import refused

from premed.config.spec import canonical, validate_spec
from premed.contracts import Case
from premed.data import splits
from premed.errors import UserError
from premed.tasks import brats, btcv, images, msd, nnunet
from premed.tasks.common.patients import guessed_pattern, patient_of, several_scans
from premed.tasks.common.table import sorted_names

SCANS = [f"{patient}_{scan}" for patient in "abcdefghij" for scan in (1, 2, 3)]
PATTERN = "(.+)_[0-9]+"
HIPPOCAMPUS = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
TUMOUR = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
}


def decathlon(root: Path, names=SCANS, about=HIPPOCAMPUS, unlabelled=(), **fields) -> Path:
    """A folder in the decathlon's layout with empty files: a split opens none. fields: per entry, by its name."""
    entries = [{"image": f"imagesTr/{n}.nii.gz"} | {key: of(n) for key, of in fields.items()} for n in names]
    for entry, name in zip(entries, names, strict=True):
        if name not in unlabelled:
            entry["label"] = f"labelsTr/{name}.nii.gz"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / f"{name}.nii.gz").touch()
    (root / "dataset.json").write_text(json.dumps(about | {"training": entries}))
    return root


def parts_of(task) -> dict[str, set[str]]:
    """The parts in which each patient has cases; pre-training is a part, too."""
    parts = defaultdict(set)
    for part in ("train", "val", "test"):
        for case in task.split(part):
            parts[case.patient].add(part)
    for case in task.images():
        parts[case.patient].add("train")
    return parts


def hippocampus(root, **settings):
    return msd.build(msd.Config(root=root, **settings))


def tumour(root, **settings):
    return brats.build(brats.Config(root=root, **settings))


def organs(root, **settings):
    return btcv.build(btcv.Config(root=root, **settings))


def listed(root, **settings):
    return images.build(images.Config(root=root, **settings))


@pytest.mark.parametrize("build, about", [(hippocampus, HIPPOCAMPUS), (tumour, TUMOUR)])
def test_three_scans_of_each_of_ten_patients_are_ten_patients_in_one_part_each(build, about, tmp_path):
    task = build(
        decathlon(tmp_path / "set", about=about, unlabelled=[f"{patient}_3" for patient in "abcdefghij"]),
        patient=PATTERN,
    )
    parts = parts_of(task)
    assert set(parts) == set("abcdefghij")
    assert all(len(some) == 1 for some in parts.values())
    assert set().union(*parts.values()) == {"train", "val", "test"}
    assert {case.patient for case in task.images()} == {case.patient for case in task.split("train")}
    assert len(task.images()) == 3 * len({case.patient for case in task.images()}), "with their unlabelled scans"


@pytest.mark.parametrize("build, about", [(hippocampus, HIPPOCAMPUS), (tumour, TUMOUR)])
def test_a_field_of_the_entry_names_the_patient(build, about, tmp_path):
    names = [f"scan{i:02d}" for i in range(30)]
    root = decathlon(tmp_path / "set", names, about, subject=lambda name: int(name[4:]) // 3)
    task = build(root, patient="subject")
    assert {case.name: case.patient for case in task.split("train")} == {
        name: str(int(name[4:]) // 3) for name in names if name in {case.name for case in task.split("train")}
    }
    assert all(len(some) == 1 for some in parts_of(task).values())
    refused(lambda: build(root, patient="who").split("train"), "task.patient: the entry of scan00 has no field 'who'")


def test_a_patient_whom_dataset_json_calls_by_two_names_is_refused(tmp_path):
    """Each scan's number is written by another program, and the patient would be in train and test."""
    names = [f"scan{i:02d}" for i in range(8)]
    root = decathlon(tmp_path / "set", names, HIPPOCAMPUS, subject=lambda name: "007" if name == "scan03" else 7)
    words = f"{root / 'dataset.json'}: patients '007' and '7' would be two; write them alike"
    refused(lambda: hippocampus(root, patient="subject").split("train"), words)
    assert hippocampus(root).split("train")  # where each scan is a patient, names may be anything


@given(st.lists(st.integers(1, 4), min_size=6, max_size=20), st.integers(0, 5))
@settings(max_examples=examples(40))
def test_no_split_separates_a_patient_and_without_a_rule_it_is_what_it_was(sizes, seed):
    cases = {f"{who}_{scan}": Case(f"{who}_{scan}", str(who), ()) for who, n in enumerate(sizes) for scan in range(n)}
    train, val = splits.carve_val(sorted(cases), cases, 0.3, seed)
    assert sorted(train + val) == sorted(cases)
    assert {cases[n].patient for n in train}.isdisjoint(cases[n].patient for n in val) and val
    alone = {name: Case(name, name, ()) for name in cases}
    names = sorted(alone)
    order = [names[i] for i in splits.permutation(seed, len(names))]
    expected = set(order[: min(max(1, round(0.3 * len(names))), len(names) - 1)])
    assert set(splits.carve_val(names, alone, 0.3, seed)[1]) == expected


def test_a_listed_split_that_separates_a_patient_is_refused(tmp_path):
    split = {"train": ("a_1", "b_1"), "val": ("c_1",), "test": ("a_2",)}
    for build, about in ((hippocampus, HIPPOCAMPUS), (tumour, TUMOUR)):
        root = decathlon(tmp_path / build.__name__, about=about)
        assert build(root, split=split).split("test")[0].name == "a_2"
        refused(
            lambda b=build, r=root: b(r, split=split, patient=PATTERN).split("train"), "task.split: patient a is in"
        )


def test_btcv_takes_a_pattern_and_refuses_patients_in_both_of_transunet_s_parts(tmp_path):
    for number in (*range(1, 11), *range(21, 41)):
        for kind in ("img", "label"):
            path = tmp_path / "Training" / kind / f"{kind}{number:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    task = organs(tmp_path, patient="img(.+)", partial=True)
    assert {case.patient for case in task.split("train")} == {case.name[3:] for case in task.split("train")}
    tens = organs(tmp_path, patient="img00(.).", partial=True)
    refused(lambda: tens.split("train"), "patient 0 is in test and train")
    assert any("patient 0 is in" in finding.what and finding.severity == "error" for finding in tens.check())


def raw_folder(root: Path, names=SCANS, unlabelled=()) -> Path:
    """A folder of nnU-Net's raw data, with empty files."""
    for name in names:
        folder, files = ("imagesTs", []) if name in unlabelled else ("imagesTr", [f"labelsTr/{name}.nii.gz"])
        for file in (f"{folder}/{name}_0000.nii.gz", *files):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(about | {"numTraining": len(names) - len(unlabelled)}))
    return root


def test_nnunet_takes_a_pattern_and_refuses_folds_that_separate_a_patient(tmp_path):
    root = raw_folder(tmp_path / "raw", unlabelled=[f"{patient}_3" for patient in "abcdefghij"])
    whole = lambda **more: nnunet.build(nnunet.Config(root=root, **more))  # noqa: E731
    assert any("set task.patient" in finding.what for finding in whole().check())
    parts = parts_of(whole(patient=PATTERN))
    assert set(parts) == set("abcdefghij") and all(len(some) == 1 for some in parts.values())
    (root / "splits_final.json").write_text(json.dumps([{"train": ["a_1", "b_1", "c_1"], "val": ["a_2", "d_1"]}]))
    assert whole().split("test")
    refused(lambda: whole(patient=PATTERN).split("train"), "patient a is in")


def test_images_takes_a_pattern_over_paths(tmp_path):
    table = [{k: v for k, v in row.items() if k not in ("patient", "part")} for row in rows(12)]
    for number, row in enumerate(table):
        row["path"] = f"p{number // 3}/{number}.png"
    write_table(tmp_path, table)
    task = listed(tmp_path, labels=("a", "b"), patient="(p[0-9]+)/.*", partial=True)
    assert {case.patient for case in task.cases} == {"p0", "p1", "p2", "p3"}
    assert not any("column of patients" in note for note in task.patient_notes())
    with pytest.raises(UserError, match="exclude each other"):
        columns = {"patient": "patient"}
        validate_spec(images.Config, {"labels": ["a"], "patient": "(.)", "columns": columns})


def test_a_wrong_pattern_is_one_line():
    for rule, what in (("(.+", "no regular expression"), (".+", "has no group")):
        with pytest.raises(UserError, match=f"patient: .*{what}"):
            validate_spec(btcv.Config, {"patient": rule})
    with pytest.raises(UserError, match=r"task.patient: '\(x\)_.' finds no patient in a_1; it must match"):
        patient_of("(x)_.", "a_1")


def test_a_pattern_is_in_the_digest_and_its_absence_is_not():
    assert msd.Config(patient=PATTERN).digest() != msd.Config().digest()
    assert "patient" not in canonical(msd.Config())


@pytest.mark.parametrize(
    "names",
    [
        SCANS,
        [f"patient{i:03d}_frame{f:02d}" for i in range(9) for f in (1, 12)],  # ACDC
        [f"sub-{i:02d}_ses-{s}" for i in range(5) for s in "12"],  # BIDS
        [f"P{i}-{side}" for i in range(4) for side in ("left", "right")],
        [f"BraTS-GLI-{i:05d}-{t:03d}" for i in range(8) for t in range(1 + i % 2)],
    ],
)
def test_names_of_several_scans_of_a_patient_are_noted(names, tmp_path):
    assert "set task.patient" in str(several_scans(names))
    root = decathlon(tmp_path / "set", names)
    assert any("set task.patient" in finding.what for finding in hippocampus(root).check())
    assert not any("task.patient" in finding.what for finding in hippocampus(root, patient="(.+)").check())


@pytest.mark.parametrize(
    "names",
    [
        [f"hippocampus_{i:03d}" for i in range(50)],
        [f"BRATS_{i}" for i in range(20)],
        [f"img{i:04d}" for i in range(20)],
        [f"{site}_{i:03d}" for site in ("lyon", "bern", "ulm") for i in range(40)],
        [f"ct_train_{i}" for i in range(1001, 1021)],
        ["scan", "other", "third"],
        [],
    ],
)
def test_names_that_number_patients_are_not(names):
    assert several_scans(names) is None


def test_an_entry_s_field_that_nobody_named_is_noted(tmp_path):
    root = decathlon(tmp_path / "set", ["x", "y", "z"], subject_id=lambda name: "one")
    (note,) = [finding for finding in hippocampus(root).check() if "task.patient" in finding.what]
    assert note.severity == "note" and "set task.patient=subject_id" in note.what


def test_missing_cells_and_names_that_differ_in_case_are_no_classes_and_no_patients(tmp_path):
    table = [
        {"path": f"{i}.png", "patient": who, "state": state}
        for i, (who, state) in enumerate([("p1", "well"), ("P1", "Well"), ("p2", "nan"), ("nan", "ill")])
    ]
    write_table(tmp_path, table)
    found = listed(tmp_path, label="state", partial=True)
    findings = [f"{finding.where}: {finding.what}" for finding in found.errors]
    for words in ("'nan' would be a class", "'Well' and 'well' would be two classes", "'P1' and 'p1'", "is no patient"):
        assert any(words in line for line in findings), words
    refused(lambda: found.split("train"), "would be")
    named = listed(tmp_path, label="state", classes=("Well", "well", "nan", "ill"), partial=True)
    assert not any("would be a class" in finding.what for finding in named.errors)


def test_one_number_written_in_two_ways_is_not_two_patients_or_two_classes(tmp_path):
    """A spreadsheet drops leading zeros, and pandas writes 1.0 where another cell of the column is empty."""
    rows = enumerate([("007", "1"), ("7", "1.0"), ("70", "0"), ("8.0", "00"), ("80", "10"), ("0.5", "5.0")])
    write_table(tmp_path, [{"path": f"{i}.png", "patient": who, "grade": grade} for i, (who, grade) in rows])
    found = listed(tmp_path, label="grade", partial=True)
    said = [finding.what for finding in found.errors]
    assert len(said) == 3 and "patients '007' and '7'" in said[2], said
    assert "'0' and '00' would be two classes" in said[0] and "'1' and '1.0' would be two classes" in said[1]
    names = [sorted_names(set(order)) for order in (("01", "1", "2"), ("2", "1", "01"))]
    assert names == [("01", "1", "2")] * 2


def test_names_of_unlabelled_images_do_not_hide_that_the_labelled_ones_are_scans():
    (pattern,) = guessed_pattern(SCANS)[0].values()
    (wider,) = guessed_pattern(SCANS, ["atlas", "a_4"])[0].values()
    assert [patient_of(wider, name) for name in SCANS] == [patient_of(pattern, name) for name in SCANS]
    assert patient_of(wider, "a_4") == "a" and patient_of(wider, "atlas") == "atlas"
    assert guessed_pattern(SCANS, ["a_4"])[0] == {"patient": pattern} and guessed_pattern([*SCANS, "atlas"]) == ({}, {})
    assert guessed_pattern([f"{patient}_1" for patient in "abcd"], ["a_2", "b_2"])[0] == {"patient": pattern}


@pytest.mark.parametrize("module", [nnunet, msd])
def test_init_sets_the_pattern_beside_unlabelled_images_that_are_called_otherwise(tmp_path, module):
    scans = [f"{patient}_{scan}" for patient in "abcdefgh" for scan in (1, 2)]
    if module is nnunet:
        for name in scans:
            for file in (f"imagesTr/{name}_0000", f"labelsTr/{name}"):
                (tmp_path / file).parent.mkdir(exist_ok=True)
                (tmp_path / f"{file}.nii.gz").touch()
        (tmp_path / "imagesTr/atlas_0000.nii.gz").touch()
        about = {"channel_names": {"0": "T2"}, "labels": {"background": 0, "PZ": 1}, "file_ending": ".nii.gz"}
        (tmp_path / "dataset.json").write_text(json.dumps(about))
    else:
        decathlon(tmp_path / "root", [*scans, "atlas"], unlabelled=["atlas"])
    root = tmp_path if module is nnunet else tmp_path / "root"
    task = module.build(module.Config(root=root, roi=(16, 16, 16), **module.recognise(root).task))
    assert all(len(parts) == 1 for parts in parts_of(task).values())
    assert "atlas" in {case.patient for case in task.images()} and len(parts_of(task)) == 9
