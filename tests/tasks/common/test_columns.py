"""What the columns of a table are, by their names and cells."""

import pandas
import pytest

from premed.tasks.common import columns


def frame(**cells):
    return pandas.DataFrame(cells, dtype=str)


def labels(**cells):
    return dict(columns.roles(frame(path=["a"] * len(next(iter(cells.values()))), **cells), "path").labels.task)


def test_a_column_of_classes_is_found_by_its_name_or_by_its_cells():
    assert labels(diagnosis=["a", "b", "a", "b"] * 3, hand=["x", "y"] * 6) == {"label": "diagnosis"}
    assert labels(kind=["a", "b", "a", "b"] * 3, Age=["20", "30"] * 6, Sex=["M", "F"] * 6) == {"label": "kind"}


def test_columns_of_ones_and_zeros_are_a_yes_or_no_each():
    assert labels(effusion=["1", "0", ""], mass=["0", "1", "1"]) == {"labels": ["effusion", "mass"]}
    assert labels(effusion=["1.0", "0.0", "-1.0"]) == {"labels": ["effusion"], "unknown": ["-1.0"]}


def test_findings_of_one_cell_are_separated():
    result = labels(findings=["Mass|Nodule", "No Finding", "Mass"])
    assert result == {"label": "findings", "separator": "|", "none": "No Finding"}


@pytest.mark.parametrize(
    "name", ["Age", "sex", "PatientGender", "study_date", "View Position", "Site", "image_id", "ScanID"]
)
def test_what_says_something_of_a_patient_is_no_label(name):
    table = frame(path=["a", "b", "c", "d"], **{name: ["1", "0", "1", "0"]})
    assert columns.roles(table, "path").labels is None


@pytest.mark.parametrize("name", ["covid", "stage", "carotid", "Damage", "candidate lesion"])
def test_a_label_is_not_lost_for_what_its_name_ends_in(name):
    table = frame(path=["a", "b", "c", "d"], **{name: ["1", "0", "1", "0"]})
    assert columns.roles(table, "path").labels.task == {"labels": [name]}


def test_numbers_that_hardly_repeat_are_no_classes():
    assert (
        columns.roles(frame(path=[*"abcdef"], volume=["1.2", "3.4", "5.6", "7.8", "9.1", "2"]), "path").labels is None
    )


def test_missing_words_are_no_class():
    assert labels(diagnosis=["a", "b", "NA", "a", "b", "NA"] * 2)["unknown"] == ["NA"]


def test_patients_and_parts_are_found_whatever_the_spelling():
    table = frame(path=[*"abcd"], **{"Patient ID": [*"1122"], "Split": ["training", "training", "dev", "holdout"]})
    roles = columns.roles(table, "path")
    assert (roles.patient, roles.part) == ("Patient ID", "Split")
    assert roles.parts == {"train": ["training"], "val": ["dev"], "test": ["holdout"]}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["train", "val"],
            {"train": ["train"], "test": ["val"]},
        ),  # val picks the checkpoint: it cannot be the test, too
        (["train", "test"], {"train": ["train"], "test": ["test"]}),
        (["train"], {}),
        (["train", "test", "left"], {}),
        (["", "train", "val", "test"], {part: [part] for part in ("train", "val", "test")}),
    ],
)
def test_the_test_part_is_never_what_picks_the_checkpoint(words, parts):
    assert columns.parts_of(words) == parts


@pytest.mark.parametrize(("suffix", "sign"), [(".csv", ","), (".csv", ";"), (".tsv", "\t"), (".txt", "\t")])
def test_the_delimiter_is_the_one_that_makes_columns(tmp_path, suffix, sign):
    (tmp_path / f"table{suffix}").write_text(f"path{sign}label\na.png{sign}1\nb, c.png{sign}0\n".replace("b, c", "b"))
    table, delimiter = columns.read(tmp_path / f"table{suffix}")
    assert delimiter == sign and [*table.columns] == ["path", "label"]


@pytest.mark.parametrize("name", ["patient_no", "PatNr", "Patient Number", "subject-id", "PatientID"])
def test_a_column_of_patients_is_found_as_people_spell_it(name):
    table = frame(path=["a", "b", "c", "d"], **{name: ["1", "1", "2", "2"]})
    assert columns.roles(table, "path").patient == name
