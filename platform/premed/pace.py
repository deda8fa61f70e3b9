"""Pace: how fast a training goes, what share of its time it waits for images, how much memory it holds.

Numbers of an instant and of this machine: they go to MLflow beside a point of the curve, as `pace/…`, and nowhere
else, so that a curve is the same however often its training was stopped.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from math import ceil, isfinite

import psutil
import torch
import torch.distributed as dist

from premed.contracts import Batch, Picks, Source
from premed.distributed import team
from premed.events import DataLoadingBottleneck

STARVING = 0.5  # the share of its time that a training may wait for images before it is told of
PATIENCE = 30.0  # seconds of training that are looked at first


class Pace:
    """Counts from `begin` to `point`. Of several ranks the one that waits or holds the most is told of."""

    def __init__(self, device: torch.device, num_loaders: int):
        self.device, self.num_loaders = device, num_loaders
        self.seconds = self.starved = 0.0  # over all points
        self.told = False
        self.begin()

    def timed(self, source: Source) -> "Timed":
        """The source, whose every batch is waited for by this clock."""
        return Timed(source, self)

    def begin(self) -> None:
        """What was before, a validation or a checkpoint, is no training."""
        self.began, self.waited = time.monotonic(), 0.0

    def point(self, num_samples: int) -> dict[str, float]:
        """The numbers since `begin`, in which all ranks together trained on `num_samples`. Every rank has to ask."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        held = [psutil.Process().memory_info().rss / 2**20]
        if self.device.type == "cuda":
            held += [torch.cuda.memory_reserved(self.device) / 2**20, -utilisation(self.device)]
        worst = torch.tensor([self.waited / seconds, *held], dtype=torch.float64, device=self.device)
        if team()[1] > 1:
            dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        share, memory, *gpu = worst.tolist()
        self.seconds += seconds
        self.starved += share * seconds
        numbers = {"samples_per_second": num_samples / seconds, "data_wait": share, "memory_mb": memory}
        if gpu:
            numbers |= {"gpu_memory_mb": gpu[0], "gpu_utilisation": -gpu[1]}
        return {f"pace/{name}": value for name, value in numbers.items() if isfinite(value)}

    def starving(self) -> DataLoadingBottleneck | None:
        """Once, when most of the time went into waiting for images: an event with the share and the mend."""
        if self.told or self.seconds < PATIENCE or (share := self.starved / self.seconds) <= STARVING:
            return None
        self.told = True
        # what loaders there are bring forth in the time that a step takes, and how much of it goes into the step itself
        needed = ceil(max(self.num_loaders, share) / (1 - share)) if share < 1 else 2 * self.num_loaders + 1
        spare = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1
        return DataLoadingBottleneck(share, self.num_loaders, suggested_loaders=min(needed, spare))


class Timed:
    """A Source that tells a clock how long each batch was waited for."""

    def __init__(self, source: Source, pace: Pace):
        self.source, self.pace = source, pace

    def batches(self, picks: Iterable[Picks]) -> Iterator[Batch]:
        """See `Source.batches`."""
        stream, first = self.source.batches(picks), True
        while True:
            began = time.monotonic()
            try:
                batch = next(stream)
            except StopIteration:
                return
            waited = time.monotonic() - began
            if first:  # loaders start here: neither training nor a lack of them
                self.pace.began += waited
            else:
                self.pace.waited += waited
            first = False
            yield batch


def utilisation(device: torch.device) -> float:
    """Per cent of the last second in which the GPU computed; NaN where the driver's library does not tell."""
    with suppress(ModuleNotFoundError, RuntimeError):
        return float(torch.cuda.utilization(device))
    return float("nan")
