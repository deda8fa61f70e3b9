"""The data of a stage: builds tasks, prepares and fingerprints their images, selects the cases of train and val."""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from premed.config.experiment import Stage
from premed.config.image_processing import Augmentation
from premed.config.plugins import plugin
from premed.config.settings import PRETRAINING, Finetune, Kind, Training
from premed.config.spec import Spec, canonical
from premed.contracts import Case, DataSet, PreparedImage, Sample, Task
from premed.data.cache import Cache
from premed.data.content import absolute
from premed.data.grids import grid_warnings
from premed.data.io.image_file import Note
from premed.data.leakage import repeated
from premed.data.splits import is_unlabelled, pretraining_cases
from premed.errors import UserError
from premed.events import EventHandler, ImagesPrepared, WarningIssued
from premed.paths import home
from premed.rng import key, permutation

READING = 2
"""In the fingerprint of images with notes on their reading (`Note.reading`): raised whenever such files are read in
another way, so that stages that were trained on the earlier reading are not reused."""


class Tasks:
    """The tasks of a process, each built once from its configuration. Thread-safe."""

    def __init__(self) -> None:
        self.built: dict[str, Task] = {}
        self.lock = threading.Lock()

    def __call__(self, config: Spec) -> Task:
        """Returns the task of a configuration. Raises UserError if its `build` does."""
        with self.lock:
            text = config.model_dump_json()
            if text not in self.built:
                self.built[text] = plugin("tasks", config).build(config)
            return self.built[text]

    def resolve_root(self, config: Spec) -> Spec:
        """Returns `config` with its `root` as an absolute path, the same for every worker. It has the same task."""
        task = self(config)
        resolved = config.model_copy(update={"root": task.root})
        with self.lock:
            self.built.setdefault(resolved.model_dump_json(), task)
        return resolved


class DataModule:
    """The images of a task, prepared in the cache and identified by their content."""

    def __init__(self, task: Task, mapper: Callable[..., Iterable] = map, show: EventHandler = lambda event: None):
        """mapper: prepares images in parallel; see `Cache.prepare`."""
        self.task, self.mapper, self.show = task, mapper, show
        self.files: set[Path] = set()
        """The cache files of all stages that were fingerprinted so far."""
        self.parts: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        """By the hash of an image file's bytes: the names of its cases in each part, of these stages."""
        self.known: dict[Path, str] = {}
        """The hashes of the files of these stages, as they were when they were fingerprinted."""
        self.warned: set[str] = set()
        self.comparing = threading.Lock()

    def fingerprint(self, kind: Kind) -> str:
        """Prepares the images that a stage of that kind needs and returns their fingerprint: `part:hash part:hash`."""
        groups, cache = self.groups(kind), Cache(home() / "cache")
        cases = [case for group in groups.values() for case in group]
        notes: list[tuple[Path, Note]] = []
        images = cache.prepare(
            cases,
            self.task.preprocessing,
            mapper=self.mapper,
            progress=lambda done, total: self.show(ImagesPrepared(done, total)),
            notify=lambda file, note: notes.append((file, note)),
            known=self.known,
        )
        self.warn_of_headers(notes)
        self.warn(grid_warnings(images, self.task.preprocessing))
        refuse_unknown_labels(cases, images, self.task.labels)
        self.files |= {prepared.path for prepared in images}
        self.warn_of_repeated(groups)
        # besides the files' content: how the task reads them, their patients, and their order, which random draws go by
        about = [self.task.name, self.task.classes, self.task.channels, self.task.preprocessing.digest()]
        if kind not in PRETRAINING and (meaning := getattr(self.task, "label_meaning", None)):
            about.append(meaning)

        noted = {file for file, note in notes if note.reading}

        def digest(group: list[Case]) -> str:
            listed = [[c.name, c.patient, *[READING] * any(path in noted for path in c.files)] for c in group]
            content = cache.fingerprint(group, kind not in PRETRAINING, self.known)
            return hashlib.sha256(canonical([about, listed, content]).encode()).hexdigest()

        return " ".join(f"{name}:{digest(group)}" for name, group in groups.items())

    def warn_of_headers(self, notes: Sequence[tuple[Path, Note]]) -> None:
        """Shows what is to be said of files (`ImageFile.notes`): a line for each kind, with the first that has it."""
        kinds: dict[str, list[tuple[Path, str]]] = {}
        for file, (note, _) in dict.fromkeys(notes):
            kinds.setdefault(note.partition(":")[0], []).append((file, note))
        with self.comparing:
            for kind, group in kinds.items():
                if kind not in self.warned:
                    self.warned.add(kind)
                    others = f" (and so on, {len(group)} files)" if len(group) > 1 else ""
                    self.show(WarningIssued(f"{group[0][0]}: {group[0][1]}{others}"))

    def warn(self, texts: Sequence[str]) -> None:
        """Shows those of the texts, of this task, that were not shown yet."""
        with self.comparing:
            for text in texts:
                if text not in self.warned:
                    self.warned.add(text)
                    self.show(WarningIssued(f"{self.task.name}: {text}"))

    def warn_of_repeated(self, groups: dict[str, list[Case]]) -> None:
        """Warns of files with the same bytes in two of the parts that stages needed so far, once for each two parts."""
        with self.comparing:
            for part, cases in groups.items():
                for case in cases:
                    for file in absolute(case.image):
                        self.parts[self.known[file]]["train" if part == "images" else part].add(case.name)
            for first, second, pairs in repeated(self.parts):
                several = len(pairs) > 1
                text = (
                    f"{self.task.name}: {len(pairs)} image{'s' * several} of {second} {'are' if several else 'is'} in "
                    f"{first}, too ({' and '.join(pairs[0])}): scores on {second} flatter; premed data check lists them"
                )
                if text not in self.warned:
                    self.warned.add(text)
                    self.show(WarningIssued(text))

    def groups(self, kind: Kind) -> dict[str, list[Case]]:
        """The cases that a stage of that kind needs, by part."""
        if kind == "test":
            return {"test": self.task.split("test")}
        if kind in PRETRAINING:
            return dict(zip(("images", "val"), pretraining_cases(self.task), strict=True))
        return {"train": self.task.split("train"), "val": self.task.split("val")}


