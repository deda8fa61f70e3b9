"""Grids whose trials get seeds until they are behind, simulated; `python tests/support/sweep_seeds.py` prints the table
of docs/seeds-auto.md."""

from typing import NamedTuple

import numpy as np

from premed.tuning.seeds import lead

LOOKS = (4, 6, 8, 10, 12)


class Outcome(NamedTuple):
    regret: float
    """How much worse the trial that is chosen truly is than the best."""
    regret_of_all: float
    """The same of the trial that all seeds of all trials would choose."""
    share: float
    """Of all seeds, those that were trained."""
    best_stopped: bool
    """Whether the truly best trial got no more seeds."""


def simulate(rng, spread, margin, trials=18, looks=LOOKS):
    """A grid one trial after the other. Standard deviations: 1 of a seed in a trial, 1 of a seed in all, `spread` of
    what trials truly are."""
    truth = spread * rng.standard_normal(trials)
    values = truth[:, None] + rng.standard_normal(looks[-1]) + rng.standard_normal((trials, looks[-1]))
    by_seed = [{str(seed): [float(value)] for seed, value in enumerate(row)} for row in values]
    best, trained, stopped = 0, looks[-1], set()
    for number in range(1, trials):
        for look in looks[:-1]:
            known = {seed: by_seed[number][seed] for seed in list(by_seed[number])[:look]}
            if lead(known, by_seed[best], looks, "max").interval[1] < margin:
                stopped.add(number)
                trained += look
                break
        else:
            trained += looks[-1]
            best = number if values[number].mean() > values[best].mean() else best
    of_all = int(values.mean(axis=1).argmax())
    return Outcome(
        truth.max() - truth[best], truth.max() - truth[of_all], trained / values.size, int(truth.argmax()) in stopped
    )


def simulated(spread, margin, num, seed=0):
    """The means over `num` grids."""
    rng = np.random.default_rng(seed)
    return Outcome(*np.mean([simulate(rng, spread, margin) for _ in range(num)], axis=0))


if __name__ == "__main__":
    print("| trials differ by | margin | seeds trained | loss | loss with all seeds | best trial stopped |")
    print("|---|---|---|---|---|---|")
    for of_trials in (0.0, 0.5, 1.0, 2.0, 4.0):
        for by in (0.0, 0.5, 1.0):
            found = simulated(of_trials, by, 1000)
            cells = (
                f"{found.share:.0%}",
                f"{found.regret:.3f}",
                f"{found.regret_of_all:.3f}",
                f"{found.best_stopped:.1%}",
            )
            print(f"| {of_trials:g} | {by:g} | {' | '.join(cells)} |".replace("%", " %"))
