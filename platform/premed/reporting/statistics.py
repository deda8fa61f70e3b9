"""How sure one can be of a score: for a new patient and a new seed, from several seeds scored on the same patients.

This is radiology's multi-reader multi-case problem, with seeds as its readers and patients as its cases. Each run's
score θ becomes one pseudo-value per patient, and the pseudo-values [seeds, patients] are analysed by a two-way
analysis of variance with random effects (Dorfman, Berbaum, Metz: Invest Radiol 27, 1992; Hillis: Stat Med 26, 2007).

A pseudo-value is θ + P · dθ/dw, w being the weight of a patient with all their images (the infinitesimal jackknife:
Jaeckel 1972; Efron 1982). So images of one patient count as the cluster that they are, and a class that only one
patient has needs no rule of its own. For AUCs it comes to DeLong's placement values, summed by patient (DeLong et al.:
Biometrics 44, 1988; Obuchowski: Biometrics 53, 1997). Leaving patients out one by one, as the first of these papers
does, gives nearly the same from 60 patients on; with 12, its intervals of AUC differences are too wide
(docs/compare.md).

Shapes: N images, K columns (classes), P patients, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Scale = Literal["plain", "share", "positive"]
SEEDS = 3
"""With fewer, the variance between seeds is not estimated."""
TINY = 1e-24
"""A variance below this is a rounding error."""


@dataclass(frozen=True)
class Interval:
    """A number and its confidence interval. NaN where it cannot be estimated."""

    value: float
    low: float
    high: float
    df: float
    p: float
    """Two-sided, of the hypothesis that the number is 0."""
    seeds: bool
    """Whether the interval holds for another seed too, or for these seeds alone."""


def interval(value: float, groups: Sequence[np.ndarray], scale: Scale = "plain", level: float = 0.95) -> Interval:
    """The interval of `value`, the sum of the groups' means over seeds, each group pseudo-values [S, P].

    One group [S, P] is a score, or the difference of two scores of the same seeds; two groups, Y and -Z, are a
    difference of scores whose seeds are not the same. All groups are of the same patients.

    The variance is the seeds' mean square plus what the patients' has beyond the residual, never less than the former
    (Hillis 2007), each over S·P. The degrees of freedom are Satterthwaite's but for one thing: the share w of the
    variance that seeds make up counts as w, not w². It is itself estimated from S-1 degrees of freedom, and with three
    seeds Satterthwaite's own formula finds a difference where there is none in up to 8 of 100 cases (docs/compare.md).
    With fewer than SEEDS seeds in a group it is the patients' variance alone.

    scale: what the interval is symmetric on. A share (AUC, Dice) near 1 can err further down than up, and a positive
    number (a distance) further up than down: theirs are made on the logit and the logarithm, and never leave [0, 1] or
    fall below 0. Differences are plain.
    """
    from scipy.stats import t

    sizes = [len(group) for group in groups]
    num_patients = groups[0].shape[1]
    if num_patients < 2:
        return Interval(value, np.nan, np.nan, np.nan, np.nan, False)
    over_patients = np.sum([group.mean(axis=0) for group in groups], axis=0).var(ddof=1) / num_patients
    if with_seeds := min(sizes) >= SEEDS:
        seeds, residuals = zip(*map(variances, groups), strict=True)
        variance, df = combined(seeds, sizes, over_patients, sum(residuals), num_patients)
    else:
        variance, df = over_patients, num_patients - 1
    if variance < TINY:  # all are perfect, or the same: no variance to estimate
        return Interval(value, np.nan, np.nan, np.nan, np.nan, with_seeds)
    error = np.sqrt(variance)
    low, high = limits(value, t.ppf((1 + level) / 2, df) * error, scale)
    return Interval(value, low, high, float(df), float(2 * t.sf(abs(value) / error, df)), with_seeds)


def combined(
    over_seeds: Sequence[Any], sizes: Sequence[int], over_patients: Any, residual: Any, num_patients: int
) -> tuple[Any, Any]:
    """The variance of the sum of groups' means, and its degrees of freedom: see `interval`.

    over_seeds: of each group the seeds' mean square over S·P; sizes: S of each; over_patients: the variance over
    patients of the groups' summed means, over P; residual: the sum of the groups' residual mean squares over S·P.
    Numbers, or arrays of one shape.
    The degrees of freedom are NaN where nothing varies.
    """
    total: Any = sum(over_seeds)
    rest = np.maximum(over_patients - residual, 0.0)
    variance = total + rest
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = sum(seeds**2 / (size - 1) for seeds, size in zip(over_seeds, sizes, strict=True))
        of_seeds = np.where(total > 0, total / variance * (squares / np.square(total)), 0.0)
        return variance, 1 / ((rest / variance) ** 2 / (num_patients - 1) + of_seeds)


def limits(value: float, reach: float, scale: Scale) -> tuple[float, float]:
    """`value` ± `reach`, computed on the scale, whose derivative at `value` converts `reach` (the delta method)."""
    if scale == "share" and 0 < value < 1:
        middle, reach = np.log(value / (1 - value)), reach / (value * (1 - value))
        low, high = 1 / (1 + np.exp(reach - middle)), 1 / (1 + np.exp(-reach - middle))
    elif scale == "positive" and value > 0:
        low, high = value * np.exp(-reach / value), value * np.exp(reach / value)
    else:
        low, high = value - reach, value + reach
    return float(low), float(high)


def variances(pseudo: np.ndarray) -> tuple[float, float]:
    """Mean squares of seeds and residual of pseudo-values [S, P], over S·P: their parts of the mean's variance."""
    seeds, patients, mean = pseudo.mean(axis=1, keepdims=True), pseudo.mean(axis=0, keepdims=True), pseudo.mean()
    num_seeds, num_patients = pseudo.shape
    residual = ((pseudo - seeds - patients + mean) ** 2).sum() / ((num_seeds - 1) * (num_patients - 1))
    return float(seeds.var(ddof=1) / num_seeds), float(residual / pseudo.size)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction over all comparisons that have a p-value; NaN stays NaN."""
    from statsmodels.stats.multitest import multipletests

    corrected, known = np.array(p, float), ~np.isnan(p)
    if known.any():
        corrected[known] = multipletests(corrected[known], method="holm")[1]
    return corrected.tolist()


class Scores(NamedTuple):
    """The scores of one run, with pseudo-values by patient. What is undefined is NaN."""

    full: np.ndarray  # [K]
    pseudo: np.ndarray  # [P, K], whose mean over patients is `full`
    alone: np.ndarray  # [K]: computed from one patient, so the variation between patients is unknown


def means(values: np.ndarray, patients: np.ndarray) -> Scores:
    """The means of `values` [N, K] over images; NaN is left out. patients: [N], numbers 0..P-1, all of which occur."""
    known = ~np.isnan(values)
    sums, counts = _by_patient(np.where(known, values, 0), patients), _by_patient(known, patients)
    total = counts.sum(axis=0)
    full = _over(sums.sum(axis=0), total)
    pseudo = full + len(counts) * _over(sums - counts * full, np.broadcast_to(total, sums.shape))
    return Scores(full, pseudo, (counts > 0).sum(axis=0) == 1)


def aucs(truth: np.ndarray, answer: np.ndarray, patients: np.ndarray, folds: np.ndarray | None = None) -> Scores:
    """The AUCs of `answer` [N, K] against `truth` [N, K] (0, 1, NaN: not known); ties count half.

    A patient's part is that of their positives against all negatives and of all positives against their negatives:
    DeLong's placement values, summed by patient as Obuchowski does it.
    folds: [N], of a cross-validation. An AUC is then the mean over the folds that have both kinds of labels, since the
    answers of two networks have no common order (Forman and Scholz: SIGKDD Explorations 12, 2010). Within a fold,
    deviations are from the mean of few patients, and each kind's m are enlarged by √(m / (m-1)), as DeLong's variance
    is: without, with two positive patients in each fold, a difference is found where there is none in 10 of 100 cases.
    """
    num_patients = int(patients.max()) + 1
    in_fold = [slice(None)] if folds is None else [folds == fold for fold in np.unique(folds)]
    by_class = []
    for y, x in zip(truth.T, answer.T, strict=True):
        parts = []
        for here in in_fold:
            known = ~np.isnan(y[here])
            parts.append(_auc(y[here][known], x[here][known], patients[here][known], num_patients, folds is not None))
        by_class.append(_mean_auc([part for part in parts if part], num_patients))
    full, pseudo, alone = zip(*by_class, strict=True)
    return Scores(np.array(full), np.stack(pseudo, axis=1), np.array(alone))


def _mean_auc(folds: Sequence[tuple[float, np.ndarray, bool]], num_patients: int) -> tuple[float, np.ndarray, bool]:
    """The mean of the folds' AUCs, with pseudo-values [P]; NaN of none."""
    if not folds:
        return np.nan, np.full(num_patients, np.nan), False
    auc = float(np.mean([each for each, _, _ in folds]))
    return auc, auc + num_patients * np.mean([part for _, part, _ in folds], axis=0), any(each for *_, each in folds)


