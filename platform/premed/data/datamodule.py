"""The data of a stage: tasks, each built once; their images, prepared and fingerprinted; what train and val are."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from premed.config.experiment import Stage
from premed.config.plugins import plugin
from premed.config.settings import PRETRAINING, Finetune, Kind, Training
from premed.config.spec import Spec, canonical
from premed.config.transforms import Augmentation
from premed.contracts import Case, DataSet, PreparedImage, Sample, Task
from premed.data.cache import Cache
from premed.data.splits import unlabelled_val
from premed.errors import UserError
from premed.events import EventHandler, ImagesPrepared
from premed.paths import home
from premed.rng import key, permutation


class Tasks:
    """The tasks of a process: each is built once from its configuration, whichever thread asks first."""

    def __init__(self) -> None:
        self.built: dict[str, Task] = {}
        self.lock = threading.Lock()

    def __call__(self, config: Spec) -> Task:
        """The task. Raises what its `build` raises: UserError."""
        with self.lock:
            text = config.model_dump_json()
            if text not in self.built:
                self.built[text] = plugin("tasks", config).build(config)
            return self.built[text]

    def settled(self, config: Spec) -> Spec:
        """`config` with its folder as an absolute path, so that every worker looks there. Its task is the same one."""
        task = self(config)
        settled = config.model_copy(update={"root": task.root})
        with self.lock:
            self.built.setdefault(settled.model_dump_json(), task)
        return settled


class DataModule:
    """The images of a task, prepared in the cache and identified by their content."""

    def __init__(self, task: Task, mapper: Callable[..., Iterable] = map, show: EventHandler = lambda event: None):
        """mapper: prepares images in parallel; see `Cache.prepare`."""
        self.task, self.mapper, self.show = task, mapper, show
        self.files: set[Path] = set()
        """The prepared copies, of all kinds of stages so far."""

    def fingerprint(self, kind: Kind) -> str:
        """Prepares what a stage of that kind needs, and returns what identifies it: `part:hash part:hash`."""
        groups, store = self.groups(kind), Cache(home() / "cache")
        cases = [case for group in groups.values() for case in group]
        entries = store.prepare(
            cases,
            self.task.preprocessing,
            mapper=self.mapper,
            progress=lambda done, total: self.show(ImagesPrepared(done, total)),
        )
        refuse_unnamed(cases, entries, self.task.labels)
        self.files |= {entry.path for entry in entries}
        # beside the files' content: what the task makes of them, whose they are, and the order that draws go by
        about = [self.task.name, self.task.classes, self.task.channels, self.task.preprocessing.digest()]

        def hashed(group: list[Case]) -> str:
            listed = [[case.name, case.patient] for case in group]
            content = store.fingerprint(group, labels=kind not in PRETRAINING)
            return hashlib.sha256(canonical([about, listed, content]).encode()).hexdigest()

        return " ".join(f"{name}:{hashed(group)}" for name, group in groups.items())

    def groups(self, kind: Kind) -> dict[str, list[Case]]:
        """The cases that a stage of that kind needs, by what it needs them for."""
        if kind == "test":
            return {"test": self.task.split("test")}
        if kind in PRETRAINING:
            return {"images": self.task.images(), "val": unlabelled_val(self.task)}
        return {"train": self.task.split("train"), "val": self.task.split("val")}


def joined(fingerprints: Sequence[str]) -> str:
    """One fingerprint of the same parts for several data sets together; a single one's stays as it is."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    parts = [[part.split(":") for part in each.split(" ")] for each in fingerprints]
    hashes = {same[0][0]: " ".join(content for _, content in same) for same in zip(*parts, strict=True)}
    return " ".join(f"{name}:{hashlib.sha256(all_of.encode()).hexdigest()}" for name, all_of in hashes.items())


def refuse_unnamed(cases: Sequence[Case], entries: Sequence[PreparedImage], labels: Sequence[int]) -> None:
    """Raises UserError for a label map with a value that no class has: the loss would fail on it with an index error.

    An entry that another node prepared in a cache of its own cannot be read here; that node's workers check it.
    """
    for case, entry in zip(cases, entries, strict=True):
        if (
            isinstance(case.label, Path)
            and entry.path.is_file()
            and (unknown := set(entry.labels_present) - set(labels))
        ):
            values = ", ".join(map(str, sorted(unknown)))
            raise UserError(
                f"{case.label}: holds the label {values}, which no class has (they are {labels[0]} to {labels[-1]}); "
                "mend the map (premed data check finds all such files)"
            )


# ---- a stage's part of the data


def data_sets_of(stage: Stage, tasks: Callable[[Spec], Task] | None = None) -> list[DataSet]:
    """The data sets of a stage. tasks: gives a configuration's task, where some are built already."""
    tasks = tasks or Tasks()
    usual = stage.training.augment if isinstance(stage.training, Training) else Augmentation()
    of_tasks = []
    for source in stage.sources:
        task = tasks(source.task)
        of_tasks.append(DataSet(task, source.group or task.name, source.augment or usual))
    strategy: Any = plugin("pretext", stage.pretext) if stage.pretext else None
    transform = getattr(strategy, "transform_data_sets", None)
    return transform(stage.encoder, of_tasks) if transform else of_tasks


def cases(stage: Stage, task: Task) -> tuple[list[Case], list[Case]]:
    """(train, val) of a data set in a stage. A pre-training's have no labels."""
    if stage.kind in PRETRAINING:
        train, val = task.images(), unlabelled_val(task)
    else:
        assert isinstance(stage.training, Finetune)
        train = fraction(task.split("train"), stage.training.label_fraction, stage.training.seed)
        val = task.split("val")
    if not train:
        raise UserError(f"task: {task.name} has no train images for this stage; mend its split")
    return train, val


def fraction(labelled: list[Case], share: float, seed: int) -> list[Case]:
    """The cases of the first `share` of the patients, in an order drawn by `seed`: 5 % are part of 10 %."""
    patients = sorted({case.patient for case in labelled})
    order = permutation(key(seed, "label fraction"), len(patients))
    chosen = {patients[i] for i in order[: max(1, round(share * len(patients)))]}
    return [case for case in labelled if case.patient in chosen]


def absent_classes(task: Task, train: Sequence[Sample]) -> list[str]:
    """The classes that no image of `train` shows, as may happen with few labels."""
    if task.labels:
        present = {value for sample in train for value in sample.entry.labels_present}
        return [name for name, united in task.regions.items() if not present & set(united)]
    labels = [sample.case.label for sample in train if isinstance(sample.case.label, tuple)]
    return [name for i, name in enumerate(task.classes) if not any(label[i] > 0 for label in labels)]
