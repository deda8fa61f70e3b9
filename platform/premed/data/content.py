"""What identifies files and images by their content: hashes of bytes and of grey values, kept in SQLite.

**The same image.** Two files hold the same image if one channel of the one and one channel of the other have the same
shape and the same grey values, voxel by voxel, whatever the format, the compression, the names and the label:

- volumes are compared in RAS orientation, so another orientation with the header that goes with it is the same; origin
  and spacing are not compared;
- a channel with at most 65,536 different values, as many as 16 bits hold, is compared by the order of its values: any
  strictly increasing function of them is the same (slope and intercept, 0 to 1 in place of 0 to 255, 16 bits for 8).
  Others are compared as float32;
- a grey picture stored in colour is grey. A DICOM picture counts both as measured and as displayed;
- a channel with one value everywhere is no image.

Not the same is what was resampled, cropped, padded, mirrored or rotated, compressed with loss (JPEG), clipped or
rounded to fewer grey values, and a slice of a volume that was saved as a picture.
"""

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from premed.config.spec import canonical
from premed.data.io import geometry
from premed.data.io.dicom_tree import is_series, series_states
from premed.data.io.readers import PICTURES, VOLUMES, read_values
from premed.errors import UserError
from premed.safety.files import refuse_irregular
from premed.safety.pseudonyms import pseudonym, read_key

MOST_LEVELS = 2**16
"""A channel with at most so many different values is compared by their order."""
VERIFIED_FOR = 7 * 24 * 3600
"""Seconds for which a prepared file that was found undamaged counts as such, unless it changes."""
MOST_SPAN = 2**20
"""Whole numbers within this range are ranked by a table: the same ranks as by search, ten times faster."""

# Images --------------------------------------------------------------------------------------------------------------


def hash_image(path: Path, dims: int) -> tuple[str, ...]:
    """Hashes of the channels of a file or a folder of slices. Raises UserError if it cannot be read."""
    forms = [read_values(path)]
    if dims == 2 and is_dicom_picture(path):
        forms.append(read_values(path, shown=True))
    return tuple(dict.fromkeys(each for values, affine in forms for each in hash_channels(values, affine, dims)))


def is_dicom_picture(path: Path) -> bool:
    """Whether a picture's file is DICOM: it has any name, or none."""
    return not path.name.lower().endswith((*PICTURES, *VOLUMES))


def hash_channels(values: np.ndarray, affine: np.ndarray, dims: int) -> tuple[str, ...]:
    """The distinct hashes of the channels of [*S] or [*S, C]; none of a channel with one value everywhere."""
    if values.ndim == dims:
        values = values[..., None]
    if values.ndim != dims + 1:
        return ()
    channels = np.moveaxis(values, -1, 0)
    if dims == 3:
        channels, _, _ = geometry.reorient(channels, None, affine, "RAS")
    hashes = dict.fromkeys(_hash_channel(channel) for channel in channels)
    return tuple(each for each in hashes if each is not None)


def _hash_channel(channel: np.ndarray) -> str | None:
    """Plane by plane, so that there is no second volume in memory."""
    levels = np.empty(0, np.float32)
    for plane in _planes(channel):
        levels = np.union1d(levels, plane)
        if len(levels) > MOST_LEVELS:
            break
    if len(levels) < 2:
        return None
    ranked = len(levels) <= MOST_LEVELS
    digest = hashlib.blake2b(canonical([ranked, channel.shape]).encode(), digest_size=16)
    if not ranked:
        for plane in _planes(channel):
            digest.update((plane + np.float32(0)).astype("<f4").data)  # -0 is 0
        return digest.hexdigest()
    low, table = float(levels[0]), None
    if levels[-1] - low < MOST_SPAN and (levels == np.rint(levels)).all():
        table = np.zeros(int(levels[-1] - low) + 1, "<u2")
        table[(levels - low).astype(np.int32)] = np.arange(len(levels))
    for plane in _planes(channel):
        ranks = np.searchsorted(levels, plane) if table is None else table[(plane - low).astype(np.int32)]
        digest.update(ranks.astype("<u2", copy=False).data)
    return digest.hexdigest()


def _planes(channel: np.ndarray) -> Iterator[np.ndarray]:
    """The planes of a volume across its last axis, or the picture itself: contiguous float32."""
    for plane in channel.T if channel.ndim == 3 else [channel]:
        yield np.ascontiguousarray(plane, np.float32)


# Files ---------------------------------------------------------------------------------------------------------------


class FileContent(NamedTuple):
    """The state of a file, or of a folder of slices, and the hash of its bytes."""

    file: Path
    size: int
    mtime_ns: int
    hash: str


def absolute(files: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(file if (path := os.path.abspath(file)) == str(file) else Path(path) for file in files)


def hash_file(file: Path) -> FileContent:
    """Reads a file, or the files of a folder of slices. Raises UserError if it cannot be read."""
    try:
        size, mtime_ns, parts = _state(file)
        if parts is None:
            return FileContent(file, size, mtime_ns, _digest(file))
        combined = hashlib.blake2b(canonical([[part.name, _digest(part)] for part in parts]).encode(), digest_size=20)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); fix the path or its permissions") from None
    return FileContent(file, size, mtime_ns, combined.hexdigest())


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=20)).hexdigest()


def state(file: Path) -> tuple[int, int]:
    """Size and modification time (ns) of a file, or of a folder of slices. Raises OSError if it is not there."""
    return _state(file)[:2]


