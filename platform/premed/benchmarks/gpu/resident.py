"""Row views: views of images that stay on the device beside those that the CPU makes of files, and their rates."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from premed.benchmarks import crops
from premed.benchmarks.gpu.context import Context
from premed.benchmarks.gpu.throughput import Files, augmentation, write_files
from premed.benchmarks.gpu.trainings import Training, full, small
from premed.contracts import BatchLoader, DataSet
from premed.data.loader import PreparedLoader
from premed.data.resident import ResidentLoader
from premed.data.samplers import EpochSampler
from premed.training.source import same_views

VIEWS = 32  # of each image, which are compared
SECONDS, WARM_UP = (2.0, 0.1), 2  # of measurement; batches before it


def views(context: Context) -> None:
    """Each training's views from files and from the device: whether they are equal, and how many are made a second."""
    with TemporaryDirectory() as folder:
        for each in small() if context.settings.short else full(context):
            of = f"{each.name}'s views"
            with context.guarded(of):
                compare(context, each, of, Path(folder))


def compare(context: Context, training: Training, of: str, folder: Path) -> None:
    """A line."""
    samples = write_files(context, training, folder)
    task: Any = Files(training.roi, bool(training.classes))
    whole = augmentation(training)
    if len(training.roi) == 3:
        moved = {name: getattr(crops.MOVED, name) for name in ("flip", "rotate", "intensity")}
        whole = whole.model_copy(update=moved)
    more: Any = {"seed": 0, "stage": "bench", "device": context.device}
    data_sets = [DataSet(task, "made up", whole)]
    files, resident = PreparedLoader(data_sets, samples, **more), ResidentLoader(data_sets, samples, **more)
    if not same_views(files, resident, VIEWS):
        context.line(
            of, "failed", "views on the device are not those that the CPU makes: train.resident would not use it"
        )
        return
    repeated = [samples[i % len(samples)] for i in range(training.batch)]
    rates = [
        views_per_second(context, kind(data_sets, repeated, **more), training.batch)
        for kind in (ResidentLoader, PreparedLoader)
    ]
    context.line(
        of,
        "passed",
        f"equal, bit for bit; {rates[0]:.4g} views a second on the device, {rates[1]:.4g} from files; both draw in one "
        "process",
        views_per_second=rates[0],
        views_per_second_from_files=rates[1],
    )


def views_per_second(context: Context, source: BatchLoader, batch: int) -> float:
    """Of batches one after the other, which nothing is trained on."""
    plan = EpochSampler(batch, batch, 2**30, 0, "bench")
    stream = source.batches(map(plan.at, range(plan.num_steps)))
    for _ in range(WARM_UP):
        next(stream)
    context.settings.finish()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < context.settings.size(*SECONDS):
        next(stream)
        context.settings.finish()
        done += batch
    return done / (time.perf_counter() - began)
