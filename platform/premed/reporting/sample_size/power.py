"""The power of the test that `premed compare` makes, for a design and its variance components.

Given normal effects, the mean squares that the test is made of are independent multiples of χ²: the variance that it
will find and its degrees of freedom (`statistics.combined`) follow from them, and so does the chance that |difference|
exceeds its t times its error. The power is the mean of that chance over the mean squares, at the points of a Sobol
sequence. So the degrees of freedom are those that the test will estimate, not those of the true components.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from premed.reporting.sample_size.components import Components, Side
from premed.reporting.statistics import SEEDS, TINY, combined

LEVEL = 0.05  # two-sided
POINTS = 10  # of the Sobol sequence: 2 to this power


@dataclass(frozen=True)
class Design:
    """How many trainings and patients a comparison has."""

    pretrainings: int
    """Or, where no arm has any, fine-tunings."""
    finetunings: int
    """Of each pre-training."""
    patients: int


@dataclass(frozen=True)
class MeanSquares:
    """What the test will find on average: variances of the mean difference, one for each group of seeds."""

    sizes: Sequence[int]
    """The groups' seeds: of one group, that of paired differences, or of the arm's and the baseline's."""
    seeds: Sequence[float]
    """The groups' expected mean squares of seeds, over S·P."""
    residuals: Sequence[float]
    """Their expected residual mean squares, over S·P: a part of `seeds`."""
    patients: float
    """The variance that patients make up, over P."""
    num_patients: int

    @property
    def variance(self) -> float:
        """Of the mean difference."""
        return sum(self.seeds) + self.patients


def layout(components: Components, design: Design) -> MeanSquares:
    """The expected mean squares of a design in which an arm and its baseline have the same seeds.

    One fine-tuning for each pre-training: differences are paired by seed. Several: a seed is a pre-training, and a
    baseline without any has a fine-tuning for each of the arm's, with seeds of its own.
    """
    num, each, patients = design.pretrainings, design.finetunings, design.patients
    arm, baseline = components.arm, components.baseline
    if each == 1 or arm.is_pretrained == baseline.is_pretrained:
        groups = [(components.difference, num, each)]
    else:
        nested = [(side, num, each) if side.is_pretrained else (side, num * each, 1) for side in (arm, baseline)]
        groups = nested
    found = [squares_of(side, num, each, patients) for side, num, each in groups]
    return MeanSquares(
        sizes=[num for _, num, _ in groups],
        seeds=[seeds for seeds, _ in found],
        residuals=[residual for _, residual in found],
        patients=components.patients / patients,
        num_patients=patients,
    )


def squares_of(side: Side, num: int, each: int, patients: int) -> tuple[float, float]:
    """The expected mean squares of seeds and residual, over S·P, of `num` pre-trainings with `each` fine-tunings."""
    residual = (side.pretraining_patients / num + side.finetuning_patients / (num * each)) / patients
    return side.pretraining / num + side.finetuning / (num * each) + residual, residual


def power(difference: float, expected: MeanSquares, level: float = LEVEL) -> float:
    """The chance that the test finds a true difference, whatever its sign. NaN where nothing varies.

    With fewer than SEEDS seeds in a group the test is a t-test over patients, and so is its power: for these seeds.
    """
    return chance(difference, *reach_and_error(expected, level))


def chance(difference: float, reach: np.ndarray, error: float) -> float:
    """That a normal mean with this error is further from 0 than `reach`, half the width of the test's interval."""
    from scipy.special import ndtr

    return float(np.mean(ndtr((abs(difference) - reach) / error) + ndtr((-reach - abs(difference)) / error)))


def reach_and_error(expected: MeanSquares, level: float) -> tuple[np.ndarray, float]:
    """Half the width of the test's interval at each point of the sequence, and the true error; NaN: nothing varies."""
    few = min(expected.sizes) < SEEDS
    variance = expected.patients + sum(expected.residuals) if few else expected.variance
    if expected.num_patients < 2 or variance < TINY:
        return np.full(1, np.nan), np.nan
    return (patients_reach if few else full_reach)(expected, level), float(np.sqrt(variance))


def patients_reach(expected: MeanSquares, level: float) -> np.ndarray:
    """Half the width of the interval over patients alone, at each point of the sequence."""
    from scipy.special import stdtrit

    df = expected.num_patients - 1
    variance = (expected.patients + sum(expected.residuals)) * chi_squares((df,))[0]
    return stdtrit(df, 1 - level / 2) * np.sqrt(variance)


def full_reach(expected: MeanSquares, level: float) -> np.ndarray:
    """Half the width of the test's interval, at each point of the sequence."""
    from scipy.special import stdtrit

    num, sizes = expected.num_patients, expected.sizes
    draws = iter(chi_squares((*(size - 1 for size in sizes), *((size - 1) * (num - 1) for size in sizes), num - 1)))
    seeds = [mean * next(draws) for mean in expected.seeds]
    residual = sum(mean * next(draws) for mean in expected.residuals)
    over_patients = (expected.patients + sum(expected.residuals)) * next(draws)
    variance, df = combined(seeds, sizes, over_patients, residual, num)
    return stdtrit(df, 1 - level / 2) * np.sqrt(variance)


@lru_cache(64)
def chi_squares(dfs: tuple[int, ...]) -> np.ndarray:
    """Mean squares of mean 1 with these degrees of freedom, at the points of a Sobol sequence: [len(dfs), points]."""
    from scipy.special import gammaincinv
    from scipy.stats import qmc

    points = qmc.Sobol(len(dfs), scramble=False).random_base2(POINTS).T + 0.5 / 2**POINTS
    return np.stack([gammaincinv(df / 2, each) * 2 / df for each, df in zip(points, dfs, strict=True)])


def smallest_difference(expected: MeanSquares, wanted: float, level: float = LEVEL) -> float:
    """The true difference that the test finds with the power that is wanted; NaN where nothing varies.

    It is 0 where the test errs so often that it finds no difference at all with that power.
    """
    from scipy.optimize import brentq

    reach, error = reach_and_error(expected, level)
    if not np.isfinite(error):
        return np.nan
    if chance(0.0, reach, error) >= wanted:
        return 0.0
    high = error
    while chance(high, reach, error) < wanted:
        high *= 2
    found: Any = brentq(lambda difference: chance(difference, reach, error) - wanted, 0.0, high, xtol=high * 1e-5)
    return float(found)


def fewest(enough: Callable[[int], bool], first: int, most: int) -> int | None:
    """The smallest number from `first` to `most` for which `enough`, a function that stays true, is; None: none is.

    The power falls by a little with more patients where seeds vary most, since the test then has fewer degrees of
    freedom. There the number that is found is enough, and a smaller one may be, too.
    """
    most = max(first, most)
    if enough(first):
        return first
    low, high = first, first
    while not enough(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