def _state(file: Path) -> tuple[int, int, list[Path] | None]:
    """Size, modification time and None. For a folder of slices: total size, latest time, and the slices' files."""
    with suppress(FileNotFoundError):  # one of several series in a folder is no file itself
        state = os.stat(file)
        if stat.S_ISREG(state.st_mode):
            return state.st_size, state.st_mtime_ns, None
    if not is_series(file):
        refuse_irregular(file)
        state = file.stat()
        return state.st_size, state.st_mtime_ns, None
    parts = series_states(file)
    latest = (file if file.is_dir() else file.parent).stat().st_mtime_ns
    states = parts.values()
    return sum(part.st_size for part in states), max([latest, *(part.st_mtime_ns for part in states)]), list(parts)


# Both, kept ----------------------------------------------------------------------------------------------------------


class Hashes:
    """Hashes of files by (path, size, modification time), and of their channels by the file's hash, in SQLite; and the
    prepared files beside it whose checksums were verified.

    An optimisation: if SQLite fails, files are read again.
    """

    def __init__(self, root: Path):
        self._file = root / "contents.sqlite"
        self._base: sqlite3.Connection | None = None
        self._key = read_key(root.parent)

    def _name(self, file: Path) -> str:
        """A file's path, or its hash where `tracking.hash_ids` was ever set."""
        return str(file) if self._key is None else pseudonym(self._key, str(file))

    def __enter__(self) -> "Hashes":
        with suppress(OSError, sqlite3.Error):
            self._file.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # PREMED_HOME
            self._file.parent.mkdir(exist_ok=True)
            base = sqlite3.connect(self._file, timeout=30, isolation_level=None)
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=NORMAL")
            base.execute(
                "CREATE TABLE IF NOT EXISTS contents (file TEXT PRIMARY KEY, size INT, mtime_ns INT, hash TEXT)"
            )
            base.execute(
                "CREATE TABLE IF NOT EXISTS images "
                "(hash TEXT, dims INT, version TEXT, channels TEXT, PRIMARY KEY (hash, dims, version))"
            )
            base.execute(
                "CREATE TABLE IF NOT EXISTS prepared (file TEXT PRIMARY KEY, size INT, mtime_ns INT, verified REAL)"
            )
            self._base = base
            self._hide_paths(base)
        return self

    def _hide_paths(self, base: sqlite3.Connection) -> None:
        """Where `tracking.hash_ids` was set since, replaces the paths from before by their hashes, once."""
        key, (hidden,) = self._key, base.execute("PRAGMA user_version").fetchone()
        if key is None and hidden:  # the key was removed: from now on there are paths again
            base.execute("PRAGMA user_version = 0")
        if key is None or hidden:
            return
        base.create_function("hidden", 1, lambda path: pseudonym(key, path), deterministic=True)
        base.execute("UPDATE OR REPLACE contents SET file = hidden(file) WHERE file LIKE '/%'")
        base.execute("VACUUM")  # else what was there before is still in the file's free space
        base.execute("PRAGMA user_version = 1")
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def __exit__(self, *_) -> None:
        if self._base:
            self._base.close()

    def get(self, file: Path, state_now: tuple[int, int] | None = None) -> str | None:
        """The hash of a file that has not changed since `put`. state_now: its `state`, if the caller has looked."""
        with suppress(OSError, sqlite3.Error):
            known = (self._name(file), *(state_now or state(file)))
            query = "SELECT hash FROM contents WHERE file = ? AND size = ? AND mtime_ns = ?"
            row = self._base.execute(query, known).fetchone() if self._base else None
            return row[0] if row else None
        return None

    def put(self, content: FileContent) -> None:
        self._key = self._key or read_key(self._file.parent.parent)  # another command may have made it meanwhile
        with suppress(sqlite3.Error):
            if self._base:
                row = (self._name(content.file), *content[1:])
                self._base.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)", row)

    def of(self, file: Path) -> str:
        """The hash of a file, which is read if it is not known."""
        known = self.get(file)
        if known is None:
            content = hash_file(file)
            self.put(content)
            known = content.hash
        return known

    def channels(self, hash: str, dims: int, version: str) -> tuple[str, ...] | None:
        """What `hash_image` returned for the file with that hash, if that is known."""
        with suppress(sqlite3.Error):
            query = "SELECT channels FROM images WHERE hash = ? AND dims = ? AND version = ?"
            row = self._base.execute(query, (hash, dims, version)).fetchone() if self._base else None
            return tuple(row[0].split()) if row else None
        return None

    def put_channels(self, hash: str, dims: int, version: str, channels: Iterable[str]) -> None:
        with suppress(sqlite3.Error):
            if self._base:
                row = (hash, dims, version, " ".join(channels))
                self._base.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", row)

    def is_verified(self, prepared: Path) -> bool:
        """Whether a prepared file was found undamaged of late, and has not changed since."""
        with suppress(OSError, sqlite3.Error):
            state, since = prepared.stat(), time.time() - VERIFIED_FOR
            query = "SELECT 1 FROM prepared WHERE file = ? AND size = ? AND mtime_ns = ? AND verified > ?"
            row = (prepared.name, state.st_size, state.st_mtime_ns, since)
            return bool(self._base and self._base.execute(query, row).fetchone())
        return False

    def put_verified(self, prepared: Path, size: int, mtime_ns: int) -> None:
        """A prepared file of this state is undamaged."""
        with suppress(sqlite3.Error):
            if self._base:
                row = (prepared.name, size, mtime_ns, time.time())
                self._base.execute("INSERT OR REPLACE INTO prepared VALUES (?, ?, ?, ?)", row)
