"""What a stage takes, computed from its settings and from speeds that were measured on this machine (`measure.py`)."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil

from premed.config.settings import Finetune, Pretrain
from premed.contracts import Case, DataSet, Objective
from premed.data.datamodule import Tasks, stage_cases, stage_data_sets
from premed.errors import UserError
from premed.training.online_probe import LABELLED
from premed.training.schedule import doubtful_warmup, planned
from premed.training.setup import StageJob


@dataclass(frozen=True)
class Speed:
    """What was measured of a stage."""

    step: float = 0.0
    """Seconds of a step."""
    start: float = 0.0
    """Seconds per training image before the first step (MAE's gate), or for a closed form."""
    val: float = 0.0
    """Seconds per image that is scored."""
    probe: float = 0.0
    """Seconds per fixed view of the online probe."""
    views: float = 1.0
    """Fixed views per image of the probed data set."""
    memory_mb: float = 0.0
    gpu_memory_mb: float | None = None
    checkpoint_bytes: int = 0
    """Weights and the optimizer's state."""
    parts_bytes: int = 0
    """Weights that the stage saves at its end."""
    prepare: float = 0.0
    """Seconds per image that is prepared; 0 where all were."""
    prepared_bytes: float = 0.0
    """Of an image in the cache."""


@dataclass(frozen=True)
class Cost:
    """What a stage takes."""

    steps: int
    batch: int
    seconds: float
    speed: Speed = field(repr=False)
    warning: str | None = None
    """What its training will be warned of: a warm-up of less than a step."""

    @property
    def images_per_second(self) -> float:
        """In steps of gradients; 0 where there are none."""
        return self.batch / self.speed.step if self.speed.step else 0.0


def cost(job: StageJob, speed: Speed, tasks: Tasks, objective: Objective) -> Cost:
    """What a stage takes that is as fast as was measured. objective: its own, with weights or without."""
    data_sets, workers = stage_data_sets(job.stage, tasks), max(job.train.max_workers, 1)
    settings = job.stage.training
    assert isinstance(settings, (Pretrain, Finetune))
    if job.stage.kind == "test":
        return Cost(0, 0, speed.val * len(data_sets[0].task.split("test")) / workers, speed)
    numbers, num_val = sizes(job, data_sets), sum(len(cases_of(job, each)[1]) for each in data_sets)
    plan, schedule = planned(job.stage, numbers, objective.num_solutions)
    start = trunk_steps(job, numbers)
    if objective.num_solutions:
        seconds = (speed.start * sum(numbers) + speed.val * num_val * objective.num_solutions) / workers
        return Cost(objective.num_solutions, sum(numbers), seconds, speed)
    spread = {ceil(schedule.num_steps * i / settings.validations) for i in range(1, settings.validations + 1)}
    validations = len({step for step in spread if start < step <= plan.num_steps} | {plan.num_steps})
    of_probe = speed.probe * probed_views(settings, data_sets, speed.views) if isinstance(settings, Pretrain) else 0.0
    each = (speed.val * num_val + of_probe) / workers
    begin = speed.start * sum(numbers) if start == 0 else 0.0
    steps = plan.num_steps - start
    warning = doubtful_warmup(job.stage.kind, settings, schedule)
    return Cost(steps, settings.batch, begin + steps * speed.step + validations * each, speed, warning)


def trunk_steps(job: StageJob, numbers: Sequence[int]) -> int:
    """The steps that the segment before it has done already, on a trunk."""
    if job.parent is None or job.parent.kind != "trunk":
        return 0
    return planned(job.parent, numbers)[0].num_steps  # type: ignore[arg-type]


def probed_views(settings: Pretrain, data_sets: Sequence[DataSet], views: float) -> float:
    """The fixed views of the online probe, of train and val, as many as there are. views: per image."""
    if settings.probe is None:
        return 0.0
    most = float(settings.probe.images)
    with suppress(UserError):  # without labels there is no probe, and its seconds are 0
        return sum(min(most, len(data_sets[0].task.split(part)) * views) for part in LABELLED)
    return 0.0


def cases_of(job: StageJob, data_set: DataSet) -> tuple[list[Case], list[Case]]:
    """Training and validation cases; of a test those of the fine-tuning before it."""
    kind = "finetune" if job.stage.kind == "test" else job.stage.kind
    return stage_cases(job.stage.model_copy(update={"kind": kind}), data_set.task)


def sizes(job: StageJob, data_sets: Sequence[DataSet]) -> list[int]:
    """The number of training images of each data set."""
    return [len(cases_of(job, data_set)[0]) for data_set in data_sets]
