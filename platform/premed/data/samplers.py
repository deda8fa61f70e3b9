"""Plans: which samples make up which step, of one data set or of several. All are pure functions of the step.

The samples of several data sets follow each other: those of the second have the numbers after those of the first. Each
data set goes through its images in an order of its own, a new one for each of its epochs, on which the size of no other
data set has an influence.
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
    """Each epoch is all images in a new order, in batches; the last, smaller one is kept."""

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
    """`interval` epochs of the first data set, then of the next, …: a step's images are all of one (UniMiSS)."""

    sizes: tuple[int, ...]  # images of each data set
    batch: int
    num_steps: int
    seed: int
    stage: str
    interval: int = 2

    @classmethod
    def of(cls, settings: "Training", sizes: Sequence[int], stage: str, interval: int) -> "AlternatingSampler":
        """`epochs` counts those of all data sets: 200 are 100 of each of two."""
        plan = cls(tuple(sizes), settings.batch, 0, settings.seed, stage, interval)
        rounds, rest = divmod(settings.epochs, interval * len(sizes))
        left = [min(max(rest - number * interval, 0), interval) for number in range(len(sizes))]
        num_steps = rounds * plan.turns[-1] + sum(n * each for n, each in zip(left, plan.per_epoch, strict=True))
        return replace(plan, num_steps=settings.steps or num_steps)

    @cached_property
    def per_epoch(self) -> list[int]:
        """Steps of an epoch of each data set."""
        return [ceil(size / self.batch) for size in self.sizes]

    @cached_property
    def turns(self) -> list[int]:
        """Where in a round, which is one turn of each data set, their turns end: in steps."""
        return list(accumulate(self.interval * steps for steps in self.per_epoch))

    def at(self, step: int) -> BatchIndices:
        done, i = divmod(step, self.turns[-1])
        number = bisect_right(self.turns, i)
        begin = self.turns[number - 1] if number else 0
        more, i = divmod(i - begin, self.per_epoch[number])
        epoch = done * self.interval + more
        samples = order(self, epoch, self.sizes[number], number)[i * self.batch : (i + 1) * self.batch]
        return BatchIndices(epoch, samples + sum(self.sizes[:number]))


@dataclass(frozen=True)
class BalancedSampler:
    """One image of the first data set, one of the next, … and round again: every step has as many of each (HSSL).

    Over any stretch of steps the data sets differ by one image at the most; so they do in each rank's share of a step.
    A small data set is gone through more often than a large one.
    """

    sizes: tuple[int, ...]  # images of each data set
    batch: int
    num_steps: int
    seed: int
    stage: str

    @classmethod
    def of(cls, settings: "Training", sizes: Sequence[int], stage: str) -> "BalancedSampler":
        """An epoch takes as many images as there are."""
        num_steps = settings.steps or settings.epochs * ceil(sum(sizes) / settings.batch)
        return cls(tuple(sizes), settings.batch, num_steps, settings.seed, stage)

    def at(self, step: int) -> BatchIndices:
        dealt = np.arange(step * self.batch, (step + 1) * self.batch)
        numbers, taken = dealt % len(self.sizes), dealt // len(self.sizes)
        epochs, places = np.divmod(taken, np.array(self.sizes)[numbers])
        begins = [0, *accumulate(self.sizes)]
        samples = [
            begins[number] + order(self, epoch, self.sizes[number], number)[place]
            for number, epoch, place in zip(numbers.tolist(), epochs.tolist(), places.tolist(), strict=True)
        ]
        return BatchIndices(epochs, np.array(samples))


def order(
    plan: EpochSampler | AlternatingSampler | BalancedSampler, epoch: int, size: int, number: int = 0
) -> np.ndarray:
    """In which the images [size] of data set `number` are gone through in that epoch of it."""
    which = (number,) if number else ()
    return permutation(key(plan.seed, plan.stage, "order", epoch, *which), size)
