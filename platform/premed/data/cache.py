"""The cache of prepared images: each is computed once and looked up by a hash of its inputs.

The hash covers the content of the image files, the content of the label file and the preprocessing. A changed
preprocessing or file makes a new cache file; a moved or touched file does not. Any number of processes may share one
folder.
"""

import hashlib
import math
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from premed.config.image_processing import Preprocessing
from premed.config.spec import canonical
from premed.contracts import Case
from premed.data import content
from premed.data.content import FileContent, Hashes, absolute
from premed.data.found import Found, Recipe, find, joined, prepared_path
from premed.data.io.image_file import Note
from premed.data.prepared import PreparedFile, read_notes, write
from premed.data.preprocess import prepare
from premed.errors import UserError

VERSION = "2.1"
"""Of hashes of grey values, which finished pre-trainings have recorded: raised if files give others."""
DAMAGED = Note("was damaged on its disk: it was prepared anew", reading=False)
STALE = 24 * 3600  # seconds after which a temporary file's writer is taken for dead

Mapper = Callable[[Callable, Iterable], Iterable]
"""`mapper(function, items)` yields the results in any order, possibly from other processes; `map` is one."""
Progress = Callable[[int, int], None]
"""`progress(done, total)` is called for each result."""


class Cache:
    """A folder of prepared images."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def open(self, case: Case, preprocessing: Preprocessing) -> PreparedFile | None:
        """The prepared image of a case; None if the cache does not hold it, or holds it damaged."""
        with Hashes(self.root) as hashes:
            recipe = Recipe(self.root, canonical(preprocessing), _has_map(case))
            path = prepared_path(recipe, [hashes.of(file) for file in _files(case)])
            notes = read_notes(path, verify=not hashes.is_verified(path))
        return None if notes is None else PreparedFile(path)

    def prepare(
        self,
        cases: Sequence[Case],
        preprocessing: Preprocessing,
        mapper: Mapper | None = None,
        progress: Progress | None = None,
        notify: Callable[[Path, Note], None] | None = None,
        known: dict[Path, str] | None = None,
    ) -> list[PreparedFile]:
        """Returns the prepared images of all cases, in their order; computes only the missing and the damaged ones.

        Whether one is damaged is verified once on a machine, see `Hashes.is_verified`: whoever reads it later does not
        verify it again. mapper: the default is `map`. notify(file, note) is called for what is to be said of a file
        (`ImageFile.notes`), whether its image was computed now or earlier. After a failure no further case is started,
        those already started are finished and kept, and UserError names the first case that failed. known: the hashes
        of files that it does not have are added to it, see `fingerprint`.
        """
        self._remove_stale()
        failures: dict[int, str] = {}
        with Hashes(self.root) as hashes:
            found, jobs = self._look_up(hashes, cases, preprocessing)
            done = len(cases) - len(jobs)
            if progress and done:
                progress(done, len(cases))
            for result in (mapper or map)(prepare_one, (job for job in jobs if not failures)):
                for each in result.contents:
                    hashes.put(each)
                if result.error is not None:
                    elsewhere = "" if result.node == socket.gethostname() else f" (on node {result.node})"
                    failures[result.number] = f"{result.error}{elsewhere}"
                    continue
                found[result.number] = result
                hashes.put_verified(result.path, *result.state)
                done += 1
                if progress:
                    progress(done, len(cases))
        if failures:
            first = min(failures)
            others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise UserError(f"{cases[first].name}: {failures[first]}{others}")
        assert len(found) == len(cases), "the mapper left out results"
        if known is not None:
            for number, case in enumerate(cases):
                for file, hash in zip(_files(case), found[number].hashes, strict=True):
                    known.setdefault(file, hash)
        if notify:
            for number, case in enumerate(cases):
                for file, note in found[number].notes:
                    notify(case.files[file], note)
                if found[number].damaged:
                    notify(found[number].path, DAMAGED)
        return [PreparedFile(found[number].path) for number in range(len(cases))]

    def missing(self, cases: Sequence[Case], preprocessing: Preprocessing) -> list[Case]:
        """The cases that `prepare` would compute. Reads no image: one whose hash is not known counts as missing."""
        with Hashes(self.root) as hashes:
            found, _ = self._look_up(hashes, cases, preprocessing)
        return [case for number, case in enumerate(cases) if number not in found]

    def _look_up(
        self, hashes: Hashes, cases: Sequence[Case], preprocessing: Preprocessing
    ) -> tuple[dict[int, "_Result"], list["_Job"]]:
        """Returns the verified prepared files, by the case's number, and the jobs that prepare or verify the others."""
        found, jobs, missing, text = {}, [], [], canonical(preprocessing)
        for number, case in enumerate(cases):
            result = find(Recipe(self.root, text, _has_map(case)), _files(case), hashes)
            if isinstance(result, Found):
                found[number] = _Result(number, result.path, hashes=result.hashes, notes=result.notes)
                continue
            missing.append(result.absent)
            jobs.append(_Job(number, _files(case), _has_map(case), result.hashes, preprocessing, self.root, 0))
        num_left = np.cumsum(missing[::-1])[::-1]
        return found, [job._replace(num_left=int(left)) for job, left in zip(jobs, num_left, strict=True)]

    def fingerprint(self, cases: Iterable[Case], labels: bool, known: dict[Path, str] | None = None) -> str:
        """SHA-256 (hex) of names, images and, if `labels`, labels. Without `labels`, no label file is opened.

        known: the hashes of files as they were; those of other files are added to it.
        """
        rows: list[str] = []
        known = {} if known is None else known

        def hash_of(file: Path) -> str:
            if file not in known:
                known[file] = hashes.of(file)
            return known[file]

        with Hashes(self.root) as hashes:
            for case in cases:
                row: list[Any] = [case.name, [hash_of(file) for file in absolute(case.image)]]
                if labels and isinstance(case.label, Path):
                    row.append(hash_of(*absolute([case.label])))
                elif labels and isinstance(case.label, tuple):
                    row.append([None if math.isnan(number) else number for number in case.label])
                rows.append(canonical(row))
        return hashlib.sha256(joined(sorted(rows)).encode()).hexdigest()

    def file_hashes(
        self, cases: Sequence[Case], mapper: Mapper | None = None, progress: Progress | None = None
    ) -> list[frozenset[str]]:
        """Returns the hashes of the bytes of each case's image files. No label file is opened.

        Reads only files whose hash is not known yet. mapper, progress: see `prepare`. Raises UserError if a file cannot
        be read.
        """
        listed = [absolute(case.image) for case in cases]
        known = self._hash_files(dict.fromkeys(file for files in listed for file in files), mapper, progress)
        return [frozenset(known[file] for file in files) for files in listed]

    def image_hashes(
        self, cases: Sequence[Case], dims: int, mapper: Mapper | None = None, progress: Progress | None = None
    ) -> list[frozenset[str]]:
        """Returns the hashes of each case's channels; cases that share one show the same image (see `content`).

        Of equal files one is read, and only once, as its hashes are kept by the hash of its bytes.
        """
        listed = [absolute(case.image) for case in cases]
        hash_of = self._hash_files(dict.fromkeys(file for files in listed for file in files), mapper, progress)
        file_of = {hash: file for file, hash in hash_of.items()}
        with Hashes(self.root) as hashes:
            known = {hash: hashes.channels(hash, dims, VERSION) for hash in file_of}
            missing = [file_of[hash] for hash, channels in known.items() if channels is None]
            for file, channels in _results(missing, dims, mapper, progress):
                hashes.put_channels(hash_of[file], dims, VERSION, channels)
                known[hash_of[file]] = channels
        return [frozenset(each for file in files for each in known[hash_of[file]] or ()) for files in listed]

    def _hash_files(self, files: Iterable[Path], mapper: Mapper | None, progress: Progress | None) -> dict[Path, str]:
        with Hashes(self.root) as hashes:
            known = {file: hashes.get(file) for file in files}
            missing = [file for file, hash in known.items() if hash is None]
            for file, found in _results(missing, None, mapper, progress):
                hashes.put(found)
                known[file] = found.hash
        return {file: hash for file, hash in known.items() if hash is not None}

    def _remove_stale(self) -> None:
        """Removes temporary files of writers that were killed."""
        for leftover in self.root.glob("??/*.tmp"):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > STALE:
                    leftover.unlink()


