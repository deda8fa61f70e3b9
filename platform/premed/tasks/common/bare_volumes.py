"""Which volumes without a label map pre-training may learn from, where no file lists them.

Folders hold results beside their images: corrected and cropped copies, predictions, other label maps. One that was made
of a case in val or test shows what nothing may learn from. So a volume that may be made of a labelled case, by its
name, is left out, and so is one that holds a label map, by its values.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from premed.data.io.headers import read_header
from premed.data.io.readers import read_values
from premed.errors import UserError
from premed.tasks.common.patients import patient_of

MOST_LABELS = 40
"""A map with more values is no label map."""
MOST_BITS = 2
"""Of a compressed label map, per voxel: maps have some 0.1, images without their background 2 and more."""
SMALL = 2**21  # voxels: read in no time
THINNED = 100_000  # values that are looked at first

Tokens = tuple[str, ...]
"""Runs of letters and of digits, without leading zeros: case_07 is case, 7."""


def words_of(name: str) -> list[Tokens]:
    """Returns the words of a name, in lower case."""
    words = [re.findall(r"[0-9]+|[^\W\d_]+", word.lower()) for word in re.split(r"[-_. /]+", name)]
    return [tuple(each.lstrip("0") or "0" if each.isdecimal() else each for each in word) for word in words if word]


class Identities(NamedTuple):
    """What names are told from one another by: their words but for those with which all begin or end."""

    names: dict[Tokens, str]
    begin: list[Tokens]
    end: list[Tokens]

    def within(self, name: str) -> str | None:
        """Returns the one of these names that another contains, if there is one; what all begin or end with is no
        part of it: of sub-01_ses-2 and sub-02_ses-2, sub-03_ses-2 contains none."""
        words = words_of(name)
        words = words[len(self.begin) :] if self.begin == words[: len(self.begin)] else words
        words = words[: len(words) - len(self.end)] if self.end == words[len(words) - len(self.end) :] else words
        own = contained(words) & self.names.keys()
        return self.names[min(own)] if own else None


def identities(names: Sequence[str], front: bool = True) -> Identities:
    """Returns what names are told by; of paths, the last part alone if all have another. front: False keeps what all
    begin with."""
    ends = [name.rpartition("/")[2].lower() for name in names]
    words = [words_of(each) for each in (ends if len({*ends}) == len(names) else names)]
    first = num_alike(words) if front else 0
    last = num_alike([each[first:][::-1] for each in words])
    found: dict[Tokens, str] = {}
    for name, each in zip(names, words, strict=True):
        found.setdefault(sum(each[first : len(each) - last] or each, ()), name)
    some = words[0] if words else []
    return Identities(found, some[:first], some[len(some) - last :])


def num_alike(words: Sequence[list[Tokens]]) -> int:
    """Returns with how many words all begin alike, so that each has one more."""
    least = min((len(each) for each in words), default=0)
    return next((n for n in range(least) if n + 1 == least or len({each[n] for each in words}) > 1), 0)


def contained(words: Sequence[Tokens]) -> set[Tokens]:
    """Returns what a name may be made of: runs of its words, and of tokens within them, but numbers only as words."""
    flat = sum(words, ())
    whole = {sum(words[i:j], ()) for i, j in combinations(range(len(words) + 1), 2)}
    inside = (flat[i:j] for i, j in combinations(range(len(flat) + 1), 2))
    return whole | {run for run in inside if not all(map(str.isdecimal, run))}


def derived(labelled: Sequence[str], bare: Sequence[str]) -> dict[str, str]:
    """Returns the bare names that contain the words of a labelled case, each with that case's: n4/case3 and case3."""
    known = identities(labelled)
    return {name: of for name in bare if (of := known.within(name))}


def strangers(labelled: Sequence[str], bare: Sequence[str], pattern: str) -> dict[str, str]:
    """Returns the bare names that contain a labelled patient's and are another's by the pattern, with that patient."""
    patients = sorted({patient_of(pattern, name) for name in labelled})
    known, found = identities(patients, front=False), dict[str, str]()
    for name in bare:
        patient = patient_of(pattern, name)
        if patient not in patients and (of := known.within(patient)):
            found[name] = of
    return found


def label_maps(folder: Path, files: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the names of the cases of which a file, below the folder, holds a label map."""
    return [name for name, some in files.items() if any(is_label_map(folder / file) for file in some)]


def is_label_map(path: Path) -> bool:
    """Whether a volume holds few whole numbers and nothing else; of one that cannot be read, False.

    Of large compressed files only those are opened that are as small as a label map is.
    """
    try:
        voxels = math.prod(read_header(path).shape)
        if voxels > SMALL and path.name.lower().endswith(".gz") and path.stat().st_size * 8 > MOST_BITS * voxels:
            return False
        values = read_values(path)[0]
    except (UserError, OSError):  # `premed data check` names it
        return False
    values = values[np.isfinite(values)]
    for some in (values[:: max(1, values.size // THINNED)], values):
        if (some != np.rint(some)).any() or len(np.unique(some)) > MOST_LABELS:
            return False
    return True
