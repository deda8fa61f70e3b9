"""The table of class probabilities that `premed predict` writes, predictions.csv."""

import csv
import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from premed.errors import StageFailed, UserError
from premed.inference.inputs import Input
from premed.safety.files import csv_line, spreadsheet_cell

TABLE = "predictions.csv"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def replaced(path: Path, images: Sequence[Path]) -> str:
    """What is lost of an earlier table, which is written anew: answers for other images; empty if nothing is."""
    if not path.exists():
        return ""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            earlier = {row[0] for row in [*csv.reader(file)][1:] if row}
    except (OSError, csv.Error) as error:
        return f"{path}: is written anew; what it held cannot be read ({error})"
    lost = len(earlier - {spreadsheet_cell(str(image)) for image in images})
    what = f"is written anew, without the answers for {lost} other image(s) in it"
    return f"{path}: {what}; --out with another folder keeps them" if lost else ""


@contextmanager
def probability_table(
    path: Path, classes: Sequence[str]
) -> Iterator[Callable[[Input, Sequence[float]], dict[str, Any]]]:
    """Yields the function that adds an image's path and probabilities to a CSV; each row is flushed at once.

    An earlier table stays until there is a first row.
    """
    header = ["path", *map(spreadsheet_cell, classes)]
    if path.exists() and columns(path) not in (header, []):
        raise UserError(f"{path}: already exists with other columns; name another folder")
    with writing(path):
        file = path.open("a", newline="", encoding="utf-8")
    with writing(path), file:  # to close it writes what a full disk has not taken
        is_new = True

        def add(each: Input, probabilities: Sequence[float]) -> dict[str, Any]:
            nonlocal is_new
            with writing(path):
                if is_new:
                    file.truncate(0)
                    file.write(csv_line(header))
                is_new = False
                file.write(csv_line([spreadsheet_cell(str(each.path)), *(f"{p:.9g}" for p in probabilities)]))
                file.flush()
            return {"probabilities": dict(zip(classes, probabilities, strict=True))}

        try:
            yield add
        finally:
            if is_new and path.stat().st_size == 0:
                path.unlink()


def columns(path: Path) -> list[str]:
    """Returns the first line of a CSV; [] if it is empty."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return next(csv.reader(file), [])
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: already exists and cannot be read ({error}); name another folder") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError if the file cannot be written, or StageFailed if no other could be, either."""
    try:
        yield
    except OSError as error:
        why = f"{path}: cannot be written ({error.strerror or error})"
        if error.errno in DISK_FULL:
            raise StageFailed(f"{why}; free space and start again") from error
        raise UserError(f"{why}; fix its permissions, rename the image or name another folder") from error
