"""bare_volumes.py: of volumes without a label map, pre-training learns from none that shows a case of val or test."""

import json
import shutil

import numpy as np
import pytest
from support import folders
from support.tasks import refused

from premed.tasks import nnunet
from premed.tasks.common import volume_pairs
from premed.tasks.common.bare_volumes import derived, is_label_map, strangers

CASES = [f"case{number}" for number in range(8)]


def paired(root, names=CASES, image="img/{}.nii.gz", label="seg/{}.nii.gz"):
    for number, name in enumerate(names):
        folders.scan(root / image.format(name), root / label.format(name), number)
    return root


def recognised(root):
    """What `premed init` makes of a folder: the task, the notes, and all names of the listing."""
    found = volume_pairs.recognise(root)
    (root / "listing.json").write_text(found.listing.text)
    task = nnunet.build(nnunet.Config(root=root, listing="listing.json", roi=(16, 16, 16), **found.task))
    return task, "; ".join(found.notes), {*json.loads(found.listing.text)["dataset"]}


def unlabelled(task):
    labelled = {case.name for part in ("train", "val", "test") for case in task.split(part)}
    return {case.name for case in task.images()} - labelled


def held_out(task):
    return {case.patient for part in ("val", "test") for case in task.split(part)}


MADE = [
    "n4/{}",
    "prediction/{}",
    "resampled/{}",
    "{}_liver",
    "{}_cropped",
    "img/{}cropped",
    "n4{}",
    "old/2020-01/{} v2",
]
"""Names of what is made of a case."""


@pytest.mark.parametrize("made", MADE)
def test_copies_and_results_of_labelled_cases_are_left_out_and_it_is_told(tmp_path, made):
    root = paired(tmp_path)
    for name in CASES:
        target = root / f"{made.format(name)}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / f"img/{name}.nii.gz", target)
    folders.scan(root / "img/case10.nii.gz", None, 10)  # of none, though case1 is the beginning of its name
    task, notes, names = recognised(root)
    assert unlabelled(task) == {"case10"} and names == {*CASES, "case10"}
    assert "NOT used (8), since their names contain that of a labelled case" in notes and "and 6 more" in notes


def test_label_maps_that_are_not_called_so_are_left_out_by_their_values(tmp_path):
    root = paired(tmp_path)
    for number in (20, 21):
        folders.scan(root / f"img/case{number}.nii.gz", root / f"lesion/case{number}.nii.gz", number)
    folders.volume(root / "lesion/case22.nii.gz", np.pad(np.ones((4, 4, 4), np.float32) * 255, 8))
    task, notes, _ = recognised(root)
    assert unlabelled(task) == {"case20", "case21"}
    assert "NOT used (3), since they hold few whole numbers, as label maps do: lesion_case20, lesion_case21" in notes


def test_large_compressed_files_are_opened_only_if_they_are_as_small_as_a_label_map(tmp_path, monkeypatch):
    monkeypatch.setattr("premed.tasks.common.bare_volumes.SMALL", 0)
    image, labels = np.random.default_rng(0).integers(0, 3000, (40, 40, 40)).astype(np.int16), np.zeros((40,) * 3)
    labels[10:20, 10:20] = 3
    folders.volume(tmp_path / "image.nii.gz", image)
    folders.volume(tmp_path / "labels.nii.gz", labels)
    folders.volume(tmp_path / "fractions.nii.gz", labels / 2)
    (tmp_path / "broken.nii.gz").write_bytes(b"x")
    found = {path.name[:-7]: is_label_map(path) for path in tmp_path.iterdir()}
    assert found == {"image": False, "labels": True, "fractions": False, "broken": False}
    read: list = []
    monkeypatch.setattr("premed.tasks.common.bare_volumes.read_values", lambda path: read.append(path))
    assert not is_label_map(tmp_path / "image.nii.gz") and read == []


def test_a_stray_volume_does_not_hide_that_names_are_scans_of_patients(tmp_path):
    scans = [f"p{patient}_{scan}" for patient in range(1, 9) for scan in (1, 2)]
    root = paired(tmp_path, scans)
    for name in ("atlas", "p1_3", "p2_3", "p3_3", "p4_3", "p5_3", "p6_3", "p7_3", "p8_3"):
        folders.scan(root / f"img/{name}.nii.gz", None, 40)
    task, _, _ = recognised(root)
    parts = {part: {case.patient for case in task.split(part)} for part in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 8 and not parts["train"] & held_out(task)
    assert {case.patient for case in task.images()} == parts["train"] | {"atlas"}


def test_one_name_for_two_cases_is_told_and_takes_no_label(tmp_path):
    root = paired(tmp_path, [f"pat_{number}" for number in range(8)])
    for name in ("pat/1", "who/9", "who_9"):
        folders.scan(root / f"img/{name}.nii.gz", None, 9)
    task, notes, names = recognised(root)
    assert len(task.labelled) == 8 and unlabelled(task) == {"who_9"} and len(names) == 9
    assert "NOT used (1), since without their folders they are called as others are; rename them: " in notes
    folders.scan(root / "img/pat/1.nii.gz", root / "seg/pat/1.nii.gz", 1)
    refused(lambda: volume_pairs.recognise(root), "would both be the case pat_1; rename one")


LEFT = {
    "folders of patients": (["pat1/brain", "pat2/brain"], ["pat1/atlas", "pat3/brain", "pat9/brain"], {"pat1/atlas"}),
    "folders of sites": (["a/x1", "b/x2"], ["n4/x1", "b/x3"], {"n4/x1"}),
    "numbers": (["case_001", "case_002"], ["n4/case-2", "v2/case_3", "case_12"], {"n4/case-2"}),
    "sessions": (["sub-01_ses-2", "sub-02_ses-2"], ["sub-02_n4", "sub-03_ses-2"], {"sub-02_n4"}),
    "sessions of each": (["sub-1_ses-1", "sub-2_ses-1"], ["n4/sub-1_ses-1", "sub-3_ses-1"], {"n4/sub-1_ses-1"}),
    "scans": (["p1_1", "p1_2", "p2_1"], ["p9_1", "p2_2", "p1_2_n4"], {"p1_2_n4"}),
    "capitals": (["Anna", "Berta"], ["anna_n4", "Annabelle"], {"anna_n4"}),
}
"""Labelled cases, those without a label, and which of these may be made of the former."""


@pytest.mark.parametrize("what", LEFT)
def test_which_names_may_be_made_of_which(what):
    labelled, bare, expected = LEFT[what]
    assert derived(labelled, bare).keys() == expected


def test_a_name_with_a_labelled_patient_in_it_that_is_another_s_by_the_pattern_is_left_out():
    labelled = [f"sub_0{patient}_ses_{scan}" for patient in (1, 2, 3) for scan in (1, 2)]
    bare = ["sub_01_atlas", "sub_01_ses_3", "sub_07_ses_1"]
    assert strangers(labelled, bare, "(.+)[-_][^-_/]+") == {"sub_01_atlas": "sub_01_ses"}
