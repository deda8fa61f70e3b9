"""`premed init` and the tables that people have: whose an image is, which column labels it, and what is wrong."""

import json
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import yaml
from support import folders
from support.made_up import radiograph

from premed.errors import UserError
from premed.planning import init
from premed.planning.machine import Machine
from premed.tasks.common import image_folder, image_paths


def pictures(root, header, row, num=24, encoding="utf-8"):
    """Pictures n.png and labels.csv; row: what it says of picture n after its path."""
    for number in range(num):
        folders.picture(root / f"{number}.png")
    lines = [f"path,{header}", *(f"{number}.png,{row(number)}" for number in range(num))]
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding=encoding)
    return root


def planned(root):
    result = init.run(root, machine=Machine(2, 16.0))
    with open(result["yaml"]) as file:
        return yaml.safe_load(file)["task"], result


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_an_image_whose_patient_is_not_told_does_not_make_a_patient_of_each_image(tmp_path):
    """The column still says whose the others are: without it, scans of one patient would be in train and in test."""
    root = pictures(tmp_path / "scans", "patient_id,label", lambda n: f"{'' if n == 5 else f'p{n // 4}'},{'ab'[n % 2]}")
    with pytest.raises(UserError, match=r"labels.csv, line 7: '' in column patient_id is no patient; say whose"):
        init.run(root, machine=Machine(2, 16.0))


