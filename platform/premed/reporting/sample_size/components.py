"""Variance components of the difference between an arm and its baseline: what varies it, and how much.

A run's pseudo-value of a patient (`statistics`) is, with i a pre-training, j a fine-tuning of it and p a patient,

    mean + A_i + B_ij + C_p + AC_ip + BC_ijp

all effects random and independent. `pretraining` is the variance of A, `finetuning` of B, `patients` of C; AC and BC,
what is of one patient and one training together, are the mixtures. They are estimated by the analysis of variance of
the design, as far as it tells them apart (Searle, Casella, McCulloch: Variance Components, 1992); one that comes out
negative is 0.

Shapes: S independent seeds, J fine-tunings of one pre-training, P patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from premed.reporting.statistics import variances

CAUTION = 0.8
"""The one-sided confidence limit of a variance by which a cautious plan is made."""


@dataclass(frozen=True)
class Side:
    """The variance components of one arm's mean, or of a paired difference, without the patients that both share."""

    pretraining: float
    finetuning: float
    pretraining_patients: float
    finetuning_patients: float
    is_pretrained: bool
    """Whether it has pre-trainings that could be repeated with another seed."""

    def scaled(self, share: float) -> "Side":
        """With `share` of every variance."""
        names = ("pretraining", "finetuning", "pretraining_patients", "finetuning_patients")
        return replace(self, **{name: share * getattr(self, name) for name in names})

    def __add__(self, other: "Side") -> "Side":
        return Side(
            self.pretraining + other.pretraining,
            self.finetuning + other.finetuning,
            self.pretraining_patients + other.pretraining_patients,
            self.finetuning_patients + other.finetuning_patients,
            self.is_pretrained or other.is_pretrained,
        )


@dataclass(frozen=True)
class Components:
    """All variance components of a difference. Of a paired one the two sides are its halves."""

    arm: Side
    baseline: Side
    patients: float

    @property
    def difference(self) -> Side:
        return self.arm + self.baseline


@dataclass(frozen=True)
class Group:
    """What one analysis of variance is given: an arm, or the difference of two on the seeds that both have."""

    runs: Sequence[np.ndarray]
    """By independent seed, the pseudo-values [J, P] of its fine-tunings."""
    is_pretrained: bool
    is_shared: bool
    """Whether all seeds stand on one pre-training."""

    @property
    def means(self) -> np.ndarray:
        """[S, P]: what the test is made of."""
        return np.stack([each.mean(axis=0) for each in self.runs])

    @property
    def is_nested(self) -> bool:
        """Whether several pre-trainings have several fine-tunings, so that neither is confounded with the other."""
        return self.is_pretrained and not self.is_shared and max(map(len, self.runs)) > 1


@dataclass(frozen=True)
class Stated:
    """Standard deviations that a user states in place of estimates, and None for the others."""

    pretraining: float | None = None
    finetuning: float | None = None


def cautious_factor(df: float) -> float:
    """By how much a variance estimated from `df` degrees of freedom is raised to its upper limit (Browne 1995)."""
    from scipy.stats import chi2

    return df / float(chi2.ppf(1 - CAUTION, df))


def estimate_side(group: Group, stated: Stated, cautious: bool = False) -> Side:
    """The components of a group of at least two seeds, and what is stated or guessed in place of the others.

    Of one pre-training, the variance between pre-trainings is guessed to be that of the means of the seeds that were
    seen. Of one fine-tuning for each pre-training, the two are confounded: all is taken as the pre-trainings', so
    that a plan never counts on more fine-tunings. cautious: with the upper limits of the seeds' variances.
    """
    num_seeds, num_patients = group.means.shape
    over_seeds, residual = variances(group.means)
    factor = cautious_factor(num_seeds - 1) if cautious else 1.0
    between, mixture = num_seeds * over_seeds * factor, num_seeds * num_patients * residual
    seeds = max(between - mixture / num_patients, 0.0)
    if not group.is_pretrained:
        side = Side(0.0, seeds, 0.0, mixture, False)
    elif group.is_shared:
        side = Side(between, seeds, 0.0, mixture, True)
    elif group.is_nested:
        side = nested_side(group, seeds, mixture, cautious)
    else:
        side = Side(seeds, 0.0, mixture, 0.0, True)
    return with_stated(side, stated, group)


def nested_side(group: Group, seeds: float, mixture: float, cautious: bool) -> Side:
    """Pre-trainings and fine-tunings estimated each: the fine-tunings' variance is that within pre-trainings."""
    several = [each for each in group.runs if len(each) > 1]
    freedom = sum(len(each) - 1 for each in several)
    num_patients = several[0].shape[1]
    between = sum((len(each) - 1) * len(each) * variances(each)[0] for each in several) / freedom
    noise = sum((len(each) - 1) * each.size * variances(each)[1] for each in several) / freedom
    finetuning = max(between * (cautious_factor(freedom) if cautious else 1.0) - noise / num_patients, 0.0)
    each_of = 1 / np.mean([1 / len(each) for each in group.runs])  # fine-tunings, their harmonic mean
    pretraining = float(max(seeds - finetuning / each_of, 0.0))
    return Side(pretraining, finetuning, float(max(mixture - noise / each_of, 0.0)), float(noise), True)


def with_stated(side: Side, stated: Stated, group: Group) -> Side:
    """The side with what is stated; one of two that are confounded is the sum less the other."""
    confounded = group.is_pretrained and not group.is_shared and not group.is_nested
    if stated.pretraining is not None and side.is_pretrained:
        rest = max(side.pretraining - stated.pretraining**2, 0.0) if confounded else side.finetuning
        side = replace(side, pretraining=stated.pretraining**2, finetuning=rest)
    if stated.finetuning is not None:
        of_pretraining = side.pretraining
        if confounded and stated.pretraining is None:
            of_pretraining = max(side.pretraining - stated.finetuning**2, 0.0)
        side = replace(side, pretraining=of_pretraining, finetuning=stated.finetuning**2)
    return side


def estimate(groups: Sequence[Group], stated: Stated, cautious: bool = False) -> Components:
    """The components of a difference: of one group of paired differences, or of two groups, the arm and the baseline.

    What is stated is of the difference; each side has half of its variance.
    """
    num_patients = groups[0].means.shape[1]
    over_patients = patients_variance(groups) * (cautious_factor(num_patients - 1) if cautious else 1.0)
    residual = sum(variances(group.means)[1] for group in groups if len(group.runs) > 1)
    patients = max(over_patients - residual, 0.0) * num_patients
    halves = len(groups) == 2
    of_each = stated
    if halves:
        both = sum(group.is_pretrained for group in groups) == 2
        names = (stated.pretraining, stated.finetuning)
        pretraining, finetuning = (None if each is None else each / np.sqrt(2) for each in names)
        of_each = Stated(pretraining if both else stated.pretraining, finetuning)
    sides = [estimate_side(group, of_each, cautious) for group in groups]
    if halves:
        return Components(sides[0], sides[1], patients)
    return Components(sides[0].scaled(0.5), sides[0].scaled(0.5), patients)


def patients_variance(groups: Sequence[Group]) -> float:
    """The variance, over patients, of the mean of the difference: over P."""
    difference = groups[0].means.mean(axis=0) - sum(group.means.mean(axis=0) for group in groups[1:])
    return float(difference.var(ddof=1) / len(difference))
