"""Finds the prepared file of a case, by the content of the case's files. What a process has found it remembers.

A command looks for each file before every stage that reads it; without the memory, each look at 86,000 pictures takes
eight seconds, most of them for reading headers.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from premed.config.spec import canonical
from premed.data import content
from premed.data.content import Hashes
from premed.data.io.image_file import Note
from premed.data.prepared import read_notes

PREPARED_VERSION = 4
"""Of prepared files: raised whenever the same files and preprocessing give another one, if only by a note, since notes
are part of a stage's fingerprint."""
State = tuple[tuple[int, int], ...]
"""Size and modification time of each of some files."""


class Recipe(NamedTuple):
    """What prepared files have in common."""

    root: Path  # of the cache
    preprocessing: str  # its canonical text
    has_map: bool  # the last of a case's files is its label map


class Found(NamedTuple):
    """A prepared file that is undamaged, and what it was made of."""

    path: Path
    hashes: Sequence[str]  # of the case's files
    notes: Sequence[tuple[int, Note]]


class Missing(NamedTuple):
    """There is no such file, or it was not verified of late."""

    hashes: Sequence[str | None]  # of the case's files; None: not known
    absent: bool  # it has to be made, and not only verified


_FOUND: dict[Recipe, dict[tuple[Path, ...], tuple[State, Found]]] = defaultdict(dict)
"""With the state in which the files and the prepared file were."""


def find(recipe: Recipe, files: tuple[Path, ...], hashes: Hashes) -> Found | Missing:
    """The prepared file of a case's files."""
    now = _state(files)  # a file that changes from here on is not what is found
    before, found = _FOUND[recipe].get(files, (None, None))
    if found and now and before == (*now, _written(found.path)):
        return found
    known = [hashes.get(file, state) for file, state in zip(files, now or [None] * len(files), strict=True)]
    present = [each for each in known if each is not None]
    if len(present) < len(files):
        return Missing(known, absent=True)
    path = prepared_path(recipe, present)
    written, notes = _written(path), read_notes(path)
    if notes is None or now is None or written is None or not hashes.is_verified(path):
        return Missing(known, absent=notes is None)
    _FOUND[recipe][files] = (*now, written), Found(path, present, notes)
    return _FOUND[recipe][files][1]


def prepared_path(recipe: Recipe, hashes: Sequence[str]) -> Path:
    """The path of the prepared file of files with these hashes."""
    about = joined([*map(canonical, (PREPARED_VERSION, hashes, recipe.has_map)), recipe.preprocessing])
    name = hashlib.sha256(about.encode()).hexdigest()[:40]
    return recipe.root / name[:2] / f"{name}.safetensors"


def joined(items: Iterable[str]) -> str:
    """The canonical text of a list, from those of its items."""
    return f"[{','.join(items)}]"


def _state(files: Sequence[Path]) -> State | None:
    """Size and modification time of each file; None if one is not there."""
    with suppress(OSError):
        return tuple(content.state(file) for file in files)
    return None


def _written(path: Path) -> tuple[int, int] | None:
    """Size and modification time of a prepared file; None if it is not there."""
    with suppress(OSError):
        state = path.stat()
        return state.st_size, state.st_mtime_ns
    return None
