"""A CSV that lists images, and the folder with these: parses cells, finds files; 100,000 rows take seconds.

Problems are reported with line and value.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas

from premed.errors import UserError
from premed.safety.files import MOST_TABLE, refuse_irregular
from premed.tasks.common.patients import alike, normalise_name, patients_alike

Problem = tuple[str, str]
"""Where (a file, a line) and what is wrong, with a remedy."""
MISSING = {"nan", "na", "n/a", "#n/a", "<na>", "null", "nat"}
"""How programs write a missing cell."""
MOST_FOLDERS = 1000
"""Folders in which images are looked for that are not where the table says."""
BINARY = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0}


def read_table(path: Path, delimiter: str = ",") -> pandas.DataFrame:
    """Returns all cells as stripped text; the index is the line in the file, with the header in line 1."""
    try:
        refuse_irregular(path, MOST_TABLE, "split it, or leave out columns")
        preamble = int(names_separator(path))
        cells = pandas.read_csv(
            path,
            sep=delimiter,
            skiprows=preamble,
            header=None,  # pandas' own header parsing renames duplicate columns and shifts rows that are longer
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except FileNotFoundError:
        raise UserError(f"{path} is missing: put the table of the images there, or set task.table") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix the path or its permissions") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}); save it as CSV UTF-8") from None
    except pandas.errors.EmptyDataError:
        raise UserError(f"{path}: is empty; its first line must name the columns") from None
    except (pandas.errors.ParserError, ValueError) as error:
        what = " ".join(str(error).split())
        raise UserError(
            f"{path}: is not a table ({what}); each line must have the header's columns, or set task.delimiter"
        ) from None
    cells = cells.fillna("").apply(lambda column: column.str.strip())
    if any("\0" in name for name in cells.iloc[0]):
        raise UserError(f"{path}: is not UTF-8 (its header holds NUL, as UTF-16 does); save it as CSV UTF-8")
    cells.index += 1 + preamble
    frame = cells.iloc[1:].set_axis(cells.iloc[0], axis=1)
    frame = frame[(frame != "").any(axis=1)]
    if frame.empty:
        raise UserError(f"{path}: has a header and no rows; list the images, one per line")
    return frame


def names_separator(path: Path) -> bool:
    """Whether the first line is `sep=;`, by which a table tells Excel its separator: it is no header."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return re.fullmatch(r'"?sep=.?"?', file.readline(20).rstrip("\n"), re.IGNORECASE) is not None


def select_column(path: Path, frame: pandas.DataFrame, name: str, field: str) -> pandas.Series:
    """Returns a column by its name. Raises UserError if there is none or several. field: the setting that names it."""
    names = [str(column) for column in frame.columns]
    if names.count(name) != 1:
        wrong = "is there twice" if name in names else f"is not among {', '.join(names[:20])}"
        raise UserError(f"{path}: column {name!r} {wrong}; fix the table, {field} or task.delimiter")
    return frame.iloc[:, names.index(name)]


def parse_binary(
    path: Path, columns: Sequence[pandas.Series], unknown: Sequence[str]
) -> tuple[np.ndarray, list[Problem]]:
    """Returns [rows, columns] of 1, 0 and NaN (empty, or one of `unknown`), and the problems."""
    known = BINARY | dict.fromkeys(("", *unknown), np.nan)
    what = f"is neither 1, 0 nor empty; fix it, or name it in task.unknown ({', '.join(unknown) or 'none so far'})"
    numbers = np.array([[known.get(cell, np.nan) for cell in cells] for cells in columns]).T
    wrong = (invalid_values(path, cells, [cell not in known for cell in cells], what) for cells in columns)
    return numbers, [problem for some in wrong for problem in some]


def parse_names(
    path: Path, cells: pandas.Series, classes: Sequence[str], separator: str | None, none: str | None
) -> tuple[np.ndarray, list[Problem]]:
    """Returns [rows, classes] of 1 and 0 by the names in one column, NaN where the cell is empty; and the problems."""
    what = f"is none of the classes {', '.join(classes)}; fix it or task.classes"
    numbers, wrong = np.zeros((len(cells), len(classes))), np.zeros(len(cells), bool)
    places = {name: at for at, name in enumerate(classes)}
    for row, cell in enumerate(cells):
        if not cell:
            numbers[row] = np.nan
        for name in split_names(cell, separator, none):
            if name in places:
                numbers[row, places[name]] = 1
            else:
                wrong[row] = True
    return numbers, list(invalid_values(path, cells, wrong, what))


def split_names(cell: str, separator: str | None, none: str | None) -> list[str]:
    """Returns the class names in one cell."""
    names = [name.strip() for name in cell.split(separator)] if separator else [cell]
    return [name for name in names if name and name != none]


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """Sorts alphabetically; numbers numerically, before words."""
    return tuple(sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name)))


def doubtful_names(names: Sequence[str]) -> Iterator[str]:
    """Yields what is doubtful about class names that were taken from a column, and a remedy."""
    for name in names:
        if name.casefold() in MISSING:
            yield f"{name!r} would be a class; name it in task.unknown if it means no label, else list task.classes"
    for name, other in alike(names):
        yield f"{name!r} and {other!r} would be two classes; write them alike, or list task.classes"


