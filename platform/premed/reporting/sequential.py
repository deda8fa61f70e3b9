"""A group-sequential test: at which level each look may decide, so that all looks together err in 5 of 100 cases.

Seeds arrive, and at planned numbers of them it is looked whether the interval of a difference leaves out 0. Looked at
with 5 % each time, one of five looks does so in 15 of 100 cases in which there is no difference. The 5 % are therefore
spent: up to the look at n of N seeds, 5 % · (n / N)², as Kim and DeMets propose (Biometrika 74, 1987, 149), on the plan
of Lan and DeMets (Biometrika 70, 1983, 659). The intervals at these levels are repeated confidence intervals (Jennison
and Turnbull, J R Stat Soc B 51, 1989, 305): all of them together hold the true difference in 95 of 100 cases, so that
one may stop at any look for any reason.

Levels that are made for normal statistics are too large for Student's t of few seeds (up to 6.8 % in simulations).
These are made for t itself, as Shao and Feng propose (Contemp Clin Trials 28, 2007, 563): from the t of all looks at
independent normal seeds, of which only means and sums of squares of the seeds between two looks are drawn, by the
points of a Sobol sequence. Patients, who are the same at each look, make looks more alike, and the error smaller.

Shapes: K looks, D points.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

ALPHA = 0.05  # two-sided, of all looks together
POWER = 2
"""Of the share of the seeds, in what is spent. 1 spends more on early looks and less on the last, as Pocock does; 3 is
near O'Brien and Fleming. docs/seeds-auto.md compares them."""
POINTS = 16  # of the Sobol sequence: 2 to this power
FEWEST = 20
"""Points that must fall below a level for it to be read from them; else what is spent is the level, which is less."""
GRID = np.geomspace(1e-9, 1.0, 181)


@lru_cache(16)
def null_p_values(looks: tuple[int, ...]) -> np.ndarray:
    """The two-sided p-values [K, D] of Student's t at each look, of seeds whose mean is 0. looks: numbers of seeds."""
    from scipy.special import gammaincinv, ndtri, stdtr
    from scipy.stats import qmc

    added = np.diff(looks, prepend=0)
    dimensions = len(looks) + int((added > 1).sum())
    points = iter(qmc.Sobol(dimensions, scramble=False).random_base2(POINTS).T + 0.5 / 2**POINTS)
    mean, squares, size, found = np.zeros(2**POINTS), np.zeros(2**POINTS), 0, []
    for number in map(int, added):
        new = ndtri(next(points)) / np.sqrt(number)
        within = 2 * gammaincinv((number - 1) / 2, next(points)) if number > 1 else 0.0
        squares = squares + within + (new - mean) ** 2 * size * number / (size + number)
        mean = (mean * size + new * number) / (size + number)
        size += number
        t = np.abs(mean) / np.sqrt(squares / (size - 1) / size)
        found.append(2 * stdtr(size - 1, -t))
    return np.stack(found)


@lru_cache(512)
def levels(looks: tuple[int, ...], alpha: float = ALPHA, power: float = POWER) -> tuple[float, ...]:
    """The two-sided level of each look's own test, so that all looks together err in `alpha` of the cases."""
    p_values = null_p_values(looks)
    spent = alpha * (np.array(looks) / looks[-1]) ** power
    left, found = np.ones(p_values.shape[1], bool), []
    for p, share in zip(p_values, np.diff(spent, prepend=0.0), strict=True):
        rank = int(share * len(left))
        remaining = p[left]
        if len(remaining) <= rank:  # alpha near 1: all are rejected
            level = 1.0
        else:
            level = float(share) if rank < FEWEST else float(np.partition(remaining, rank)[rank])
        left &= p >= level
        found.append(level)
    return tuple(found)


@lru_cache(64)
def level_grid(looks: tuple[int, ...], look: int) -> np.ndarray:
    """The level of the look with this index for each alpha of GRID; it never falls."""
    return np.maximum.accumulate([levels(looks, float(alpha))[look] for alpha in GRID])


def repeated_p(looks: tuple[int, ...], look: int, p: float) -> float:
    """The p-value of a difference at the look with this index, allowing for all looks: the smallest alpha at which its
    repeated interval leaves out 0. It is below ALPHA where that of 95 % does. p: of the look's own test.
    """
    if not np.isfinite(p):
        return np.nan
    if (p < levels(looks)[look]) != ((found := interpolated(looks, look, p)) < ALPHA):  # between two points of GRID
        return ALPHA if found < ALPHA else float(np.nextafter(ALPHA, 0))
    return found


def interpolated(looks: tuple[int, ...], look: int, p: float) -> float:
    return float(np.exp(np.interp(np.log(max(p, 1e-300)), np.log(level_grid(looks, look)), np.log(GRID))))


def last_look(looks: Sequence[int], num_seeds: int) -> int | None:
    """The index of the last look that so many seeds are enough for; None: the first is still to come."""
    return max((i for i, look in enumerate(looks) if look <= num_seeds), default=None)
