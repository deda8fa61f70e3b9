"""table.py: what spreadsheets do to a CSV."""

import pytest

from premed.errors import UserError
from premed.tasks.common import columns, image_folder, table
from premed.tasks.common.image_tree import find_images

ROWS = ["path,patient,sick", "a.png,1,1", "b.png,2,0", "c.png,3,1"]


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "\ufeffsep=;"])
def test_a_first_line_that_tells_excel_the_separator_is_no_header(tmp_path, first):
    path = written(tmp_path, "\r\n".join([first, *(row.replace(",", ";") for row in ROWS)]))
    frame = table.read_table(path, ";")
    assert [*frame.columns] == ["path", "patient", "sick"] and [*frame.index] == [3, 4, 5]
    found = columns.read(path)
    assert found and found[1] == ";" and [*found[0].patient] == ["1", "2", "3"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_called_what_it_is(tmp_path, encoding):
    path = written(tmp_path, "\n".join(ROWS), encoding)
    with pytest.raises(UserError, match=r"labels.csv: is not UTF-8 .* UTF-16 .* save it as CSV UTF-8"):
        table.read_table(path)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (("7", "7,0"), "'7' and '7,0' in column patient would be two"),
        (("007", "7,"), "'007' and '7,' in column patient would be two"),
        (("1.23457E+11", "5"), "'1.23457E+11' in column patient is a long number as spreadsheets, R and"),
        (("1,2E+08", "5"), "write all its digits"),
        (("1e+05", "100001"), "'1e+05' in column patient is a long number"),  # R of 100000
        (("1.2346e+05", "7"), "write all its digits"),  # MATLAB's csvwrite of 123456, and of 123464
    ],
)
def test_patients_whose_numbers_a_spreadsheet_changed_are_named(tmp_path, cells, words):
    """Two patients who are one, or one who is two: splits and intervals would be wrong without a word."""
    path = written(tmp_path, f'path,patient\na.png,"{cells[0]}"\nb.png,"{cells[1]}"\n')
    problems = [*table.patient_problems(path, table.read_table(path)["patient"])]
    assert len(problems) == 1 and words in problems[0][1]


def test_patients_that_are_no_numbers_stay_as_they_are(tmp_path):
    path = written(tmp_path, "path,patient\na.png,1E+a\nb.png,1e5\nc.png,A1E+05\nd.png,12E5\n")
    assert [*table.patient_problems(path, table.read_table(path)["patient"])] == []


def test_labels_that_two_columns_are_called_by_are_named(tmp_path):
    written(tmp_path, "path,sick,sick\na.png,1,0\nb.png,0,1\n")
    for name in "ab":
        (tmp_path / f"{name}.png").touch()
    fault = image_folder.table_fault(tmp_path, find_images(tmp_path))
    assert fault.endswith("several columns are called sick: rename all but one")