def patient_problems(path: Path, cells: pandas.Series) -> Iterator[Problem]:
    """Yields cells that name no patient or a number that was rounded, and patients whose names are `alike`."""
    missing = [not cell or cell.casefold() in MISSING for cell in cells]
    yield from invalid_values(path, cells, missing, "is no patient; say whose the image is")
    rounded = [re.fullmatch(r"\d([.,]\d+)?[Ee]\+\d\d+", cell) is not None for cell in cells]
    what = "is a long number as spreadsheets, R and MATLAB round it, so that several patients may look like one"
    yield from invalid_values(path, cells, rounded, f"{what}; write all its digits")
    yield from ((str(path), what) for what in patients_alike(cells, f" in column {cells.name}"))


def invalid_values(path: Path, cells: pandas.Series, wrong: Iterable[bool], what: str) -> Iterator[Problem]:
    """Yields one problem per value that is not allowed in a column, at the first line with it."""
    lines_of: dict[str, list[int]] = {}
    for line, cell, is_wrong in zip(cells.index, cells, wrong, strict=True):
        if is_wrong:
            lines_of.setdefault(cell, []).append(line)
    for value, lines in lines_of.items():
        more = f" (so in {len(lines)} lines)" if len(lines) > 1 else ""
        yield f"{path}, line {lines[0]}", f"{value!r} in column {cells.name} {what}{more}"


def path_errors(table: Path, paths: pandas.Series, names: Sequence[str]) -> Iterator[Problem]:
    """Yields paths that are empty, outside the folder, or listed twice. names: the same, from `Folder.name`."""
    lines: dict[str, int] = {}
    for line, path, name in zip(paths.index, paths, names, strict=True):
        if not path:
            yield f"{table}, line {line}", "has no path; fill it in or remove the line"
        elif name == "." or name.startswith(".."):
            yield f"{table}, line {line}", f"{path} leads out of the folder; keep images inside it"
        elif name in lines:
            yield f"{table}, line {line}", f"{path} is listed in line {lines[name]} already; keep one of them"
        lines.setdefault(name, line)


class Folder:
    """The files of a folder, listed one directory at a time and cached."""

    def __init__(self, root: Path):
        self.root = Path(os.path.normpath(root))
        self.entries_by_folder: dict[str, dict[str, bool] | None] = {}
        self.normalised: dict[str, dict[str, str]] = {}

    def name(self, path: str) -> str:
        """Returns a path of the table relative to the root; it begins with `..` if it is outside."""
        absolute, root = os.path.normpath(os.path.join(self.root, path)), str(self.root)
        if absolute.startswith(self.real_root + os.sep):  # an absolute path, where the root is a link
            root = self.real_root
        return absolute[len(root) + 1 :] if absolute.startswith(root + os.sep) else os.path.relpath(absolute, root)

    def path_error(self, name: str) -> str:
        """Returns what is wrong with a file or folder of this name, and a remedy; empty if nothing is."""
        parent, base = os.path.split(os.path.join(self.root, name))
        if parent not in self.entries_by_folder:
            self.entries_by_folder[parent] = self.entries(parent)
        entries = self.entries_by_folder[parent]
        if entries is None or (entries.get(base) and not self.is_inside(os.path.join(parent, base))):
            return "leads out of the folder, by a link; keep images inside it"
        return "" if base in entries else f"is missing; {self.remedy(parent, base)}, or set task.partial=true"

    def remedy(self, parent: str, base: str) -> str:
        """Returns a remedy for a missing file: it may exist under a similar name."""
        if "\\" in base and os.path.lexists(os.path.join(parent, base.replace("\\", "/"))):
            return "write / in place of \\ in the table"
        if parent not in self.normalised:
            self.normalised[parent] = {normalise_name(name): name for name in self.entries_by_folder[parent] or ()}
        similar = self.normalised[parent].get(normalise_name(base))
        return f"{similar} is there: write it like that in the table" if similar else "copy it there"

    def prefix_of(self, paths: Iterable[str]) -> str:
        """The folder below the root that all these paths begin below; empty if there is none.

        Absolute paths, and those with `..`, begin nowhere.
        """
        some = [*map(os.path.normpath, paths)]
        if any(os.path.isabs(path) or path.startswith(os.pardir) for path in some):
            return ""
        for number, (folder, folders, _) in enumerate(os.walk(self.root)):
            folders.sort()
            if number and all(os.path.lexists(os.path.join(folder, path)) for path in some):
                return os.path.relpath(folder, self.root)
            if number > MOST_FOLDERS:
                break
        return ""

    def entries(self, folder: str) -> dict[str, bool] | None:
        """Returns the names in a folder and whether each is a link; None if the folder is outside the root."""
        if not self.is_inside(folder):
            return None
        try:
            with os.scandir(folder) as entries:
                return {entry.name: entry.is_symlink() for entry in entries}
        except OSError:
            return {}

    def is_inside(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.real_root)

    @cached_property
    def real_root(self) -> str:
        return os.path.realpath(self.root)

    def unlisted(self, names: Iterable[str], suffixes: tuple[str, ...]) -> Iterator[str]:
        """Yields files with one of the suffixes that are neither among `names` nor in a folder among them."""
        known = set(names)
        for folder, below, files in os.walk(self.root):
            here = os.path.relpath(folder, self.root)
            below[:] = sorted(
                name for name in below if name[0] != "." and os.path.normpath(f"{here}/{name}") not in known
            )
            for file in sorted(files):
                name = os.path.normpath(f"{here}/{file}")
                if file[0] != "." and file.lower().endswith(suffixes) and name not in known:
                    yield name
