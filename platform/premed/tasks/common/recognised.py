"""What a task says of a folder in its layout: the answer of a task's `recognise(folder)`, which `premed init` asks for.

A plug-in that offers itself has a function `recognise(folder: Path) -> Recognised | None` beside `build`. It opens no
image but label maps whose values nothing else says, and volumes that may be such. A UserError says that the folder
looks like its layout and is broken; it counts if no other task reads the folder, and is noted else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

OWN, LAYOUT, TABLE, NAMES = 4, 3, 2, 1
"""How sure a task is: one data set's own task; a file of the layout; a table; the names of files and folders alone."""


@dataclass(frozen=True)
class Listing:
    """A file that a task needs and the folder does not have; it is written beside the YAML."""

    field: str
    """The task's field that names it."""
    suffix: str
    text: str
    made_of: str
    """In words: from what it was made."""


@dataclass(frozen=True)
class Recognised:
    """A folder that a task can read, and how."""

    layout: str
    """In words, for people: nnU-Net's raw data."""
    sure: int
    task: Mapping[str, Any]
    """The fields of `task:`, without `root` and without what images decide (roi, spacing, window, normalise)."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a field is as it is, by its name."""
    notes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    """What the layout calls the channels: T2, CT; () if it does not say."""
    listing: Listing | None = None
    fit: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """Turns what was planned of the images (roi, spacing, …) into this task's fields, where it calls them otherwise."""