@pytest.mark.parametrize("first", [True, False])
def test_of_two_columns_of_patients_the_one_with_several_images_of_each_is_taken(tmp_path, first):
    names, cells = ("case_id", "patient_id")[:: 1 if first else -1], ("c{n}", "p{p}")[:: 1 if first else -1]
    row = ",".join(cells) + ",{label}"
    root = pictures(
        tmp_path / "scans", f"{','.join(names)},label", lambda n: row.format(n=n, p=n // 4, label="ab"[n % 2])
    )
    task, result = planned(root)
    assert task["columns"]["patient"] == "patient_id" and "24 pictures of 6 patients" in result["found"]["images"]
    assert any("case_id may name them as well" in note for note in result["notes"])


def test_minus_one_in_a_column_called_label_is_no_label(tmp_path):
    """As in several columns of 1, 0 and -1: the YAML must not be refused for what the command took them to be."""
    root = pictures(tmp_path / "scans", "patient,label", lambda n: f"p{n},{-1 if n % 7 == 0 else n % 2}")
    task, result = planned(root)
    assert task["labels"] == ["label"] and task["unknown"] == ["-1"] and "20 with labels" in result["found"]["images"]


def test_a_class_of_one_image_does_not_hide_the_labels(tmp_path):
    root = pictures(tmp_path / "scans", "patient,label", lambda n: f"p{n},{'rare' if n == 7 else 'ab'[n % 2]}")
    task, result = planned(root)
    assert task["label"] == "label" and "rare (1)" in result["found"]["labels"]


FAULTS = {
    "alike": ("patient,label", lambda n: f"p{n},{('Yes', 'yes', 'no')[n % 3]}", "'Yes' and 'yes' would be two classes"),
    "twice": ("patient,label\n1.png,p1,b\n", lambda n: f"p{n},{'ab'[n % 2]}", "1.png is listed in line 2 already"),
    "measured": ("patient,label", lambda n: f"p{n},{n * 1.37:.2f}", "labels.csv: none of its columns .* holds labels"),
    "of one class": ("label", lambda n: "x", "none of its columns"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_the_table_is_said_and_not_that_labels_are_missing(tmp_path, name):
    """Neither `label more` nor `add a CSV` mends it."""
    header, row, words = FAULTS[name]
    root = pictures(tmp_path / "scans", header, row)
    with pytest.raises(UserError, match=words) as error:
        init.run(root, machine=Machine(2, 16.0))
    assert "label more" not in str(error.value) and "add a CSV" not in str(error.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_named(tmp_path, encoding):
    root = pictures(
        tmp_path / "scans", "patient,label", lambda n: f"p{n},{('gutärtig', 'bösartig')[n % 2]}", encoding=encoding
    )
    with pytest.raises(UserError, match=r"labels.csv: is not UTF-8 .* save it as CSV UTF-8"):
        init.run(root, machine=Machine(2, 16.0))


def test_a_table_that_is_not_read_is_told_also_where_another_one_or_a_text_lies_beside_it(tmp_path):
    """Excel writes UTF-16 as "Unicode text": the labels of the other table were taken without a word."""
    root = pictures(tmp_path / "scans", "patient,label", lambda n: f"p{n},{'ab'[n % 2]}", encoding="utf-16")
    (root / "README.txt").write_text("X-rays of the second site\n")
    with pytest.raises(UserError, match=r"labels.csv: is not UTF-8 \(byte 0\); save it as CSV UTF-8"):
        init.run(root, machine=Machine(2, 16.0))
    rows = [f"{number}.png,p{number},{'cd'[number % 2]}" for number in range(24)]
    (root / "old.csv").write_text("\n".join(["path,patient,label", *rows]))
    _, result = planned(root)
    assert any("not read: " in note and "labels.csv: is not UTF-8" in note for note in result["notes"])


def bids_tree(root, header, rows, sessions=()):
    """A T1w of each of twelve subjects and session, and participants.tsv."""
    (root / "participants.tsv").parent.mkdir(parents=True)
    (root / "participants.tsv").write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    for who in range(12):
        for session in sessions or [""]:
            name = f"sub-{who:02d}" + (f"_ses-{session}" if session else "")
            folders.scan(root / f"sub-{who:02d}" / (f"ses-{session}" if session else "anat") / f"{name}_T1w.nii.gz")
    return root


def test_a_row_of_participants_is_its_session_s_where_it_names_one(tmp_path):
    """The label of the last visit was that of all of them."""
    rows = [[f"sub-{who:02d}", f"ses-{n}", "ab"[(who + n) % 2]] for who in range(12) for n in (1, 2)]
    root = bids_tree(tmp_path / "scans", ["participant_id", "session_id", "diagnosis"], rows, (1, 2))
    found = image_folder.recognise(root)
    assert found and found.listing
    listing = found.listing.text.splitlines()[1:]
    said = {line.split(",")[0].rpartition("/")[2]: line.split(",")[-1] for line in listing}
    assert said == {f"{who}_{session}_T1w.nii.gz": label for who, session, label in rows}


def test_rows_of_a_participant_that_contradict_each_other_are_refused(tmp_path):
    rows = [[f"sub-{who:02d}", "ab"[who % 2]] for who in range(12)]
    root = bids_tree(tmp_path / "scans", ["participant_id", "diagnosis"], [*rows, ["sub-03", "a"]])
    with pytest.raises(UserError, match=r"participants.tsv: rows of sub-03 say a and b; keep one of them, or say by"):
        init.run(root, machine=Machine(2, 16.0))


def test_participants_may_be_called_without_sub(tmp_path):
    rows = [[f"{who:02d}", "ab"[who % 2]] for who in range(12)]
    root = bids_tree(tmp_path / "scans", ["participant_id", "diagnosis"], rows)
    assert planned(root)[1]["found"]["labels"] == "one of: a (6), b (6)"


def test_names_whose_accents_a_mac_composed_otherwise_are_found(tmp_path):
    """And the listing that is written has them as the files are called."""
    root = tmp_path / "scans"
    names = [f"Schädel{n}.png" for n in range(12)]
    for name in names:
        folders.picture(root / normalize("NFD", name))
    folders.table(
        root / "labels.csv",
        [["path", "label"], *([normalize("NFC", name), "ab"[n % 2]] for n, name in enumerate(names))],
    )
    task, result = planned(root)
    assert "12 with labels" in result["found"]["images"]
    assert normalize("NFD", "Schädel3.png") in Path(task["table"]).read_text()


def test_rows_without_a_file_are_told(tmp_path):
    """They are left out (`partial`), which changes what is compared."""
    root = pictures(tmp_path / "scans", "patient,label", lambda n: f"p{n},{'ab'[n % 2]}")
    for number in (3, 4, 9):
        (root / f"{number}.png").unlink()
    task, result = planned(root)
    assert task["partial"] and any("files that are listed are NOT there (3)" in note for note in result["notes"])


@pytest.mark.parametrize("visits", [("baseline", "followup"), ("2019-03-04", "2020-11-30"), ("visit-1", "visit-2")])
def test_scans_of_a_patient_in_folders_of_visits_are_one_patient_s(tmp_path, visits):
    for who in range(8):
        for visit in visits:
            folder = tmp_path / "scans" / f"patient{who:02d}" / visit
            folders.scan(folder / "image.nii.gz", folder / "label.nii.gz", who)
    assert "16 volumes of 8 patients" in planned(tmp_path / "scans")[1]["found"]["images"]


def test_of_several_label_maps_for_an_image_it_says_that_there_should_be_one(tmp_path):
    """As TotalSegmentator has them: labels are there, so that `no labels` mends nothing."""
    for who in range(4):
        for organ in ("liver", "spleen"):
            folders.scan(tmp_path / f"s{who:04d}/ct.nii.gz", tmp_path / f"s{who:04d}/segmentations/{organ}.nii.gz", who)
    with pytest.raises(
        UserError, match=r"s0000/segmentations/liver.nii.gz is named as a label map, .* write one map for"
    ):
        init.run(tmp_path, machine=Machine(2, 16.0))


@pytest.mark.parametrize("suffix", ["", ".nii.gz"])
def test_a_fold_that_lists_cases_that_are_not_there_is_told(tmp_path, suffix):
    """One such case is left out and noted; where all are such, that is the fault, and not that labels are missing."""
    folders.nnunet(tmp_path / "scans")
    names = sorted(path.name.removesuffix(".nii.gz") for path in (tmp_path / "scans/labelsTr").iterdir())
    fold = {
        "train": [f"{name}{suffix}" for name in names[2:]] + ["typo"],
        "val": [f"{name}{suffix}" for name in names[:2]],
    }
    (tmp_path / "scans/splits_final.json").write_text(json.dumps([fold]))
    if suffix:
        with pytest.raises(
            UserError, match="splits_final.json: fold 0 lists .*, and imagesTr has no such case; fix the"
        ):
            planned(tmp_path / "scans")
    else:
        notes = planned(tmp_path / "scans")[1]["notes"]
        assert any("NOT there (1)" in note and "fold 0 lists typo" in note for note in notes)


PREFIXES = ["/elsewhere/chest/images/", "C:\\data\\images\\", "images\\", "scans/images/"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_paths_of_another_machine_and_of_the_folder_above_are_found(tmp_path, prefix):
    """CheXpert's tables begin all paths with the name of the folder that they lie in."""
    for number in range(12):
        folders.picture(tmp_path / f"scans/images/{number}.png")
    rows = [[f"{prefix}{number}.png", "ab"[number % 2]] for number in range(12)]
    folders.table(tmp_path / "scans/labels.csv", [["file", "label"], *rows])
    task, result = planned(tmp_path / "scans")
    assert "12 pictures of 12 patients, 12 with labels" in result["found"]["images"]
    assert "images/7.png,b" in Path(task["table"]).read_text().splitlines()


def test_a_folder_that_only_some_paths_begin_with_is_not_left_out(tmp_path):
    """p9/scan.png is not there: its row must not label the only scan.png that is."""
    folders.picture(tmp_path / "scans/p1/scan.png")
    root = tmp_path / "scans"
    where = image_paths.Paths(root, image_folder.find_images(root))
    assert where.names(["p9/scan.png", "p8/scan.png"]) == {}
    assert where.names(["p1/scan.png", "p9/scan.png"]) == {"p1/scan.png": "p1/scan.png"}


def part_tables(root, **parts):
    """Pictures in a folder for each part, and a table for each with these numbers of rows."""
    for part, num in parts.items():
        rows = [[f"{part}/{number}.png", f"{part}{number // 2}", "ab"[number % 2]] for number in range(num)]
        for path, _, _ in rows:
            folders.picture(root / path)
        folders.table(root / f"{part}.csv", [["path", "patient", "label"], *rows])
    return root


def test_a_table_for_each_part_is_one_table_with_parts(tmp_path):
    """It took the first of them alone: test.csv, and dealt it into train, val and test."""
    task, result = planned(part_tables(tmp_path / "scans", train=16, test=8))
    assert result["found"]["images"].startswith("24 pictures") and "8 test" in result["found"]["parts"]
    assert task["parts"] == {"train": ["train"], "test": ["test"]} and task["columns"]["part"] == "part"


def test_of_tables_that_are_no_parts_the_one_that_lists_the_most_is_taken(tmp_path):
    _, result = planned(part_tables(tmp_path / "scans", extra=8, main=16))
    assert result["found"]["images"].startswith("16 pictures")
    assert any("which are not used: 8" in note for note in result["notes"])


def test_patients_are_those_of_the_dicom_files_where_the_table_has_none(tmp_path):
    """As of folders of classes."""
    rows = [[f"{n}.dcm", "ab"[n % 2]] for n in range(12)]
    for number, (name, _) in enumerate(rows):
        pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32) + number
        radiograph(tmp_path / "scans" / name, pixels, PatientID=f"P{number // 2}")
    folders.table(tmp_path / "scans/labels.csv", [["path", "label"], *rows])
    task, result = planned(tmp_path / "scans")
    assert "12 pictures of 6 patients" in result["found"]["images"] and task["columns"]["patient"] == "patient"
