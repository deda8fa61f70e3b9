"""Measures how fast a stage is on this machine, and the memory that it needs, on some of its steps and images.
Nothing is saved but prepared images.

Steps are taken evenly from the whole training, with a few images in place of all, from random weights. In a process
group all ranks measure together, each on its share of a step, and what they tell each other is in it; where a stage has
more workers, these ranks are the first of them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from premed.config.settings import PRETRAINING, Finetune, Pretrain
from premed.contracts import BatchIndices, BatchSampler, Case, DataSet, Objective, Sample
from premed.data.cache import Cache
from premed.data.datamodule import Tasks, stage_data_sets
from premed.data.loader import PreparedLoader
from premed.distributed import rank_and_world
from premed.errors import UserError
from premed.training.closed_form import extract_features
from premed.training.compiling import compiling
from premed.training.cost import Speed, cases_of, sizes
from premed.training.device import device_of, forget_peak_memory, keep_freed_memory, peak_memory_mb, precision_of
from premed.training.evaluate import evaluate
from premed.training.fit import distributed, fit, share
from premed.training.online_probe import EMBEDDED, collapse_measures, make_probe
from premed.training.optimizer import make_optimizer
from premed.training.schedule import planned
from premed.training.setup import StageJob, TrainingSetup, make_objective, prepared
from premed.training.supervised import Supervised
from premed.training.throughput import SETTLING

STEPS = 20  # that are measured, after SETTLING
FEW, FEW_VAL = 16, 4  # images of each data set
MANY_VAL = 64  # of val, the few again and again: as many as go through a network at once (`data/views.py`)
PROBED = 8  # fixed views of the online probe


def measure(job: StageJob, together: Callable[[], int] = lambda: 0) -> Speed:
    """Measures a stage in this process, which should do nothing else; every rank must call it.

    together: waits for all processes that measure at once, and gives each a number from 0 on.
    """
    job = replace(job, parent=None)  # from random weights
    forget_peak_memory()
    if not job.train.gpu:
        keep_freed_memory()
    if job.train.workers:
        torch.set_num_threads(max(1, int(job.train.cpus)))  # as Ray has it
    tasks, numbers = Tasks(), dict[str, float]()
    data_sets = stage_data_sets(job.stage, tasks)
    train, val = few_samples_in_turn(job, data_sets, numbers, together)
    device, precision = device_of(job.train), precision_of(job.train)
    objective, loaded = make_objective(job, data_sets)
    objective.to(device)
    clock = Clock(device)
    settings = job.stage.training
    assert isinstance(settings, (Pretrain, Finetune))
    optimizer = make_optimizer(objective, settings.betas)
    plan, schedule = planned(job.stage, sizes(job, data_sets), objective.num_solutions)
    accumulate = job.train.micro_batches(max(job.train.max_workers, 1))
    setup = TrainingSetup(data_sets, train, val, objective, loaded, plan, schedule, device, precision, accumulate)
    if job.stage.kind != "test":
        together()
        numbers["start"] = seconds_before_steps(objective, train, precision, clock)
        if not objective.num_solutions:
            together()
            numbers["step"] = seconds_per_step(job, setup, optimizer, clock)
    together()
    numbers["val"] = seconds_per_val_image(job, setup, clock)
    if isinstance(settings, Pretrain) and settings.probe:
        together()
        numbers |= probe_speed(job, setup, tasks, settings, clock)
    state = [objective.state_dict(), optimizer.state_dict()]
    gpu = torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else None
    return Speed(
        **numbers,
        memory_mb=peak_memory_mb(torch.device("cpu")),
        gpu_memory_mb=gpu,
        checkpoint_bytes=sum(map(num_bytes, state)),
        parts_bytes=sum(num_bytes(part.state_dict()) for part in objective.parts.values()),
    )


class Clock:
    """Seconds at which the device has done all that it was given."""

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()


def few_samples_in_turn(
    job: StageJob, data_sets: Sequence[DataSet], numbers: dict[str, float], together: Callable[[], int]
) -> tuple[list[Sample], list[Sample]]:
    """`few_samples`, which one process prepares; the others then find them in the cache."""
    if not (turn := together()):
        found = few_samples(job, data_sets, numbers)
    together()
    return few_samples(job, data_sets, numbers) if turn else found


def few_samples(
    job: StageJob, data_sets: Sequence[DataSet], numbers: dict[str, float]
) -> tuple[list[Sample], list[Sample]]:
    """A few training and validation samples of each data set, prepared; what preparing takes is added to `numbers`.

    The test part is not opened: val stands for it.
    """
    train, val, seconds, made, num_bytes = list[Sample](), list[Sample](), 0.0, 0, 0
    for number, data_set in enumerate(data_sets):
        cases, seen = cases_of(job, data_set)
        chosen = [spread(cases, FEW), spread(seen, FEW_VAL)]
        missing = sum(len(Cache(job.cache).missing(some, data_set.task.preprocessing)) for some in chosen)
        began = time.monotonic()
        for samples, some in zip((train, val), chosen, strict=True):
            samples += prepared(job, data_set.task, some, number)
        if missing:
            seconds, made = seconds + time.monotonic() - began, made + missing
    if not val:
        raise UserError(f"task: {data_sets[0].task.name} has no val images here; fix its split, or add a data set")
    num_bytes = sum(sample.prepared.path.stat().st_size for sample in (*train, *val))
    numbers |= {"prepare": seconds / made if made else 0.0, "prepared_bytes": num_bytes / len([*train, *val])}
    if job.stage.kind in PRETRAINING or not data_sets[0].task.labels:  # else each is a sliding window: no batches
        val = [sample for number in range(len(data_sets)) for sample in again(val, number)]
    return train, val


def again(val: Sequence[Sample], number: int) -> list[Sample]:
    """The samples of a data set, MANY_VAL of them."""
    own = [sample for sample in val if sample.data_set == number]
    return [own[i % len(own)] for i in range(MANY_VAL if own else 0)]


def spread(cases: Sequence[Case], most: int) -> list[Case]:
    """At most `most` of the cases, evenly over all."""
    return [cases[i * len(cases) // min(most, len(cases))] for i in range(min(most, len(cases)))]


class FewSteps:
    """A BatchSampler: some steps of `plan`, of each the share of the first `ranks` of all workers, on the few samples
    that there are."""

    num_steps = SETTLING + STEPS

    def __init__(self, plan: BatchSampler, sizes: Sequence[int], few: Sequence[int], workers: int, ranks: int = 1):
        """sizes, few: the number of images of each data set, of all and of those that there are."""
        self.plan, self.sizes, self.few, self.workers, self.ranks = plan, sizes, few, workers, ranks

    def at(self, step: int) -> BatchIndices:
        whole = self.plan.at(step * self.plan.num_steps // self.num_steps)
        shares = [share(whole, rank, self.workers)[0] for rank in range(min(self.ranks, self.workers))]
        taken = np.concatenate([each.samples for each in shares])
        own = BatchIndices(np.concatenate([np.asarray(each.epoch) for each in shares]), taken)
        samples = own.samples.copy()
        before, of_few = 0, 0
        for size, few in zip(self.sizes, self.few, strict=True):
            inside = (own.samples >= before) & (own.samples < before + size)
            samples[inside] = of_few + (own.samples[inside] - before) % few
            before, of_few = before + size, of_few + few
        return own._replace(samples=samples)


def seconds_before_steps(
    objective: Objective, train: Sequence[Sample], precision: torch.dtype, clock: Callable[[], float]
) -> float:
    """Of one worker, for each training image: what an objective does before its first step, or a closed form."""
    began = clock()
    if not objective.num_solutions:
        objective.on_start(train)  # on every worker the same
        return (clock() - began) / len(train)
    assert isinstance(objective, Supervised)
    found = extract_features(objective.network, objective.task, train, precision)
    if rank_and_world()[0] == 0:
        for _ in objective.network.head.solve(*found):
            pass
    return (clock() - began) / len(train) * rank_and_world()[1]


def seconds_per_step(
    job: StageJob, setup: TrainingSetup, optimizer: torch.optim.AdamW, clock: Callable[[], float]
) -> float:
    """Trains for some steps; returns the mean seconds of one."""
    settings, how, times = job.stage.training, job.train, list[float]()
    assert isinstance(settings, (Pretrain, Finetune))
    few = [sum(sample.data_set == number for sample in setup.train) for number in range(len(setup.data_sets))]
    source = PreparedLoader(
        setup.data_sets,
        setup.train,
        device=setup.device,
        num_loaders=how.loaders,
        seed=settings.seed,
        stage=job.stage.draws,
    )

    def callback(step: int, loss: Tensor, metrics: dict[str, Tensor | float]) -> bool:
        times.append(clock())
        return False

    plan = FewSteps(setup.plan, sizes(job, setup.data_sets), few, max(how.max_workers, 1), rank_and_world()[1])
    trained, arguments = distributed(setup.objective), (source, plan, setup.schedule, optimizer)
    more: dict[str, Any] = {"accumulate": setup.accumulate, "clip": settings.clip, "precision": setup.precision}
    with compiling(setup.objective, how.compile) as plainly:
        for _ in range(1 + how.compile):  # the first time all shapes are compiled
            times.clear()
            fit(trained, *arguments, plainly(callback), **more)
    return (times[-1] - times[SETTLING - 1]) / STEPS


def seconds_per_val_image(job: StageJob, setup: TrainingSetup, clock: Callable[[], float]) -> float:
    """Of one worker, the mean over all of val: data sets take different times, and differ in size."""
    total, num_val = 0.0, 0
    for number, data_set in enumerate(setup.data_sets):
        if own := [sample for sample in setup.val if sample.data_set == number]:
            size = len(cases_of(job, data_set)[1])
            evaluate(setup.objective, own[:1], setup.precision)  # the first takes longer
            began = clock()
            evaluate(setup.objective, own, setup.precision)
            total, num_val = total + size * (clock() - began) / len(own), num_val + size
            if setup.objective.may_collapse:
                began = clock()
                collapse_measures(setup._replace(val=own))
                total += min(size, EMBEDDED) * (clock() - began) / len(own)
    return total / num_val * rank_and_world()[1]


def probe_speed(
    job: StageJob, setup: TrainingSetup, tasks: Tasks, settings: Pretrain, clock: Callable[[], float]
) -> dict[str, float]:
    """`Speed.probe` and `Speed.views`, of the online probe on a few images; empty if there is none."""
    assert settings.probe is not None
    try:
        probe = make_probe(job, setup, tasks, settings.probe.model_copy(update={"images": PROBED}))
    except UserError:
        return {}
    probe.measure()
    began = clock()
    probe.measure()
    seconds, samples = clock() - began, [*probe.train, *probe.val]
    num_views = sum(len(probe.objective.task.tiles(sample)) for sample in samples)
    return {"probe": seconds / num_views * rank_and_world()[1], "views": num_views / len(samples)}


def num_bytes(state: object) -> int:
    """Of all tensors in nested dicts and lists."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(num_bytes, inner))
