"""The cache of prepared images: each is computed once and looked up by a hash of its inputs.

The hash covers the content of the image files, the content of the label file and the preprocessing. A changed
preprocessing or file makes a new cache file; a moved or touched file does not. Any number of processes may share one
folder.
"""

import hashlib
import math
import os
import socket
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from premed.config.image_processing import Preprocessing
from premed.config.spec import canonical
from premed.contracts import Case
from premed.data.io.dicom import slice_files
from premed.data.prepared import PreparedFile, is_complete, read_notes, write
from premed.data.preprocess import prepare
from premed.errors import UserError

CACHE_VERSION = 2  # raised whenever the same files and preprocessing give another result
STALE = 24 * 3600  # seconds after which a temporary file's writer is taken for dead


class Cache:
    """A folder of prepared images."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def open(self, case: Case, preprocessing: Preprocessing) -> PreparedFile | None:
        """The prepared image of a case; None if the cache does not hold it, or holds it incompletely."""
        with _Hashes(self.root) as hashes:
            path = _path(self.root, [_hash(hashes, file) for file in _files(case)], _has_map(case), preprocessing)
        return PreparedFile(path) if is_complete(path) else None

    def prepare(
        self,
        cases: Sequence[Case],
        preprocessing: Preprocessing,
        mapper: Callable[[Callable, Iterable], Iterable] | None = None,
        progress: Callable[[int, int], None] | None = None,
        notify: Callable[[Path, str], None] | None = None,
    ) -> list[PreparedFile]:
        """Returns the prepared images of all cases, in their order; computes only the missing ones.

        `mapper(function, items)` yields the results in any order, possibly from other processes; the default is `map`.
        `progress(done, total)` is called for each result, `notify(file, note)` for what the header of a file leaves
        open (`ImageFile.notes`), whether its image was computed now or earlier. After a failure no further case is
        started, those already started are finished and kept, and UserError names the first case that failed.
        """
        self._remove_stale()
        paths: list[Path | None] = [None] * len(cases)
        missing: list[tuple[int, list[str | None]]] = []
        failures: dict[int, str] = {}
        with _Hashes(self.root) as hashes:
            for number, case in enumerate(cases):
                known, path, notes = [hashes.get(file) for file in _files(case)], None, None
                if None not in known:
                    path = _path(self.root, known, _has_map(case), preprocessing)
                    notes = read_notes(path)
                if notes is None:
                    missing.append((number, known))
                    continue
                paths[number] = path
                _notify(notify, case, notes)
            done = len(cases) - len(missing)
            if progress and done:
                progress(done, len(cases))

            def jobs() -> Iterator[_Job]:
                for i, (number, known) in enumerate(missing):
                    if failures:
                        return
                    case = cases[number]
                    files, has_map, left = _files(case), _has_map(case), len(missing) - i
                    yield _Job(number, files, has_map, known, preprocessing, self.root, left)

            for result in (mapper or map)(prepare_one, jobs()):
                for content in result.contents:
                    hashes.put(content)
                if result.error is not None:
                    elsewhere = "" if result.node == socket.gethostname() else f" (on node {result.node})"
                    failures[result.number] = f"{result.error}{elsewhere}"
                    continue
                paths[result.number] = result.path
                _notify(notify, cases[result.number], result.notes)
                done += 1
                if progress:
                    progress(done, len(cases))
        if failures:
            first = min(failures)
            others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise UserError(f"{cases[first].name}: {failures[first]}{others}")
        assert None not in paths, "the mapper left out results"
        return [PreparedFile(path) for path in paths if path]

    def fingerprint(self, cases: Iterable[Case], labels: bool) -> str:
        """SHA-256 (hex) of names, images and, if `labels`, labels. Without `labels`, no label file is opened."""
        rows = []
        with _Hashes(self.root) as hashes:
            for case in cases:
                row: list[Any] = [case.name, [_hash(hashes, file) for file in _absolute(case.image)]]
                if labels and isinstance(case.label, Path):
                    row.append(_hash(hashes, *_absolute([case.label])))
                elif labels and isinstance(case.label, tuple):
                    row.append([None if math.isnan(number) else number for number in case.label])
                rows.append(row)
        return hashlib.sha256(canonical(sorted(rows, key=canonical)).encode()).hexdigest()

    def _remove_stale(self) -> None:
        """Removes temporary files of writers that were killed."""
        for leftover in self.root.glob("??/*.tmp"):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > STALE:
                    leftover.unlink()


class _Content(NamedTuple):
    file: Path
    size: int
    mtime_ns: int
    hash: str


class _Job(NamedTuple):
    number: int
    files: tuple[Path, ...]  # the images, then the label map, if the case has one
    has_map: bool
    known: list[str | None]  # the files' hashes; None: not yet computed
    preprocessing: Preprocessing
    root: Path
    num_left: int


class _Result(NamedTuple):
    number: int
    path: Path | None
    contents: list[_Content]  # newly hashed
    error: str | None
    node: str  # the host that prepared it
    notes: Sequence[tuple[int, str]] = ()  # see `Prepared.notes`


def prepare_one(job: _Job) -> _Result:
    """Hashes and prepares one case. `Cache.prepare` passes this function to its mapper; it may run in any process."""
    contents = []
    try:
        contents = [_content(file) for file, known in zip(job.files, job.known, strict=True) if known is None]
        fresh = {content.file: content.hash for content in contents}
        hashes = [known or fresh[file] for file, known in zip(job.files, job.known, strict=True)]
        path = _path(job.root, hashes, job.has_map, job.preprocessing)
        notes: Sequence[tuple[int, str]] | None = read_notes(path)
        if notes is None:
            images, label = (job.files[:-1], job.files[-1]) if job.has_map else (job.files, None)
            prepared = prepare(images, label, job.preprocessing)
            write(path, prepared, job.num_left)
            notes = prepared.notes
    except UserError as error:
        return _Result(job.number, None, contents, str(error), socket.gethostname())
    return _Result(job.number, path, contents, None, socket.gethostname(), notes)


def _notify(notify: Callable[[Path, str], None] | None, case: Case, notes: Sequence[tuple[int, str]]) -> None:
    if notify:
        for number, note in notes:
            notify(case.files[number], note)


def _files(case: Case) -> tuple[Path, ...]:
    return _absolute(case.files)


def _absolute(files: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(Path(os.path.abspath(file)) for file in files)


def _has_map(case: Case) -> bool:
    return isinstance(case.label, Path)


def _path(root: Path, hashes: Sequence[str | None], has_map: bool, preprocessing: Preprocessing) -> Path:
    name = hashlib.sha256(canonical([CACHE_VERSION, hashes, has_map, preprocessing]).encode()).hexdigest()[:40]
    return root / name[:2] / f"{name}.safetensors"


def _content(file: Path) -> _Content:
    try:
        size, mtime_ns, parts = _state(file)
        if parts is None:
            return _Content(file, size, mtime_ns, _digest(file))
        combined = hashlib.blake2b(canonical([[part.name, _digest(part)] for part in parts]).encode(), digest_size=20)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); fix the path or its permissions") from None
    return _Content(file, size, mtime_ns, combined.hexdigest())


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=20)).hexdigest()


def _state(file: Path) -> tuple[int, int, list[Path] | None]:
    """Size, modification time and None. For a folder of slices: total size, latest time, and the slices' files."""
    state = file.stat()
    if not stat.S_ISDIR(state.st_mode):
        return state.st_size, state.st_mtime_ns, None
    parts = slice_files(file)
    states = [part.stat() for part in parts]
    return sum(part.st_size for part in states), max([state.st_mtime_ns, *(part.st_mtime_ns for part in states)]), parts