def join_fingerprints(fingerprints: Sequence[str]) -> str:
    """Combines the fingerprints of several data sets, part by part. A single one is returned unchanged."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    parts = [[part.split(":") for part in each.split(" ")] for each in fingerprints]
    hashes = {same[0][0]: " ".join(content for _, content in same) for same in zip(*parts, strict=True)}
    return " ".join(f"{name}:{hashlib.sha256(all_of.encode()).hexdigest()}" for name, all_of in hashes.items())


def refuse_unknown_labels(cases: Sequence[Case], images: Sequence[PreparedImage], labels: Sequence[int]) -> None:
    """Raises UserError for a label map with a value of no class, on which the loss would fail with an index error.

    An image that another node prepared in its own cache cannot be read here; that node's workers check it.
    """
    for case, prepared in zip(cases, images, strict=True):
        if (
            isinstance(case.label, Path)
            and prepared.path.is_file()
            and (unknown := set(prepared.labels_present) - set(labels))
        ):
            values = ", ".join(f"{label} ({prepared.counts[label]} voxels)" for label in sorted(unknown))
            raise UserError(
                f"{case.label}: holds the label {values}, which no class has (they are {labels[0]} to {labels[-1]}); "
                "fix the map (premed data check finds all such files)"
            )


# ---- The data of a stage


def stage_data_sets(stage: Stage, tasks: Callable[[Spec], Task] | None = None) -> list[DataSet]:
    """The data sets of a stage. tasks: returns the task of a configuration, to reuse tasks that are already built."""
    tasks = tasks or Tasks()
    augment = stage.training.augment if isinstance(stage.training, Training) else Augmentation()
    data_sets = []
    for source in stage.sources:
        task = tasks(source.task)
        data_sets.append(DataSet(task, source.group or task.name, source.augment or augment))
    strategy: Any = plugin("pretext", stage.pretext) if stage.pretext else None
    transform = getattr(strategy, "transform_data_sets", None)
    return transform(stage.encoder, data_sets) if transform else data_sets


def stage_cases(stage: Stage, task: Task) -> tuple[list[Case], list[Case]]:
    """The cases (train, val) of a data set in a stage; without labels in a pre-training."""
    if stage.kind in PRETRAINING:
        train, val = pretraining_cases(task)
    else:
        assert isinstance(stage.training, Finetune)
        train = label_subset(task.split("train"), stage.training.label_fraction, stage.training.seed)
        val = task.split("val")
    if not train:
        raise UserError(f"task: {task.name} has no train images for this stage; fix its split")
    return train, val


def stage_content(
    stage: Stage, data_sets: Sequence[DataSet], cache: Cache, known: dict[Path, str] | None = None
) -> str:
    """What identifies the content of the files that a stage reads: by it, workers see whether they read the same.

    known: the hashes of the files as they were (`DataModule.known`); without it, as they are now.
    """
    contents = []
    for data_set in data_sets:
        parts = [data_set.task.split("test")] if stage.kind == "test" else stage_cases(stage, data_set.task)
        cases = [case for part in parts for case in part]
        contents.append(cache.fingerprint(cases, stage.kind not in PRETRAINING, known))
        if getattr(stage.training, "stop", None) and not is_unlabelled(data_set.task):  # by the labels of these
            scored = [*data_set.task.split("train"), *data_set.task.split("val")]
            contents.append(cache.fingerprint(scored, True, known))
    return " ".join(contents)


def label_subset(labelled: list[Case], share: float, seed: int) -> list[Case]:
    """The cases of the first `share` of the patients, shuffled by `seed`: 5 % are a subset of 10 %."""
    patients = sorted({case.patient for case in labelled})
    order = permutation(key(seed, "label fraction"), len(patients))
    chosen = {patients[i] for i in order[: max(1, round(share * len(patients)))]}
    return [case for case in labelled if case.patient in chosen]


def absent_classes(task: Task, train: Sequence[Sample]) -> list[str]:
    """The classes that no image of `train` shows; this can happen at small label fractions."""
    if task.labels:
        present = {value for sample in train for value in sample.prepared.labels_present}
        return [name for name, united in task.regions.items() if not present & set(united)]
    labels = [sample.case.label for sample in train if isinstance(sample.case.label, tuple)]
    return [name for i, name in enumerate(task.classes) if not any(label[i] > 0 for label in labels)]


def universal_classes(task: Task, train: Sequence[Sample]) -> list[str]:
    """The classes, of whole images, that each image of `train` with a known label has: nothing is learnt of them."""
    if task.labels:
        return []
    labels = [sample.case.label for sample in train if isinstance(sample.case.label, tuple)]
    known = {name: {label[i] for label in labels} & {0.0, 1.0} for i, name in enumerate(task.classes)}
    return [name for name, values in known.items() if values == {1.0}]
