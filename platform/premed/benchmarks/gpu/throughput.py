"""Row training: how fast premed trains on this GPU, from one batch in memory, from prepared files, and from images that
stay on the device."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from premed.benchmarks import crops, made_up, steps, views
from premed.benchmarks.floors import flops_of
from premed.benchmarks.gpu.context import Context
from premed.benchmarks.gpu.trainings import LR, PRECISIONS, InMemory, Training, full
from premed.benchmarks.result import Spread
from premed.config.image_processing import Augmentation
from premed.contracts import BatchLoader, DataSet, Objective, Sample
from premed.data import views as data_views
from premed.data.cache import Cache
from premed.data.io.memory import num_cpus
from premed.data.loader import PreparedLoader
from premed.data.resident import ResidentLoader
from premed.data.samplers import EpochSampler
from premed.errors import UserError
from premed.rng import SampleRng
from premed.training.device import forget_peak_memory, is_out_of_memory, peak_memory_mb
from premed.training.fit import fit
from premed.training.optimizer import make_optimizer
from premed.training.schedule import Schedule
from premed.training.throughput import Throughput

PRECISION = torch.bfloat16
BLOCKS, SECONDS, WARM_UP = (7, 2), (1.0, 0.1), 3  # of measurement; of one block; steps before it
FROM_FILES, MOST_STEPS = (12.0, 0.3), 200  # seconds
MOST_LOADERS = 15


def training(context: Context) -> None:
    """Each network: a line for one batch in memory again and again, one for prepared files through loaders, and one for
    images that stay on the device."""
    with TemporaryDirectory() as folder:
        for each in full(context):
            with context.guarded(of_training(each)):
                measure(context, each, Path(folder))


def measure(context: Context, training: Training, folder: Path) -> None:
    """Three lines of one network."""
    forget_peak_memory()
    running = largest(context, training)
    training, precision = running.training, PRECISION
    of = of_training(training)
    forget_peak_memory()
    running.steps(WARM_UP)
    first = running.steps(WARM_UP)
    num = max(1, round(context.settings.size(*SECONDS) / first * WARM_UP))
    times = [running.steps(num) / num for _ in range(context.settings.size(*BLOCKS))]
    memory, flops = peak_memory_mb(context.device) / 1024, running.flops()
    spread = Spread.of(times)
    context.line(
        f"{of}, one batch in memory",
        "measured",
        f"{training.sizes}; {len(times)} times {num} steps; {flops / 1e9:.4g} GFLOP a step",
        **rates(training.batch, spread),
        **context.shares(flops, spread.median, precision),
        memory_gib=memory,
    )
    samples = write_files(context, training, folder)
    for kind, of in ((PreparedLoader, "from files"), (ResidentLoader, "from images on the device")):
        with context.guarded(f"{of_training(training)}, {of}"):
            from_images(context, running, spread.median, flops, samples, kind, of)


def of_training(training: Training) -> str:
    return f"{training.name}, {PRECISIONS[PRECISION]}"


def rates(batch: int, step: Spread) -> dict[str, float]:
    """The numbers of a line, of the seconds of a step."""
    low, high = batch / step.high, batch / step.low
    named = {"samples_per_second": batch / step.median, "samples_per_second_low": low, "samples_per_second_high": high}
    return named | {"step_ms": 1000 * step.median, "step_ms_low": 1000 * step.low, "step_ms_high": 1000 * step.high}


@dataclass
class Running:
    """A training whose batch fits, and a loader of one batch."""

    context: Context
    training: Training
    objective: Objective
    optimizer: Any
    source: BatchLoader

    def steps(self, num: int) -> float:
        """Seconds of so many steps."""
        plan = EpochSampler(self.training.batch, self.training.batch, num, 0, "bench")
        self.context.settings.finish()
        began = time.perf_counter()
        self.fit(self.source, plan, steps.ignore)
        self.context.settings.finish()
        return time.perf_counter() - began

    def fit(self, source: BatchLoader, plan: EpochSampler, callback: Callable[..., None]) -> None:
        schedule = Schedule(plan.num_steps, 0, LR)
        fit(self.objective, source, plan, schedule, self.optimizer, callback, precision=PRECISION)

    def flops(self) -> float:
        """Of a step."""
        plan = EpochSampler(self.training.batch, self.training.batch, 1, 0, "bench")
        (batch,) = self.source.batches([plan.at(0)])
        settings = self.context.settings
        forward = lambda: self.objective(batch, 0.0)[0]  # noqa: E731
        return flops_of(lambda: steps.loss_and_gradients(settings, self.objective, forward, PRECISION))


def largest(context: Context, training: Training) -> Running:
    """With the training's batch, or half of it, or half of that: the first that fits."""
    while True:
        objective = training.build(context.device)
        (batch,) = InMemory(training, training.batch, context.device).batches(
            [EpochSampler(training.batch, training.batch, 1, 0, "bench").at(0)]
        )
        optimizer = make_optimizer(objective, steps.BETAS)
        running = Running(context, training, objective, optimizer, steps.OneBatch(batch))
        try:
            running.steps(1)
            return running
        except UserError as error:
            if training.batch == 1 or not is_out_of_memory(error):
                raise
        del objective, batch, optimizer, running
        gc.collect()
        forget_peak_memory()
        training = training.of_batch(training.batch // 2)


# ---- from images


class Enough(Exception):
    """The steps have taken the time that they may."""


@dataclass(frozen=True)
class Files:
    """What a loader needs of a task: views of prepared files. It goes to other processes."""

    roi: tuple[int, ...]
    labels: bool

    def view(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> tuple[np.ndarray, np.ndarray | None]:
        if len(self.roi) == 2:
            return data_views.picture(sample.prepared, self.roi, augment, draw), None
        return data_views.volume(sample.prepared, self.roi, augment, draw, with_label=self.labels)

    def view_params(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> data_views.ViewParams:
        if len(self.roi) == 2:
            return data_views.picture_params(sample.prepared, self.roi, augment, draw)
        return data_views.volume_params(sample.prepared, self.roi, augment, draw, with_label=self.labels)


def from_images(
    context: Context,
    running: Running,
    step: float,
    flops: float,
    samples: Sequence[Sample],
    kind: type[PreparedLoader],
    of: str,
) -> None:
    """A line: prepared files, in memory as the system keeps what was read, or images on the device, through as many
    loaders as there are CPUs.

    step: seconds of one from memory, by which the number of steps is chosen. kind: of the loader, `of` in words.
    """
    training, num_loaders = running.training, min(max(int(num_cpus()) - 1, 1), MOST_LOADERS)
    repeated = [samples[i % len(samples)] for i in range(training.batch)]
    task: Any = Files(training.roi, bool(training.classes))
    data_set = DataSet(task, "made up", augmentation(training))
    source = kind([data_set], repeated, seed=0, stage="bench", device=context.device, num_loaders=num_loaders)
    most = context.settings.size(*FROM_FILES)
    num = WARM_UP + min(max(round(most / step), WARM_UP), MOST_STEPS)
    throughput, numbers = Throughput(context.device, num_loaders), dict[str, float]()

    def callback(done: int, loss: Tensor, metrics: dict[str, Tensor | float]) -> None:
        if done == WARM_UP:
            context.settings.finish()
            throughput.start()
        elif done == num or (done > WARM_UP and time.monotonic() - throughput.began > most):
            context.settings.finish()
            numbers.update(throughput.stop((done - WARM_UP) * training.batch), num_steps=done - WARM_UP)
            raise Enough

    with suppress(Enough):
        running.fit(throughput.timed(source), EpochSampler(training.batch, training.batch, num, 0, "bench"), callback)
    rate = numbers["pace/samples_per_second"]
    context.line(
        f"{of_training(training)}, {of}",
        "measured",
        f"{numbers['num_steps']} steps, {num_loaders} loaders"
        + ("" if isinstance(source, ResidentLoader) else ", files that the system keeps in memory"),
        samples_per_second=rate,
        step_ms=1000 * training.batch / rate,
        data_wait=numbers["pace/data_wait"],
        **context.shares(flops, training.batch / rate, PRECISION),
    )


def augmentation(training: Training) -> Augmentation:
    """That of the recipes: crops of pictures, flips of volumes, crops that are balanced by label."""
    if len(training.roi) == 2:
        return Augmentation(scale=views.SCALE, flip=0.5)
    return Augmentation(flip=0.2, positive=crops.POSITIVE if training.classes else None)


def write_files(context: Context, training: Training, folder: Path) -> Sequence[Sample]:
    """Prepared files: of a volume with its labels, or of some pictures."""
    place = folder / ("pictures" if len(training.roi) == 2 else "volume")
    place.mkdir(exist_ok=True)
    if len(training.roi) == 2:
        return views.write_pictures(place, context.settings.size(views.NUM_PICTURES, 4))
    case = made_up.write_ct(place, context.settings.size(*crops.SHAPE))
    (prepared,) = Cache(place / "cache").prepare([case], made_up.PREPROCESSING)
    return [Sample(case, prepared)]