def _hash(hashes: "_Hashes", file: Path) -> str:
    known = hashes.get(file)
    if known is None:
        content = _content(file)
        hashes.put(content)
        known = content.hash
    return known


class _Hashes:
    """Hashes by (path, size, modification time), in SQLite. An optimisation: if SQLite fails, files are hashed"""

    def __init__(self, root: Path):
        self._file = root / "contents.sqlite"
        self._base: sqlite3.Connection | None = None

    def __enter__(self) -> "_Hashes":
        with suppress(OSError, sqlite3.Error):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(self._file, timeout=30, isolation_level=None)
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=NORMAL")
            base.execute(
                "CREATE TABLE IF NOT EXISTS contents (file TEXT PRIMARY KEY, size INT, mtime_ns INT, hash TEXT)"
            )
            self._base = base
        return self

    def __exit__(self, *_) -> None:
        if self._base:
            self._base.close()

    def get(self, file: Path) -> str | None:
        with suppress(OSError, sqlite3.Error):
            size, mtime_ns, _ = _state(file)
            known = (str(file), size, mtime_ns)
            query = "SELECT hash FROM contents WHERE file = ? AND size = ? AND mtime_ns = ?"
            row = self._base.execute(query, known).fetchone() if self._base else None
            return row[0] if row else None
        return None

    def put(self, content: _Content) -> None:
        with suppress(sqlite3.Error):
            if self._base:
                row = (str(content.file), *content[1:])
                self._base.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)", row)
