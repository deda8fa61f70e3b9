"""The throughput of a training: samples per second, the share of time spent waiting for data, memory.

These numbers depend on the machine and the moment. They go to MLflow with a point of the curve, as `pace/…`, and
nowhere else, so that a curve is the same however often its training was stopped.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from math import ceil, isfinite

import psutil
import torch
import torch.distributed as dist

from premed.contracts import Batch, BatchIndices, BatchLoader
from premed.data.io.memory import num_cpus
from premed.distributed import rank_and_world
from premed.events import DataLoadingBottleneck

BOTTLENECK = 0.5  # share of the time spent waiting for data above which the user is warned
SETTLING = 3  # first steps, in which libraries and memory settle: they are no training's speed
WARM_UP = 30.0  # seconds of training before the user is warned


class Throughput:
    """Measures from `start` to `stop`. Of several ranks, the worst value of each number is reported."""

    def __init__(self, device: torch.device, num_loaders: int):
        self.device, self.num_loaders = device, num_loaders
        self.seconds = self.waiting_seconds = 0.0  # over all measurements
        self.warned = False
        self.start()

    def timed(self, source: BatchLoader) -> "TimedLoader":
        """Wraps the source: measures the time spent waiting for its batches."""
        return TimedLoader(source, self)

    def start(self) -> None:
        """Starts a measurement; what came before it, such as a validation or a checkpoint, does not count."""
        self.began, self.waited = time.monotonic(), 0.0

    def stop(self, num_samples: int) -> dict[str, float]:
        """Returns the numbers since `start`; all ranks together trained on `num_samples`. Every rank must call it."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        held = [psutil.Process().memory_info().rss / 2**20]
        if self.device.type == "cuda":
            held += [torch.cuda.memory_reserved(self.device) / 2**20, -utilisation(self.device)]
        worst = torch.tensor([self.waited / seconds, *held], dtype=torch.float64, device=self.device)
        if rank_and_world()[1] > 1:
            dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        share, memory, *gpu = worst.tolist()
        self.seconds += seconds
        self.waiting_seconds += share * seconds
        numbers = {"samples_per_second": num_samples / seconds, "data_wait": share, "memory_mb": memory}
        if gpu:
            numbers |= {"gpu_memory_mb": gpu[0], "gpu_utilisation": -gpu[1]}
        return {f"pace/{name}": value for name, value in numbers.items() if isfinite(value)}

    def bottleneck(self) -> DataLoadingBottleneck | None:
        """Returns an event, once, if most of the time is spent waiting for data."""
        if self.warned or self.seconds < WARM_UP or (share := self.waiting_seconds / self.seconds) <= BOTTLENECK:
            return None
        self.warned = True
        # the current loaders deliver `1 - share` of what the training could take
        needed = ceil(max(self.num_loaders, share) / (1 - share)) if share < 1 else 2 * self.num_loaders + 1
        spare = int(num_cpus()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1
        return DataLoadingBottleneck(share, self.num_loaders, suggested_loaders=min(needed, spare))


class TimedLoader:
    """A BatchLoader that measures how long training waits for each batch."""

    def __init__(self, source: BatchLoader, throughput: Throughput):
        self.source, self.throughput = source, throughput

    def batches(self, indices: Iterable[BatchIndices]) -> Iterator[Batch]:
        """See `BatchLoader.batches`."""
        stream, first = self.source.batches(indices), True
        while True:
            began = time.monotonic()
            try:
                batch = next(stream)
            except StopIteration:
                return
            waited = time.monotonic() - began
            if first:  # the loaders start here: neither training nor a bottleneck
                self.throughput.began += waited
            else:
                self.throughput.waited += waited
            first = False
            yield batch


def utilisation(device: torch.device) -> float:
    """Percentage of the last second in which the GPU computed; NaN if NVIDIA's library does not report it."""
    with suppress(ModuleNotFoundError, RuntimeError):
        return float(torch.cuda.utilization(device))
    return float("nan")
