"""Sets up a stage: its folders, prepared samples, an objective with its weights, batch sampler and schedule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from premed.config.experiment import FinishedStage, Stage
from premed.config.plugins import plugin
from premed.config.settings import Finetune, Pretrain, Train
from premed.config.spec import Spec
from premed.contracts import BatchSampler, Case, DataSet, Objective, Sample, Task
from premed.data.cache import Cache
from premed.data.datamodule import refuse_unknown_labels, stage_cases, stage_content, stage_data_sets
from premed.distributed import raise_on_all_ranks, rank_and_world
from premed.errors import UserError
from premed.models.network import Network, load_strictly, seeded_init
from premed.training.artifacts import damaged_parts, load_encoder, part_weights
from premed.training.checkpoint import CheckpointManager
from premed.training.compiling import refuse_unable
from premed.training.device import device_of, precision_of
from premed.training.privacy import Privacy
from premed.training.schedule import Schedule, planned
from premed.training.storage import StageStorage
from premed.training.supervised import Supervised

TaskOf = Callable[[Spec], Task]
"""Returns the task of a configuration."""


@dataclass(frozen=True)
class StageJob:
    """A stage, and where and how to run it. The workers receive it pickled."""

    stage: Stage
    parent: Stage | FinishedStage | None  # the stage whose parts it starts from
    train: Train
    storage: str  # `train.storage`, which holds the folders of all stages
    cache: Path
    privacy: Privacy = Privacy()
    content: str | None = None  # see `datamodule.stage_content`; None: not compared

    @property
    def stage_storage(self) -> StageStorage:
        """The stage's own folder."""
        return StageStorage(self.storage, self.stage.folder)

    @property
    def parent_storage(self) -> StageStorage | None:
        """The folder of the stage whose parts it starts from."""
        return StageStorage(self.storage, self.parent.folder) if self.parent else None

    @property
    def trunk_storage(self) -> StageStorage | None:
        """The folder of the trunk segment that this stage continues; None if it continues none."""
        return self.parent_storage if self.parent and self.parent.kind == "trunk" else None


def is_usable(job: StageJob) -> bool:
    """Whether storage has what the next stage loads: the last checkpoint of a trunk's segment, else undamaged parts."""
    if job.stage.kind == "trunk":
        return CheckpointManager(job.stage_storage).newest() is not None
    return not damaged_parts(job.stage_storage)


class TrainingSetup(NamedTuple):
    """What a training starts with."""

    data_sets: list[DataSet]
    train: list[Sample]
    val: list[Sample]
    objective: Objective  # on its device
    loaded: dict[str, Any]  # report of the weights that were loaded
    plan: BatchSampler
    schedule: Schedule
    device: torch.device
    precision: torch.dtype
    accumulate: int

    @property
    def task(self) -> Task:
        """The task of the first data set; fine-tuning has no other."""
        return self.data_sets[0].task


def set_up(job: StageJob, tasks: TaskOf) -> TrainingSetup:
    """Prepares a training. A UserError on any rank is raised on all ranks."""
    with raise_on_all_ranks():
        device = device_of(job.train)
        if job.train.compile:
            refuse_unable(device)  # before anything is read
        data_sets = stage_data_sets(job.stage, tasks)
        known: dict[Path, str] = {}
        train, val = training_samples(job, data_sets, known)
        refuse_changed(job, data_sets, known)
        accumulate = job.train.micro_batches(rank_and_world()[1])
        objective, loaded = make_objective(job, data_sets)
        objective.to(device)
        if objective.couples_batch and accumulate > 1:
            raise UserError("train.accumulate: the loss couples the images of a step; set it to 1")
        sizes = [sum(sample.data_set == number for sample in train) for number in range(len(data_sets))]
        plan, schedule = planned(job.stage, sizes, objective.num_solutions)
    precision = precision_of(job.train)
    return TrainingSetup(data_sets, train, val, objective, loaded, plan, schedule, device, precision, accumulate)


