"""Made-up scores whose truth is known: how often intervals hold it. As a program: prints docs/compare.md's table.

A world has two strategies, seeds, patients with one to five images each, and noise between seed and image; strategies
differ by `gain`. Dice-like scores are a sigmoid of the sum of all effects, so they are skewed as Dice is; an AUC is
binormal; distances like HD95 are the exponential of all effects, with the long tail that they have.
"""

import sys
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from premed.reporting import statistics

SIMULATIONS = 500


@dataclass(frozen=True)
class World:
    """Standard deviations of the effects, and what is drawn of each."""

    score: str  # dice, hd95 or auc
    num_seeds: int
    num_patients: int
    gain: float = 0.0
    seed: float = 0.15  # of a training
    patient: float = 0.6  # of a patient, whoever looks
    liking: float = 0.35  # of a patient for one strategy
    image: float = 0.4  # of an image, whoever looks
    noise: float = 0.5  # of a training for an image
    paired: bool = True
    level: float = 1.2

    @property
    def patients(self):
        """[N]: whose the images are; clusters of one to five."""
        return np.repeat(np.arange(self.num_patients), 1 + np.arange(self.num_patients) % 5)

    def draw(self, rng):
        """Labels [N], and of each strategy the answers [S, N]."""
        patients, num = self.patients, self.num_patients
        labels = (rng.permutation(num) < 0.4 * num)[patients] != (
            rng.random(len(patients)) < 0.2
        )  # ill people's images
        common, images = rng.normal(size=num) * self.patient, rng.normal(size=len(patients)) * self.image
        answers = []
        for gain in (0.0, self.gain):
            own = (common + rng.normal(size=num) * self.liking)[patients]
            seeds = self.level + gain + rng.normal(size=(self.num_seeds, 1)) * self.seed
            rest = own + images + rng.normal(size=(self.num_seeds, len(patients))) * self.noise
            if self.score == "auc":
                answers.append(seeds * labels + rest)
            else:
                answers.append(np.exp(seeds + rest) if self.score == "hd95" else 1 / (1 + np.exp(-seeds - rest)))
        return labels.astype(float), answers

    def truth(self, gain, labels):
        """The expected score of a strategy, given which images are positive."""
        level, within = self.level + gain, 2 * self.noise**2 + 2 * self.image**2 + self.seed**2
        variance = self.seed**2 + self.patient**2 + self.liking**2 + self.image**2 + self.noise**2
        if self.score == "hd95":
            return float(np.exp(level + variance / 2))
        if self.score == "dice":
            points, weights = np.polynomial.hermite_e.hermegauss(61)
            return float((weights / (1 + np.exp(-level - np.sqrt(variance) * points))).sum() / weights.sum())
        positives, negatives = (np.bincount(self.patients, labels == each) for each in (1, 0))
        share = (positives * negatives).sum() / (positives.sum() * negatives.sum())
        between = within + 2 * (self.patient**2 + self.liking**2)
        return float((1 - share) * norm.cdf(level / np.sqrt(between)) + share * norm.cdf(level / np.sqrt(within)))

    def scores(self, labels, answers, patients):
        """Scores [S] and pseudo-values [S, P]."""
        if self.score == "auc":
            truth = np.repeat(labels[:, None], len(answers), axis=1)
            scores = statistics.aucs(truth, answers.T, patients)
        else:
            scores = statistics.means(answers.T, patients)
        return scores.full, scores.pseudo.T


METHODS = ("seeds and patients", "without seeds", "without clusters")


def intervals(world, labels, answers, method):
    """The intervals of the first strategy's score and of the second's difference to it."""
    patients = np.arange(len(labels)) if method == "without clusters" else world.patients
    (one, ours), (two, theirs) = (world.scores(labels, each, patients) for each in answers)
    groups = [theirs - ours] if world.paired else [theirs, -ours]
    if method == "without seeds":
        ours, groups = ours.mean(axis=0, keepdims=True), [sum(group.mean(axis=0, keepdims=True) for group in groups)]
    scale = "positive" if world.score == "hd95" else "share"
    return statistics.interval(one.mean(), [ours], scale), statistics.interval(two.mean() - one.mean(), groups)


def run(world, method, simulations=SIMULATIONS, seed=0):
    """The share of intervals that hold the score, and the difference; and the share of differences "found"."""
    rng = np.random.default_rng([seed, world.num_seeds, world.num_patients])
    drawn = [world.draw(rng) for _ in range(simulations)]
    scores, gains = (np.mean([world.truth(gain, labels) for labels, _ in drawn]) for gain in (0.0, world.gain))
    found = [intervals(world, *each, method) for each in drawn]
    holds = [(one.low <= scores <= one.high, two.low <= gains - scores <= two.high) for one, two in found]
    return *np.mean(holds, axis=0), np.mean([two.low > 0 or two.high < 0 for _, two in found])


def main():
    print("| score | seeds | patients | method | holds the score | holds the difference | false positives |")
    print("|---|---|---|---|---|---|---|")
    for score in ("dice", "auc", "hd95"):
        for num_seeds in (3, 5):
            for num_patients in (12, 60):
                world = World(score, num_seeds, num_patients)
                verdict_of(world, METHODS[0], METHODS[0])
                verdict_of(replace(world, paired=False), METHODS[0], "the same, unpaired")
                for method in METHODS[1:]:
                    verdict_of(world, method, method)


def verdict_of(world, method, name):
    one, two, _ = run(replace(world, gain=0.3), method)
    _, _, false = run(world, method, seed=1)
    cells = world.score, world.num_seeds, world.num_patients, name, f"{one:.1%}", f"{two:.1%}", f"{false:.1%}"
    print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    sys.exit(main())
