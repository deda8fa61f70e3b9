"""`seeds: auto` in a sweep: a trial that is known to be no better than the best so far gets no more seeds.

Both are compared by their values at the same seeds, at the looks of `decide`: where the repeated confidence interval of
the mean difference lies below `decide.margin`, the trial is stopped. docs/seeds-auto.md has the test, and simulations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from premed.events import EventHandler, LookTaken
from premed.reporting.formatting import signed, span
from premed.reporting.sequential import levels
from premed.tuning.context import SweepContext
from premed.tuning.study import Study


@dataclass(frozen=True)
class Lead:
    """How far a trial is ahead of the best so far, at one look: in the metric's unit, positive where it is better."""

    num_seeds: int
    difference: float
    interval: tuple[float, float]
    """Allowing for all looks."""

    def __str__(self) -> str:
        return f"{signed(self.difference)} {span(self.interval, signed)} after {self.num_seeds} seeds"


def find_behind(
    context: SweepContext, study: Study, show: EventHandler, number: int, by_seed: Mapping[str, Sequence[float]]
) -> str:
    """How far a trial is behind the best so far, if it needs no more seeds, which is shown, too; else empty.

    by_seed: the trial's values so far.
    """
    search = context.sweep.search
    if (best := study.best()) is None:
        return ""
    found = lead(by_seed, best.notes["by_seed"], search.looks, context.modes[0])
    if found.interval[1] >= search.margin:
        return ""
    words = f"no better than trial {best.number}: {context.metrics[0]} {found}"
    show(LookTaken(f"trial {number} gets no more seeds, {words}"))
    return words


def lead(
    trial: Mapping[str, Sequence[float]], best: Mapping[str, Sequence[float]], looks: Sequence[int], mode: str
) -> Lead:
    """A trial's lead at the look with as many seeds as the trial has.

    trial, best: values by seed, the compared metric first; `best` has all seeds of `trial`. looks: planned numbers of
    seeds. mode: `max` or `min`, which way the metric is better.
    """
    from scipy.special import stdtrit

    sign = 1.0 if mode == "max" else -1.0
    differences = sign * np.array([values[0] - best[seed][0] for seed, values in trial.items()])
    number = len(differences)
    level = levels(tuple(looks))[list(looks).index(number)]
    error = float(differences.std(ddof=1)) / math.sqrt(number)
    mean, half = float(differences.mean()), float(stdtrit(number - 1, 1 - level / 2)) * error
    return Lead(number, mean, (mean - half, mean + half))