def training_samples(
    job: StageJob, data_sets: Sequence[DataSet], known: dict[Path, str] | None = None
) -> tuple[list[Sample], list[Sample]]:
    """Returns the training and validation samples of the stage, one data set after the other. known: see `prepared`."""
    train, val = list[Sample](), list[Sample]()
    for number, data_set in enumerate(data_sets):
        for samples, part in zip((train, val), stage_cases(job.stage, data_set.task), strict=True):
            samples += prepared(job, data_set.task, part, number, known)
    if not val:
        raise UserError(f"task: {data_sets[0].task.name} has no val images here; fix its split, or add a data set")
    return train, val


def prepared(
    job: StageJob, task: Task, selected: Sequence[Case], data_set: int = 0, known: dict[Path, str] | None = None
) -> list[Sample]:
    """Pairs the cases with their prepared images; prepares those that are not in the cache of this machine.

    known: the hashes of their files are added to it.
    """
    known = {} if known is None else known
    entries = Cache(job.cache).prepare(selected, task.preprocessing, known=known)
    refuse_unknown_labels(selected, entries, task.labels)
    hashes = [known.get(case.label) if isinstance(case.label, Path) else None for case in selected]
    pairs = zip(selected, entries, hashes, strict=True)
    return [Sample(case, entry, data_set, label_hash) for case, entry, label_hash in pairs]


def refuse_changed(job: StageJob, data_sets: Sequence[DataSet], known: dict[Path, str]) -> None:
    """Raises UserError if files are not those by which the stage was identified, on this node or since.

    known: their hashes as `prepared` found them, which stand for what is trained on: files are not looked at again.
    """
    if job.content is not None and stage_content(job.stage, data_sets, Cache(job.cache), known) != job.content:
        roots = ", ".join(dict.fromkeys(str(data_set.task.root) for data_set in data_sets))
        raise UserError(
            f"{roots}: images changed while the command ran, or are others on this node; run the same command again"
        )


def make_objective(job: StageJob, data_sets: Sequence[DataSet]) -> tuple[Objective, dict[str, Any]]:
    """Returns the stage's objective with initial or loaded weights, and a report of what was loaded."""
    stage, settings, task = job.stage, job.stage.training, data_sets[0].task
    assert isinstance(settings, (Pretrain, Finetune))
    first, *more = dict.fromkeys((data_set.task.channels, tuple(data_set.task.roi)) for data_set in data_sets)
    with seeded_init(settings.seed, "encoder"):
        encoder = plugin("encoders", stage.encoder).build(stage.encoder, *first, *more)
    loaded = {}
    if isinstance(settings, Pretrain):
        if job.parent and job.parent.kind == "import" and (given := job.parent_storage) is not None:
            loaded["encoder"] = load_encoder(encoder, given)
        with seeded_init(settings.seed, "pretext"):
            assert stage.pretext is not None
            strategy = plugin("pretext", stage.pretext)
            return strategy.build(stage.pretext, encoder, data_sets, settings.weight_decay), loaded
    with seeded_init(settings.seed, "head"):
        kind = plugin("heads", settings.head)
        refuse_labels(settings.head.name, getattr(kind, "PER_VOXEL", None), task)
        head = kind.build(settings.head, encoder, task)
    if (parent := job.parent_storage) is not None:
        loaded["encoder"] = load_encoder(encoder, parent)
        for part in ("head",) if stage.kind == "test" else head.loads:
            module = head if part == "head" else head.get_submodule(part)
            loaded[part] = load_strictly(module, part_weights(parent, part), part)
    how: dict[str, Any] = {name: getattr(settings, name) for name in ("weight_decay", "layer_decay", "drop_path")}
    if stage.kind == "finetune":  # what it saved, and a test loads, is the plain network
        how["policy"] = settings.policy
    with seeded_init(settings.seed, "policy"):
        return Supervised(Network(encoder, head), task, **how), loaded


def refuse_labels(head: str, per_voxel: bool | None, task: Task) -> None:
    """Raises UserError if a head answers per voxel and the task's labels are of whole images, or vice versa.

    per_voxel: None for a head that takes both.
    """
    if per_voxel and not task.labels:
        raise UserError(f"finetune.head: {head} answers per voxel, and labels are of whole images; use linear or probe")
    if per_voxel is False and task.labels:
        raise UserError(f"finetune.head: {head} answers for a whole image, and labels are maps; use unetr or conv")
