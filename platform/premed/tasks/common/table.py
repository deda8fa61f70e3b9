"""A CSV that lists images, and the folder they lie in: cells as text and numbers, names on disk; a hundred thousand in
seconds. What is wrong is told by line and value."""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas

from premed.errors import UserError

Complaint = tuple[str, str]
"""Where (a file, a line) and what, with the mend."""
TRUTH = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0}


def read(path: Path, delimiter: str = ",") -> pandas.DataFrame:
    """Every cell as text without the blanks around it; the index counts the file's lines, the header being line 1."""
    try:
        cells = pandas.read_csv(
            path,
            sep=delimiter,
            header=None,  # not pandas' own way: it renames double columns and shifts rows that are longer
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except FileNotFoundError:
        raise UserError(f"{path} is missing: put the table of the images there, or set task.table") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend the path or its permissions") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}); save it as CSV UTF-8") from None
    except pandas.errors.EmptyDataError:
        raise UserError(f"{path}: is empty; its first line must name the columns") from None
    except (pandas.errors.ParserError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"{path}: is no table ({said}); each line must have the header's columns, or set task.delimiter"
        ) from None
    cells = cells.fillna("").apply(lambda column: column.str.strip())
    cells.index += 1
    frame = cells.iloc[1:].set_axis(cells.iloc[0], axis=1)
    frame = frame[(frame != "").any(axis=1)]
    if frame.empty:
        raise UserError(f"{path}: has a header and no row below it; list the images, one a line")
    return frame


def column(path: Path, frame: pandas.DataFrame, name: str, field: str) -> pandas.Series:
    """One column by its name, refused where there is none or two; `field` is where a user named it."""
    there = [str(name) for name in frame.columns]
    if there.count(name) != 1:
        found = "is there twice" if name in there else f"is not among {', '.join(there[:20])}"
        raise UserError(f"{path}: column {name!r} {found}; mend the table, {field} or task.delimiter")
    return frame.iloc[:, there.index(name)]


def yes_or_no(
    path: Path, columns: Sequence[pandas.Series], unknown: Sequence[str]
) -> tuple[np.ndarray, list[Complaint]]:
    """[rows, columns] of 1, 0 and NaN (empty, or one of `unknown`)."""
    known = TRUTH | dict.fromkeys(("", *unknown), np.nan)
    said = f"is neither 1, 0 nor empty; mend it, or name it in task.unknown ({', '.join(unknown) or 'none so far'})"
    numbers = np.array([[known.get(cell, np.nan) for cell in cells] for cells in columns]).T
    wrong = (foreign(path, cells, [cell not in known for cell in cells], said) for cells in columns)
    return numbers, [complaint for some in wrong for complaint in some]


def named(
    path: Path, cells: pandas.Series, classes: Sequence[str], separator: str | None, none: str | None
) -> tuple[np.ndarray, list[Complaint]]:
    """[rows, classes] of 1 and 0 by the names in one column; a row of NaN where the cell is empty."""
    said = f"is none of the classes {', '.join(classes)}; mend it or task.classes"
    numbers, wrong = np.zeros((len(cells), len(classes))), np.zeros(len(cells), bool)
    places = {name: at for at, name in enumerate(classes)}
    for row, cell in enumerate(cells):
        if not cell:
            numbers[row] = np.nan
        for name in names_of(cell, separator, none):
            if name in places:
                numbers[row, places[name]] = 1
            else:
                wrong[row] = True
    return numbers, list(foreign(path, cells, wrong, said))


def names_of(cell: str, separator: str | None, none: str | None) -> list[str]:
    """The class names in one cell."""
    names = [name.strip() for name in cell.split(separator)] if separator else [cell]
    return [name for name in names if name and name != none]


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """In alphabetical order; numbers as numbers."""
    return tuple(sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))


def foreign(path: Path, cells: pandas.Series, wrong: Iterable[bool], said: str) -> Iterator[Complaint]:
    """One complaint per value that must not stand in a column, at the line where it is first met."""
    found: dict[str, list[int]] = {}
    for line, cell, is_wrong in zip(cells.index, cells, wrong, strict=True):
        if is_wrong:
            found.setdefault(cell, []).append(line)
    for value, lines in found.items():
        more = f" (so in {len(lines)} lines)" if len(lines) > 1 else ""
        yield f"{path}, line {lines[0]}", f"{value!r} in column {cells.name} {said}{more}"


def wrong_paths(table: Path, paths: pandas.Series, names: Sequence[str]) -> Iterator[Complaint]:
    """Paths that are empty, lead out of the folder, or are listed twice; `names` are what `Folder` calls them."""
    lines: dict[str, int] = {}
    for line, path, name in zip(paths.index, paths, names, strict=True):
        if not path:
            yield f"{table}, line {line}", "names no image; fill in its path or drop the line"
        elif name == "." or name.startswith(".."):
            yield f"{table}, line {line}", f"{path} leads out of the folder; keep images inside it"
        elif name in lines:
            yield f"{table}, line {line}", f"{path} is listed in line {lines[name]} already; keep one of them"
        lines.setdefault(name, line)


def plain(name: str) -> str:
    """A name without what differs between file systems: case, and how accents are composed."""
    return unicodedata.normalize("NFC", name).casefold()


class Folder:
    """What of a folder is on disk, looked up directory by directory."""

    def __init__(self, root: Path):
        self.root = Path(os.path.normpath(root))
        self.listed: dict[str, dict[str, bool] | None] = {}
        self.plainly: dict[str, dict[str, str]] = {}

    def name(self, path: str) -> str:
        """A path of the table, relative to the root: `..` where it leads out of it."""
        whole, root = os.path.normpath(os.path.join(self.root, path)), str(self.root)
        if whole.startswith(self.home + os.sep):  # an absolute path, where the root is a link
            root = self.home
        return whole[len(root) + 1 :] if whole.startswith(root + os.sep) else os.path.relpath(whole, root)

    def trouble(self, name: str) -> str:
        """What is wrong with a file or folder of this name; empty, if nothing is."""
        parent, base = os.path.split(os.path.join(self.root, name))
        if parent not in self.listed:
            self.listed[parent] = self.entries(parent)
        entries = self.listed[parent]
        if entries is None or (entries.get(base) and not self.inside(os.path.join(parent, base))):
            return "leads out of the folder, by a link; keep images inside it"
        return "" if base in entries else f"is missing; {self.mend(parent, base)}, or set task.partial=true"

    def mend(self, parent: str, base: str) -> str:
        """What to do about a missing file: its name may be there in other signs."""
        if "\\" in base and os.path.lexists(os.path.join(parent, base.replace("\\", "/"))):
            return "write / in place of \\ in the table"
        if parent not in self.plainly:
            self.plainly[parent] = {plain(name): name for name in self.listed[parent] or ()}
        there = self.plainly[parent].get(plain(base))
        return f"{there} is there: spell it so in the table" if there else "copy it there"

    def entries(self, folder: str) -> dict[str, bool] | None:
        """The names in a folder and whether each is a link; None for a folder that is elsewhere."""
        if not self.inside(folder):
            return None
        try:
            with os.scandir(folder) as entries:
                return {entry.name: entry.is_symlink() for entry in entries}
        except OSError:
            return {}

    def inside(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.home)

    @cached_property
    def home(self) -> str:
        return os.path.realpath(self.root)

    def others(self, names: Iterable[str], suffixes: tuple[str, ...]) -> Iterator[str]:
        """Files with one of the suffixes that are not among `names` nor below a folder among them."""
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
