"""The images of a task as a command's experiments share them: prepared once, and known by what they hold."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from premed.cache import Cache
from premed.config.plugins import plugin
from premed.config.settings import PRETRAINING, Kind
from premed.config.spec import Spec, canonical
from premed.contracts import Case, Task
from premed.entry import Entry
from premed.errors import UserError
from premed.events import EventHandler, ImagesPrepared
from premed.once import Once
from premed.partition import unlabelled_val
from premed.paths import home

Show = EventHandler


class Data:
    """The images of a task, prepared when a stage asks for them and not before; any number of experiments may ask."""

    def __init__(self, config: Spec, mapper: Any, show: Show):
        self.task: Task = plugin("tasks", config).build(config)
        self.root, self.mapper, self.show = home() / "cache", mapper, show
        self.files: set[Path] = set()
        self.once = Once()

    def fingerprint(self, kind: Kind) -> str:
        """Prepares what a stage of that kind sees, and says what it is: `part:hash part:hash`."""
        kind = "pretrain" if kind in PRETRAINING else kind
        return self.once(kind, partial(self.prepared, kind))[0]

    def prepared(self, kind: Kind) -> str:
        if kind == "test":
            groups = {"test": self.task.split("test")}
        elif kind == "pretrain":
            groups = {"images": self.task.images(), "val": unlabelled_val(self.task)}
        else:
            groups = {"train": self.task.split("train"), "val": self.task.split("val")}
        store = Cache(self.root)
        entries = store.prepare(
            [case for group in groups.values() for case in group],
            self.task.recipe,
            mapper=self.mapper,
            progress=lambda done, total: self.show(ImagesPrepared(done, total)),
        )
        refuse_unnamed([case for group in groups.values() for case in group], entries, self.task.labels)
        self.files |= {entry.path for entry in entries}
        # beside the files' content: what the task makes of them, whose they are, and the order that draws go by
        about = [self.task.name, self.task.classes, self.task.channels, self.task.recipe.digest()]

        def told(group: list[Case]) -> str:
            listed = [[case.name, case.patient] for case in group]
            content = store.fingerprint(group, labels=kind != "pretrain")
            return hashlib.sha256(canonical([about, listed, content]).encode()).hexdigest()

        return " ".join(f"{name}:{told(group)}" for name, group in groups.items())


def joined(fingerprints: Sequence[str]) -> str:
    """One fingerprint of the same parts for several data sets together; a single one's stays as it is."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    parts = [[part.split(":") for part in each.split(" ")] for each in fingerprints]
    hashes = {same[0][0]: " ".join(content for _, content in same) for same in zip(*parts, strict=True)}
    return " ".join(f"{name}:{hashlib.sha256(all_of.encode()).hexdigest()}" for name, all_of in hashes.items())


def refuse_unnamed(cases: Sequence[Case], entries: Sequence[Entry], labels: Sequence[int]) -> None:
    """Refuses a label map with a value that no class has: in the loss that would be an index error at best.

    An entry that another node made in a cache of its own is not here to be looked at; its workers look.
    """
    for case, entry in zip(cases, entries, strict=True):
        if (
            isinstance(case.label, Path)
            and entry.path.is_file()
            and (unknown := set(entry.labels_present) - set(labels))
        ):
            held = ", ".join(map(str, sorted(unknown)))
            raise UserError(
                f"{case.label}: holds the label {held}, which no class has (they are {labels[0]} to {labels[-1]}); "
                "mend the map (premed data check finds all such files)"
            )
