"""Batch samplers: choose the samples of each step, from one or several data sets, as pure functions of the step.

Samples of several data sets are numbered consecutively: the second data set's indices follow the first's. Each data set
is shuffled anew for each of its epochs, independently of the other data sets' sizes.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from premed.contracts import BatchIndices
from premed.rng import key, permutation

if TYPE_CHECKING:
    from premed.config.settings import Training


@dataclass(frozen=True)
class EpochSampler:
    """Each epoch has all images in a new order; the last, smaller batch is kept."""

    num_samples: int
    batch: int
    num_steps: int
    seed: int
    stage: str

    @classmethod
    def of(cls, settings: "Training", sizes: Sequence[int], stage: str) -> "EpochSampler":
        num_samples = sum(sizes)
        num_steps = settings.steps or settings.epochs * ceil(num_samples / settings.batch)
        return cls(num_samples, settings.batch, num_steps, settings.seed, stage)

    def at(self, step: int) -> BatchIndices:
        epoch, i = divmod(step, ceil(self.num_samples / self.batch))
        return BatchIndices(epoch, order(self, epoch, self.num_samples)[i * self.batch : (i + 1) * self.batch])


@dataclass(frozen=True)
class AlternatingSampler:
    """`interval` epochs of the first data set, then of the next, …: each step has images of one data set (UniMiSS)."""

    sizes: tuple[int, ...]  # images of each data set
    batch: int
    num_steps: int
    seed: int
    stage: str
    interval: int = 2

    @classmethod
    def of(cls, settings: "Training", sizes: Sequence[int], stage: str, interval: int) -> "AlternatingSampler":
        """`settings.epochs` is the sum over the data sets: 200 means 100 for each of two."""
        sampler = cls(tuple(sizes), settings.batch, 0, settings.seed, stage, interval)
        rounds, rest = divmod(settings.epochs, interval * len(sizes))
        remaining = [min(max(rest - number * interval, 0), interval) for number in range(len(sizes))]
        num_steps = rounds * sampler.turns[-1] + sum(
            n * each for n, each in zip(remaining, sampler.per_epoch, strict=True)
        )
        return replace(sampler, num_steps=settings.steps or num_steps)

    @cached_property
    def per_epoch(self) -> list[int]:
        """Steps per epoch of each data set."""
        return [ceil(size / self.batch) for size in self.sizes]

    @cached_property
    def turns(self) -> list[int]:
        """The step at which each data set's turn ends, within a round of one turn each."""
        return list(accumulate(self.interval * steps for steps in self.per_epoch))

    def at(self, step: int) -> BatchIndices:
        rounds, i = divmod(step, self.turns[-1])
        number = bisect_right(self.turns, i)
        begin = self.turns[number - 1] if number else 0
        epochs, i = divmod(i - begin, self.per_epoch[number])
        epoch = rounds * self.interval + epochs
        samples = order(self, epoch, self.sizes[number], number)[i * self.batch : (i + 1) * self.batch]
        return BatchIndices(epoch, samples + sum(self.sizes[:number]))


@dataclass(frozen=True)
class BalancedSampler:
    """Round-robin over the data sets, image by image: every step has equally many of each (HSSL).

    Over any range of steps, and in each rank's share of a step, the counts differ by at most one image. A small data
    set is repeated more often than a large one.
    """

    sizes: tuple[int, ...]  # images of each data set
    batch: int
    num_steps: int
    seed: int
    stage: str

    @classmethod
    def of(cls, settings: "Training", sizes: Sequence[int], stage: str) -> "BalancedSampler":
        """An epoch has as many images as all data sets together."""
        num_steps = settings.steps or settings.epochs * ceil(sum(sizes) / settings.batch)
        return cls(tuple(sizes), settings.batch, num_steps, settings.seed, stage)

    def at(self, step: int) -> BatchIndices:
        positions = np.arange(step * self.batch, (step + 1) * self.batch)
        numbers, counts = positions % len(self.sizes), positions // len(self.sizes)
        epochs, places = np.divmod(counts, np.array(self.sizes)[numbers])
        begins = [0, *accumulate(self.sizes)]
        samples = [
            begins[number] + order(self, epoch, self.sizes[number], number)[place]
            for number, epoch, place in zip(numbers.tolist(), epochs.tolist(), places.tolist(), strict=True)
        ]
        return BatchIndices(epochs, np.array(samples))


def order(
    sampler: EpochSampler | AlternatingSampler | BalancedSampler, epoch: int, size: int, number: int = 0
) -> np.ndarray:
    """The order [size] of the images of data set `number` in one of its epochs."""
    which = (number,) if number else ()
    return permutation(key(sampler.seed, sampler.stage, "order", epoch, *which), size)