class _Job(NamedTuple):
    number: int
    files: tuple[Path, ...]  # the images, then the label map, if the case has one
    has_map: bool
    known: Sequence[str | None]  # the files' hashes; None: not yet computed
    preprocessing: Preprocessing
    root: Path
    num_left: int


class _Result(NamedTuple):
    number: int
    path: Path
    contents: Sequence[FileContent] = ()  # newly hashed
    hashes: Sequence[str] = ()  # of all its files
    error: str | None = None
    node: str = ""  # the host that prepared it
    notes: Sequence[tuple[int, Note]] = ()  # see `Prepared.notes`
    state: tuple[int, int] = (0, 0)  # size and modification time of the prepared file
    damaged: bool = False  # it was there, and not as it was written


def prepare_one(job: _Job) -> _Result:
    """Hashes and prepares one case, or finds it undamaged. `Cache.prepare` passes this function to its mapper; it may
    run in any process."""
    contents, node = [], socket.gethostname()
    try:
        contents = [content.hash_file(file) for file, known in zip(job.files, job.known, strict=True) if known is None]
        fresh = {each.file: each.hash for each in contents}
        hashes = [known or fresh[file] for file, known in zip(job.files, job.known, strict=True)]
        path = prepared_path(Recipe(job.root, canonical(job.preprocessing), job.has_map), hashes)
        notes: Sequence[tuple[int, Note]] | None = read_notes(path, verify=True)
        damaged = notes is None and path.exists()
        if notes is None:
            images, label = (job.files[:-1], job.files[-1]) if job.has_map else (job.files, None)
            prepared = prepare(images, label, job.preprocessing)
            for file, known in zip(job.files, hashes, strict=True):
                if content.hash_file(file).hash != known:  # else its new content would stand under its old hash
                    raise UserError(f"{file}: changed while it was read; run the same command again")
            write(path, prepared, max(1, job.num_left))
            notes = prepared.notes
        state = path.stat()
    except UserError as error:
        return _Result(job.number, job.root, contents, error=str(error), node=node)
    written = state.st_size, state.st_mtime_ns
    return _Result(job.number, path, contents, hashes, None, node, notes, written, damaged)


class _Reading(NamedTuple):
    file: Path
    dims: int | None  # None: its bytes are hashed, and not its channels


def hash_one(job: _Reading) -> tuple[_Reading, Any, str | None]:
    """Hashes one file, in any process. Returns the job, a FileContent or the channels' hashes, and what went wrong."""
    try:
        return job, content.hash_file(job.file) if job.dims is None else content.hash_image(job.file, job.dims), None
    except UserError as error:
        return job, None, str(error)


def _results(
    files: Sequence[Path], dims: int | None, mapper: Mapper | None, progress: Progress | None
) -> Iterator[tuple[Path, Any]]:
    """Yields files and their hashes as they are read. Raises UserError for the first that cannot be read."""
    jobs = (_Reading(file, dims) for file in files)
    for done, (job, found, error) in enumerate((mapper or map)(hash_one, jobs), start=1):
        if error is not None:
            raise UserError(error)
        yield job.file, found
        if progress:
            progress(done, len(files))


def _files(case: Case) -> tuple[Path, ...]:
    return absolute(case.files)


def _has_map(case: Case) -> bool:
    return isinstance(case.label, Path)