def _auc(
    y: np.ndarray, x: np.ndarray, patients: np.ndarray, num_patients: int, enlarged: bool
) -> tuple[float, np.ndarray, bool] | None:
    """An AUC, its derivative in each patient's weight [P], and whether one patient has all of a kind of label; None
    where there is one kind of label only. It is NaN where an answer is. enlarged: as `aucs` says it of folds."""
    positive, negative = y == 1, y == 0
    num = positive.sum(), negative.sum()
    if not all(num):
        return None
    if np.isnan(x).any():
        return np.nan, np.full(num_patients, np.nan), False
    below = _share_below(x[positive], x[negative])  # of the negatives, for each positive
    above = 1 - _share_below(x[negative], x[positive])
    auc = float(below.mean())
    num_of = [len(np.unique(patients[some])) for some in (positive, negative)]
    scale = [np.sqrt(each / (each - 1)) if enlarged and each > 1 else 1.0 for each in num_of]
    part = scale[0] * np.bincount(patients[positive], (below - auc) / num[0], minlength=num_patients)
    part += scale[1] * np.bincount(patients[negative], (above - auc) / num[1], minlength=num_patients)
    return auc, part, 1 in num_of


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of `others` below each of `values`; ties count half."""
    others = np.sort(others)
    return (np.searchsorted(others, values) + np.searchsorted(others, values, side="right")) / 2 / len(others)


def _by_patient(values: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Sums [P, K] of values [N, K]."""
    return np.stack([np.bincount(patients, column, minlength=int(patients.max()) + 1) for column in values.T], axis=1)


def _over(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=np.asarray(counts) > 0)
