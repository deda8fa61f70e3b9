"""What files of other people may be before they are opened: regular, no larger than their kind ever is. Cells of ours.

A FIFO is read for ever, and so is a link to /dev/zero, which also fills the memory. Links are followed: data sets made
of links are common, and what counts is what they lead to.
"""

import csv
import io
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from premed.errors import UserError, printable

MIB = 2**20
MOST_YAML = 4 * MIB
MOST_JSON = 64 * MIB  # a data set of 100,000 cases has 20
MOST_TABLE = 256 * MIB  # ChestX-ray14's has 9, of 112,120 images

KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def refuse_undecodable(*names: Path | str) -> None:
    """Raises UserError for a name whose bytes are not UTF-8, as old archives unpack it: neither tables nor MLflow can
    hold it."""
    for name in map(str, names):
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = printable(name.encode(errors="surrogatepass").decode(errors="backslashreplace"))
            with suppress(UnicodeEncodeError):  # of a file: its bytes as they are
                shown = printable(os.fsencode(name).decode(errors="backslashreplace"))
            if (used := sys.getfilesystemencoding()) != "utf-8":
                raise UserError(f"{shown}: names of files are read as {used} here; set PYTHONUTF8=1") from None
            remedy = "rename it, or all of a folder: convmv -r -f latin1 -t utf8 --notest FOLDER"
            raise UserError(f"{shown}: its name is not UTF-8; {remedy}") from None


def irregularity(path: Path | str) -> str:
    """What a path is if it is neither a file nor a folder, in words; "" otherwise, and where there is nothing.

    Raises OSError if it cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return kind_of(mode)


def kind_of(mode: int) -> str:
    """Like `irregularity`, of a file's mode."""
    return next((what for is_kind, what in KINDS if is_kind(mode)), "")


def refuse_irregular(path: Path | str, most: int | None = None, remedy: str = "name another file") -> None:
    """Raises UserError if `path` is no regular file, or has more than `most` bytes. Nothing is read.

    A path where there is nothing, or a folder, passes: whoever opens it says so. Raises OSError like `irregularity`.
    """
    if what := irregularity(path):
        raise UserError(f"{path}: is {what}, not a file; replace it with a regular file")
    if most is not None and os.path.isfile(path) and (size := os.path.getsize(path)) > most:
        raise UserError(f"{path}: has {size / MIB:,.0f} MiB, and {most / MIB:,.0f} are the most here; {remedy}")


def read_text(path: Path, most: int, remedy: str = "name another file", encoding: str = "utf-8") -> str:
    """The text of a regular file of at most `most` bytes. Raises as `refuse_irregular` and `open`."""
    refuse_irregular(path, most, remedy)
    return path.read_text(encoding=encoding)


FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""What a cell begins with that spreadsheets run as a formula (OWASP, CSV injection)."""


def csv_line(cells: Iterable[Any]) -> str:
    """A line of a CSV, ended by a line feed.

    A carriage return, which a file's name may hold, is quoted: `csv.writer` leaves it bare, and readers end the row
    there, unless its own lines end in one.
    """
    csv.writer(text := io.StringIO()).writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def spreadsheet_cell(value: Any) -> Any:
    """`value` for a CSV: text that a spreadsheet would run begins with an apostrophe. Numbers, also as text, stay."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
