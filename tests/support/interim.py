"""Comparisons whose seeds arrive while patients stay, simulated by the thousand; `python tests/support/interim.py`
prints the tables of docs/seeds-auto.md."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import t

from premed.reporting.sequential import GRID, level_grid, levels
from premed.reporting.statistics import combined

LOOKS = (4, 6, 8, 10, 12)


@dataclass(frozen=True)
class World:
    """Variances of a paired difference's effects; that of fine-tunings is 1, each on a pre-training of its own."""

    num_patients: int
    pretraining: float = 1.0
    patients: float = 1.0
    seed_patients: float = 2.25
    """Of a patient from seed to seed, with all other noise."""
    skewed: bool = False
    """Whether patients, and what they do from seed to seed, are exponential in place of normal."""
    fixed: bool = False
    """Whether there are no other patients: the true difference is that of these."""

    def draw(self, rng, difference, num, most=LOOKS[-1]):
        """Pseudo-values of differences [num, most seeds, patients]."""

        def effect(variance, *shape):
            values = rng.exponential(size=shape) - 1 if self.skewed and shape[2] > 1 else rng.standard_normal(shape)
            return np.sqrt(variance) * values

        patients = effect(self.patients, num, 1, self.num_patients)
        if self.fixed:
            patients = patients - patients.mean(axis=2, keepdims=True)
        seeds = effect(self.pretraining + 1, num, most, 1)
        return difference + seeds + patients + effect(self.seed_patients, num, most, self.num_patients)


class Looked(NamedTuple):
    """What compare's test finds at each look, [looks, num] each."""

    value: np.ndarray
    error: np.ndarray
    df: np.ndarray

    @property
    def p(self):
        return 2 * t.sf(np.abs(self.value) / self.error, self.df)

    def interval(self, level):
        """level: of each look [looks]."""
        reach = t.isf(np.asarray(level)[:, None] / 2, self.df) * self.error
        return self.value - reach, self.value + reach


def looked_at(values, looks=LOOKS):
    """The two-way analysis of variance of `statistics.interval`, of all simulations at once."""
    return Looked(*map(np.stack, zip(*(one_look(values[:, :num]) for num in looks), strict=True)))


def one_look(values):
    _, num_seeds, num_patients = values.shape
    seeds, patients = values.mean(axis=2), values.mean(axis=1)
    mean = seeds.mean(axis=1)
    rest = values - seeds[:, :, None] - patients[:, None] + mean[:, None, None]
    residual = (rest**2).sum(axis=(1, 2)) / ((num_seeds - 1) * (num_patients - 1)) / (num_seeds * num_patients)
    over_patients = patients.var(axis=1, ddof=1) / num_patients
    variance, df = combined([seeds.var(axis=1, ddof=1) / num_seeds], [num_seeds], over_patients, residual, num_patients)
    return mean, np.sqrt(variance), df


class Found(NamedTuple):
    """Of a design: shares of the simulations, and the mean number of seeds."""

    found: float
    """Stopped with an interval that leaves out 0."""
    small: float
    """Stopped because the difference is known to be smaller than the margin."""
    holds: float
    """The interval at the end holds the true difference."""
    seeds: float
    value: float
    """The mean of the difference that is told."""


def sequential(looked, truth=0.0, looks=LOOKS, margin=np.inf, level=None):
    """Stops at the first look that decides. margin: inf for none. level: of each look; None: those of the test."""
    low, high = looked.interval(levels(tuple(looks)) if level is None else level)
    different = (low > 0) | (high < 0)
    small = np.maximum(-low, high) < margin if np.isfinite(margin) else np.zeros_like(different)
    stops = different | small
    at = np.where(stops.any(axis=0), stops.argmax(axis=0), len(looks) - 1)
    here = lambda values: values[at, np.arange(len(at))]  # noqa: E731
    holds = (here(low) <= truth) & (truth <= here(high))
    value = here(looked.value)
    return Found(
        *(float(np.mean(each)) for each in (here(different), here(small & ~different), holds)),
        float(np.asarray(looks)[at].mean()),
        float(value.mean()),
    )


