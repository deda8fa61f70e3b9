"""Folders of DICOM files by their series: which files make up a volume, and whose it is. Reads headers alone.

A folder with one series is a volume. Of a folder with several, each is a volume by the name FOLDER/series-UID.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from premed.data.io.dicom import is_dicom, may_be_slice, silence_pydicom, slice_files
from premed.errors import UserError
from premed.safety.files import kind_of, refuse_irregular

MARK = "series-"
TAGS = ["SeriesInstanceUID", "PatientID", "NumberOfFrames", "Rows", "ImageType"]
LOOKED_AT = 5  # headers of a folder, at most, by which it is taken for one series; the reader compares all of them


class Head(NamedTuple):
    """What a header says of a file's series."""

    series: str
    patient: str
    """Empty: it does not say."""
    frames: int
    """0: the file holds no picture."""
    localiser: bool


class Series(NamedTuple):
    """A series: its path, its files, and the header of the first."""

    path: Path
    files: tuple[Path, ...]
    head: Head


def read_head(path: Path) -> Head:
    """Reads a DICOM file's header. Raises UserError, which names it, if it cannot be read."""
    import pydicom

    try:
        refuse_irregular(path)
        with silence_pydicom():
            tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
            frames = int(tags.get("NumberOfFrames") or 1) if tags.get("Rows") else 0
            localiser = "LOCALIZER" in [str(word).upper() for word in tags.get("ImageType") or ()]
            series, patient = (str(tags.get(name) or "").strip() for name in TAGS[:2])
            return Head(series, patient, frames, localiser)
    except UserError:
        raise
    except Exception as error:  # pydicom raises anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: its DICOM header cannot be read ({reason}); copy it again, or leave it out") from None


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, of which many have no suffix."""
    return _dicom_among(slice_files(folder))


def _dicom_among(files: Iterable[Path]) -> list[Path]:
    return [path for path in files if path.suffix.lower() == ".dcm" or is_dicom(path)]


def series_in(folder: Path, files: Sequence[Path]) -> list[Series]:
    """The series of a folder, whose DICOM files are `files`.

    The headers of LOOKED_AT files, evenly spread, tell whether there is one; if there are several, all are read.
    """
    numbers = sorted({i * (len(files) - 1) // max(LOOKED_AT - 1, 1) for i in range(LOOKED_AT)})
    heads = [read_head(files[i]) for i in numbers]
    if len({head.series for head in heads}) == 1:
        return [Series(folder, tuple(files), heads[0])]
    return each_series(folder)


def each_series(folder: Path) -> list[Series]:
    """The series of a folder, each by a name of its own. All headers are read."""
    return [Series(folder / f"{MARK}{uid}", some, read_head(some[0])) for uid, some in grouped(folder).items()]


def grouped(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The DICOM files of a folder by the UID of their series."""
    return _grouped(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _grouped(folder: Path, changed: int) -> dict[str, tuple[Path, ...]]:
    by_series: dict[str, list[Path]] = defaultdict(list)
    for path in _dicom_among(_slice_states(folder)):
        by_series[read_head(path).series].append(path)
    return {uid: tuple(some) for uid, some in sorted(by_series.items())}


def is_series(path: Path) -> bool:
    """Whether the path is that of a volume of slices: a folder, or one of several series in a folder."""
    return path.is_dir() or (path.name.startswith(MARK) and path.parent.is_dir() and not path.exists())


def series_files(path: Path) -> list[Path]:
    """The files of a volume of slices, in the order of their names. Those of a folder may hold others, too."""
    return list(series_states(path))


def series_states(path: Path) -> dict[Path, os.stat_result]:
    """The same files, and their states."""
    if path.is_dir():
        return _slice_states(path)
    files = grouped(path.parent).get(path.name.removeprefix(MARK))
    if files is None:
        raise UserError(f"{path}: there is no such file or series")
    return {file: file.stat() for file in files}


def _slice_states(folder: Path) -> dict[Path, os.stat_result]:
    """The files of a folder that may be slices of a volume, and their states, by one look at each.

    Raises UserError for a link that leads nowhere and for what is no file: it may have been the first or last slice,
    which nobody would miss. Links may lead anywhere else, since archives are often linked together.
    """
    states = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not may_be_slice(entry.name):
                continue
            path = Path(entry.path)
            try:
                state = entry.stat()
            except FileNotFoundError:
                if entry.is_symlink():
                    what = f"is a link to {os.readlink(path)}, which is not there; mend or remove it"
                    raise UserError(f"{path}: {what}") from None
                continue  # removed meanwhile
            if kind_of(state.st_mode):
                refuse_irregular(path)
            if stat.S_ISREG(state.st_mode):
                states[path] = state
    return states
