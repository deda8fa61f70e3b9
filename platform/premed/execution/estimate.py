"""`premed run --estimate`: what experiments will take on this machine, before anything is trained.

Each kind of stage is measured once (`training/measure.py`), in as many processes as will train at once on this machine;
stages that experiments share are counted once, as if none were finished. What cannot fit is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from premed.config.experiment import Experiment, Stage
from premed.config.settings import PRETRAINING
from premed.config.spec import canonical
from premed.contracts import Case, Task
from premed.data.cache import Cache
from premed.data.datamodule import stage_data_sets
from premed.data.io.memory import busy_words, load, memory, num_cpus
from premed.errors import UserError
from premed.execution.local_processes import run_processes
from premed.execution.machine import refuse_full_disk
from premed.execution.networks import BUILDING, CHECKPOINTS
from premed.execution.preflight import Resolved, resolve, validate
from premed.execution.recorder import DOING
from premed.paths import home, storage
from premed.safety.files import MIB
from premed.training.cost import Cost, Speed, cost
from premed.training.measure import measure
from premed.training.setup import StageJob, make_objective

COPIES = 2  # of the weights that a stage ends with: in storage, and in MLflow
FULL = 0.95  # the share of the memory from which on Ray ends workers
Measure = Callable[[StageJob, int], Speed]
"""Measures a stage of which so many run at once."""


class Planned(NamedTuple):
    """A stage that will run."""

    job: StageJob
    resolved: Resolved
    experiments: list[int]
    """The experiments that need it, by their numbers."""


@dataclass(frozen=True)
class StageEstimate:
    """A row: stages that differ in seeds alone, or in what they start from."""

    kind: str
    strategy: str
    number: int
    steps: int
    images_per_second: float
    seconds: float
    """Of one of them, the mean."""
    memory_mb: float
    """Of one worker, at its peak."""
    gpu_memory_mb: float | None
    checkpoint_gb: float
    """Of one checkpoint."""


@dataclass(frozen=True)
class Estimate:
    """What the experiments of a command take."""

    stages: list[StageEstimate]
    at_once: int
    """Stages that this machine runs at once."""
    seconds: float
    """Until all have ended, without the start of Ray, pictures and registration."""
    device_seconds: float
    """Sum over the stages."""
    prepare_seconds: float
    prepare_images: int
    memory_gb: float
    """Of all workers that run at once."""
    cache_gb: float
    checkpoints_gb: float
    """At the most, while stages run, and what stays of all."""
    notes: list[str]


def estimate(
    experiments: Sequence[Experiment], tell: Callable[[str], None], measure: Measure | None = None
) -> Estimate:
    """Measures and returns what the experiments take. Raises UserError for what cannot fit.

    tell: called with a line for each stage that was measured. measure: measures a stage; None: in processes of its own,
    as many as will train at once.
    """
    busy = busy_words(load(), num_cpus())
    resolved = resolve(experiments)
    validate(resolved)
    stages = planned_stages(resolved)
    first = stages[0].job
    slots = min(at_once(first), len(resolved))
    speeds = measured_speeds(stages, tell, slots, len(resolved), measure or measure_apart)
    costs = [cost_of(stage, speeds[key_of(stage.job.stage)]) for stage in stages]
    prepare_images, prepare_seconds, cache_bytes = to_prepare(resolved, stages, speeds)
    chains = [
        sum(c.seconds for s, c in zip(stages, costs, strict=True) if n in s.experiments) for n in range(len(resolved))
    ]
    total = sum(each.seconds for each in costs)
    largest = sorted((each.speed.checkpoint_bytes for each in costs), reverse=True)[:slots]
    stays = sum(COPIES * each.speed.parts_bytes for each in costs)
    workers = max(first.train.max_workers, 1)
    needed = sorted((each.speed.memory_mb for each in costs), reverse=True)[:slots]
    result = Estimate(
        rows(stages, costs),
        slots,
        max(total / slots, *chains),
        total,
        prepare_seconds,
        prepare_images,
        sum(needed) * workers * MIB / 1e9,
        cache_bytes / 1e9,
        (CHECKPOINTS * sum(largest) + stays) / 1e9,
        notes(resolved, stages, costs, busy),
    )
    refuse(result, first, workers)
    return result


def planned_stages(resolved: Sequence[Resolved]) -> list[Planned]:
    """The stages of all experiments that are measured, each once: a shared pre-training is one."""
    found: dict[str, Planned] = {}
    for number, each in enumerate(resolved):
        before = None
        for stage in each.experiment.stages(lambda kind: ""):
            job = StageJob(
                stage, before, each.experiment.train, storage(each.experiment.train.storage), home() / "cache"
            )
            if stage.kind != "import":  # it trains nothing
                found.setdefault(stage.digest(), Planned(job, each, [])).experiments.append(number)
            before = stage
    return list(found.values())


def key_of(stage: Stage) -> str:
    """What makes stages equally fast: all but seeds, lengths, rates, and what they start from."""
    same = {"seed": 0, "lr": 1.0, "epochs": 1, "steps": None, "warmup_epochs": 0.0, "label_fraction": 1.0}
    same |= {"trunk": None, "stop": None, "validations": 1}
    training = stage.training
    assert training is not None
    training = training.model_copy(update={n: value for n, value in same.items() if n in type(training).model_fields})
    kind = "pretrain" if stage.kind in PRETRAINING else stage.kind
    return canonical([kind, stage.task, stage.encoder, stage.pretext, training])


def measured_speeds(
    stages: Sequence[Planned], tell: Callable[[str], None], slots: int, experiments: int, measure: Measure
) -> dict[str, Speed]:
    """Measures a stage of each key, beside as many as run with it: experiments that need it wait for it."""
    speeds: dict[str, Speed] = {}
    for planned in stages:
        key, stage = key_of(planned.job.stage), planned.job.stage
        if key not in speeds:
            speeds[key] = measure(planned.job, min(slots, 1 + experiments - len(planned.experiments)))
            step = speeds[key].step
            speed = f", {stage.training.batch / step:.3g} images/s" if step else ""  # type: ignore[union-attr]
            tell(f"{DOING[stage.kind]}: measured{speed}")
    return speeds


def measure_apart(job: StageJob, stages: int) -> Speed:
    """Measures in processes of their own: all workers that this machine has room for, of `stages` stages at once, since
    they share its caches and the way to its memory.

    Returns the means, and the most memory of a process and the longest start. Raises UserError if there is not enough.
    """
    ranks, gpu = workers_here(job), job.train.gpu
    speeds: list[Speed] = run_processes(job.stage.kind, measure, job, ranks=ranks, groups=stages, gpu=gpu)
    return replace(
        speeds[0],
        step=fmean(each.step for each in speeds),
        start=max(each.start for each in speeds),  # a closed form is solved by the first rank alone
        val=fmean(each.val for each in speeds),
        probe=fmean(each.probe for each in speeds),
        memory_mb=max(each.memory_mb for each in speeds),
        gpu_memory_mb=max((each.gpu_memory_mb for each in speeds if each.gpu_memory_mb is not None), default=None),
        prepare=max(each.prepare for each in speeds),  # by the one that prepared
    )


def workers_here(job: StageJob) -> int:
    """The workers of a stage that this machine has room for at once; at least one."""
    train = job.train
    most = int(num_cpus() / train.cpus + 1e-9)
    return max(1, min(train.max_workers, most, torch.cuda.device_count() if train.gpu else most))


def cost_of(planned: Planned, speed: Speed) -> Cost:
    """What a stage takes; its objective is built without weights."""
    job, tasks = planned.job, planned.resolved.tasks
    with BUILDING, torch.device("meta"):
        objective, _ = make_objective(replace(job, parent=None), stage_data_sets(job.stage, tasks))
    return cost(job, speed, tasks, objective)


def at_once(job: StageJob) -> int:
    """Stages that this machine can run at once."""
    train, gpus = job.train, torch.cuda.device_count()
    if train.workers == 0:
        return 1
    by_cpus = int(num_cpus() / (train.min_workers * train.cpus) + 1e-9)
    return max(1, min(by_cpus, gpus // train.min_workers) if train.gpu else by_cpus)


def to_prepare(
    resolved: Sequence[Resolved], stages: Sequence[Planned], speeds: dict[str, Speed]
) -> tuple[int, float, float]:
    """The images that are not in the cache yet, the seconds that preparing them takes, and their bytes there."""
    number, seconds, num_bytes, seen = 0, 0.0, 0.0, set[tuple[int, str]]()
    for planned in stages:
        speed = speeds[key_of(planned.job.stage)]
        for source in planned.job.stage.sources:
            task = planned.resolved.tasks(source.task)
            missing = Cache(planned.job.cache).missing(cases_of(task, planned.job.stage), task.preprocessing)
            new = {
                (id(task), f"{planned.job.stage.kind in PRETRAINING and bool(task.labels)} {c.name}") for c in missing
            }
            count = len(new - seen)
            seen |= new
            number, num_bytes = number + count, num_bytes + count * speed.prepared_bytes
            seconds += count * speed.prepare / max(num_cpus(), 1)
    return number, seconds, num_bytes


def cases_of(task: Task, stage: Stage) -> list[Case]:
    """The cases that a stage reads."""
    if stage.kind in PRETRAINING:
        return [*task.images(), *(Case(c.name, c.patient, c.image) for c in unless_refused(task, "val"))]
    return task.split("test") if stage.kind == "test" else [*task.split("train"), *task.split("val")]


def unless_refused(task: Task, part: Any) -> list[Case]:
    try:
        return task.split(part)
    except UserError:  # it has no labels
        return []


def rows(stages: Sequence[Planned], costs: Sequence[Cost]) -> list[StageEstimate]:
    """A row for the stages of a kind that are equally long and fast."""
    groups: dict[tuple, list[tuple[Planned, Cost]]] = {}
    for planned, each in zip(stages, costs, strict=True):
        key = planned.job.stage.kind, key_of(planned.job.stage), each.steps, round(each.seconds, 3)
        groups.setdefault(key, []).append((planned, each))
    found = []
    for group in groups.values():
        planned, one = group[0]
        names = sorted({each.resolved.experiment.strategy for each, _ in group})
        speed = one.speed
        found.append(
            StageEstimate(
                planned.job.stage.kind,
                ", ".join(names),
                len(group),
                one.steps,
                one.images_per_second,
                one.seconds,
                speed.memory_mb,
                speed.gpu_memory_mb,
                speed.checkpoint_bytes / 1e9,
            )
        )
    return sorted(found, key=lambda row: [*DOING].index(row.kind))  # type: ignore[arg-type]


def notes(resolved: Sequence[Resolved], stages: Sequence[Planned], costs: Sequence[Cost], busy: str) -> list[str]:
    """What the trainings will be warned of, and what the numbers leave out, where it matters."""
    found = list(dict.fromkeys(each.warning for each in costs if each.warning))
    workers, here = max((planned.job.train.max_workers, workers_here(planned.job)) for planned in stages)
    if workers > here:
        few = f"of {workers} workers {here}, for which this machine has room, {'were' if here > 1 else 'was'} measured"
        found.append(f"{few}: what the others add to each other's work and messages is not in it")
    if any(each.experiment.pretrain and getattr(each.experiment.pretrain, "stop", None) for each in resolved):
        found.append("a pre-training that the probe ends is shorter")
    if busy:
        found.append(f"measured on this machine as it is: {busy}, and idle it is faster")
    return found


def refuse(result: Estimate, job: StageJob, workers: int) -> None:
    """Raises UserError for what this machine has no room for."""
    total = memory()[0]
    if result.memory_gb > FULL * total:
        many = f"{result.at_once} stages at once, " if result.at_once > 1 else ""
        what = f"{many}{workers} worker{'s' * (workers != 1)} each need {result.memory_gb:.1f} GB of memory, and this "
        remedy = "raise train.cpus, so that fewer run at once, or make the batch smaller"
        raise UserError(f"train.workers: {what}machine has {total:.1f} GB; {remedy}")
    if "://" not in job.storage:
        refuse_full_disk("train.storage", Path(job.storage), result.checkpoints_gb * 1e9, "checkpoints and weights")
    refuse_full_disk("PREMED_HOME", job.cache, result.cache_gb * 1e9, "prepared images")