def simulated(world, difference, num, looks=LOOKS, seed=0, parts=4, **more):
    """(sequential, the share that a test with all seeds alone finds, the share that 5 % at each look find)."""
    rng, found = np.random.default_rng([seed, world.num_patients, int(8 * world.pretraining)]), []
    for _ in range(parts):  # they need not fit into memory together
        looked = looked_at(world.draw(rng, difference, num // parts, looks[-1]), looks)
        p = looked.p
        found.append((sequential(looked, difference, looks, **more), (p[-1] < 0.05).mean(), (p < 0.05).any(0).mean()))
    means = Found(*np.mean([each for each, _, _ in found], axis=0))
    return means, float(np.mean([each for _, each, _ in found])), float(np.mean([each for _, _, each in found]))


def holm(p):
    """Holm's correction of p-values [arms, num] over the arms."""
    order = p.argsort(axis=0)
    ordered = np.take_along_axis(p, order, axis=0) * np.arange(len(p), 0, -1)[:, None]
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, np.maximum.accumulate(ordered, axis=0), axis=0)
    return corrected


def several(world, differences, num, seed=0):
    """Which arms [arms, num] are found to differ from one baseline, where an arm that is decided gets no more seeds."""
    rng = np.random.default_rng([seed, len(differences)])
    baseline = world.draw(rng, 0.0, num)
    p = np.stack([looked_at(world.draw(rng, each, num) - baseline).p for each in differences])  # [arms, looks, num]
    grids = [np.log(level_grid(LOOKS, look)) for look in range(len(LOOKS))]
    repeated = np.stack([np.exp(np.interp(np.log(p[:, i]), grid, np.log(GRID))) for i, grid in enumerate(grids)])
    found, last = np.zeros(p[:, 0].shape, bool), np.ones(p[:, 0].shape)
    for now in repeated:
        last = np.where(found, last, now)
        found |= holm(last) < 0.05
    return found


NULL = [
    World(num_patients, pretraining, patients, skewed=skewed, fixed=fixed)
    for num_patients in (12, 60)
    for pretraining in (0.0, 1.0, 2.0)
    for patients, skewed, fixed in ((1.0, False, False), (1.0, True, False), (1.0, False, True), (0.0, False, False))
]
"""Pre-trainings that vary not, as much as and twice as much as fine-tunings."""
SKEWED = World(12, 0.0, 9.0, skewed=True)
"""Where a few skewed patients are nearly all that varies, the test of one look errs, too."""


def words(world):
    kind = "alike" if not world.patients else "skewed" if world.skewed else "fixed" if world.fixed else "normal"
    return f"{world.num_patients} | {kind}, {world.patients:g} | {world.pretraining:g}"


def percent(share):
    return f"{100 * share:.1f} %"


def table(columns, rows):
    for cells in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


def tables(num):
    rows = []
    for world in [*NULL, SKEWED]:
        found, fixed, naive = simulated(world, 0.0, num)
        rows.append([words(world), *map(percent, (naive, found.found, fixed, found.holds))])
    columns = ["patients", "their effects, variance", "variance of pre-trainings", "5 % at each look", "sequential"]
    table([*columns, "all 12 at once", "interval at the end holds"], rows)

    unit, rows = np.sqrt(2 + 2.25 / 30), []
    for size in (0.0, 0.6, 0.9, 1.2, 1.8, 3.0):
        found, fixed, _ = simulated(World(30), size * unit, num)
        cells = percent(fixed), percent(found.found), f"{found.seeds:.1f}", percent(found.holds)
        rows.append([f"{size:g}", *cells, f"{found.value / unit:.2f}"])
    columns = ["true difference", "all 12 seeds: found", "sequential: found", "seeds, mean"]
    table([*columns, "interval at the end holds", "mean of what is told"], rows)

    world, margin, rows = World(60, patients=0.25), 2.5 * unit, []
    for share in (0.0, 0.25, 0.5, 1.0):
        found, _, _ = simulated(world, share * margin, num, margin=margin)
        rows.append([f"{share:g}", percent(found.small), percent(found.found), f"{found.seeds:.1f}"])
    table(["true difference, of the margin", "less than the margin", "different", "seeds, mean"], rows)

    rows = []
    for power in (1, 2, 3):
        some = [simulated(World(30), size * unit, num, level=levels(LOOKS, 0.05, power))[0] for size in (0.9, 1.2, 1.8)]
        rows.append([f"share^{power}", *(f"{percent(each.found)}, {each.seeds:.1f}" for each in some)])
    table(["spent", *(f"found and seeds at {size}" for size in (0.9, 1.2, 1.8))], rows)


if __name__ == "__main__":
    tables(20_000)
