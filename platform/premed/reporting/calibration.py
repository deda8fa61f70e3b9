"""Calibration: whether what a network says with 70 % is right in 70 of 100, as the expected calibration error (ECE).

    ECE = Σ over bins of (images in the bin / all images) · |share that is positive − mean probability|

in NUM_BINS bins of equal mass: the probabilities' quantiles are the edges, as in scikit-learn's
`calibration_curve(strategy="quantile")`, and ties stay in one bin. Such bins err less than bins of equal width (Nixon
et al., Measuring Calibration in Deep Learning, CVPR Workshops 2019; Roelofs et al., Mitigating Bias in Calibration
Error Estimation, AISTATS 2022). All binned errors are too large all the same, for chance alone parts the two numbers of
a bin, most of all where the network is well calibrated: so beside the ECE as it is measured stands one less that bias.

The interval resamples patients, with all of their images, and is for the runs at hand. Percentiles of the resampled ECE
would never hold a true value near zero, since resampling adds the bias once more. A test is inverted in their place
(Carpenter, Test inversion bootstrap confidence intervals, J R Stat Soc B 61, 1999): the gaps of all bins are taken t
times as large as they were measured, noise is added to them as patients vary, and the interval has those ECE for which
the measured one is no surprise. Two things make it hold where gaps differ in kind (docs/compare.md has how often it
does): its lower end is also sought with only those gaps that exceed twice their error, and its upper end is never below
that of the mean gap, than which the ECE cannot be smaller.

Shapes: R runs, N images, K columns (classes), P patients, B bins, D draws.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from premed.rng import fold, key, uniform

NUM_BINS = 10
DRAWS = 1000
SCALES = np.concatenate([np.linspace(0, 1.5, 16), [1.75, 2, 2.5, 3]])
"""t: of the measured gaps."""
QUANTILES = 0.025, 0.5, 0.975
BLOCK = 2**15
"""Numbers of noise at a time, which stay in the processor's cache while they are used for all scales."""
CLEAR = 2.0
"""Errors that a gap must exceed to be one of the clear gaps."""


class Answers(NamedTuple):
    """The answers of one run: an outcome for each probability, of N images and K columns."""

    outcome: np.ndarray  # [N, K]: 1, 0, or NaN where it is not known
    probability: np.ndarray  # [N, K]


class Error(NamedTuple):
    """An expected calibration error: as it is measured, less its bias, and the interval; NaN where there is none."""

    measured: float
    value: float
    low: float
    high: float


class Point(NamedTuple):
    """A bin: the mean probability of its images, the share of them that is positive, and that share's interval."""

    predicted: float
    observed: float
    low: float
    high: float
    num_images: int


def top_label(truth: np.ndarray, answer: np.ndarray) -> Answers:
    """Of exclusive classes [N, K], the likeliest alone [N, 1]: its probability, and whether it is the true one."""
    chosen = answer.argmax(axis=1, keepdims=True)
    is_right = np.take_along_axis(truth, chosen, axis=1)
    unknown = np.isnan(truth).any(axis=1, keepdims=True)
    return Answers(np.where(unknown, np.nan, is_right), np.take_along_axis(answer, chosen, axis=1))


def bins_of(probability: np.ndarray) -> np.ndarray:
    """The bin, 0 to NUM_BINS - 1, of each probability [N], by their quantiles."""
    edges = np.quantile(probability, np.linspace(0, 1, NUM_BINS + 1))
    return np.searchsorted(edges[1:-1], probability)


def calibration_errors(
    runs: Sequence[Answers], weights: Sequence[float], patients: np.ndarray
) -> tuple[Error, list[Error], np.ndarray]:
    """The mean ECE of runs, over the columns and of each; and each run's, over the columns [R].

    weights: of the runs, whose sum is 1. patients: [N], numbers 0..P-1. A column of which nothing is known is left out.
    """
    gaps, noise = zip(*(gaps_of(run, patients) for run in runs), strict=True)
    c, e = np.stack(gaps), np.stack(noise, axis=1)  # [R, K, B], [D, R, K, B]
    known = np.array(np.isfinite(c).all(axis=(0, 2)))  # [K]
    by_run = np.abs(c).sum(axis=2)
    share = np.asarray(weights, float)[:, None] * known / max(known.sum(), 1)  # [R, K]
    columns = [np.where(np.arange(len(known)) == k, np.asarray(weights, float)[:, None], 0) for k in range(len(known))]
    undefined = Error(*[np.nan] * 4)
    whole = error(c, e, share) if known.any() else undefined
    each = [error(c, e, column) if known[k] else undefined for k, column in enumerate(columns)]
    with np.errstate(invalid="ignore"):
        return whole, each, by_run[:, known].mean(axis=1) if known.any() else np.full(len(runs), np.nan)


def error(gaps: np.ndarray, noise: np.ndarray, weights: np.ndarray) -> Error:
    """The weighted sum of the ECE of gaps [R, K, B], with noise [D, R, K, B] and weights [R, K]; zeros are not read."""
    used = weights > 0
    c, e, w = gaps[used], noise[:, used], weights[used]  # [M, B], [D, M, B], [M]
    measured = float(w @ np.abs(c).sum(axis=1))
    if not np.isfinite(e[0]).all():  # of one patient
        return Error(measured, np.nan, np.nan, np.nan)
    weighted = c * w[:, None], e * w[:, None]
    low, middle, high = inverted(*weighted, measured)
    clear = np.where(np.abs(c) > CLEAR * e.std(axis=0), weighted[0], 0)
    if clear.any() and not np.array_equal(clear, weighted[0]):
        low = min(low, inverted(clear, weighted[1], measured)[0])
    mean_gaps = weighted[0].sum(axis=1)
    reach = 1.96 * float((weighted[1].sum(axis=2) @ np.sign(mean_gaps)).std())
    return Error(measured, middle, low, min(max(high, float(np.abs(mean_gaps).sum()) + reach), 1.0))


def inverted(gaps: np.ndarray, noise: np.ndarray, measured: float) -> list[float]:
    """The ECE at which `measured` is the 97.5th, the 50th and the 2.5th percentile: low, median, high.

    gaps: [M, B], whose absolute sum is an ECE; noise: [D, M, B].
    """
    e, c = noise.reshape(len(noise), -1), gaps.ravel()
    sums, shifts = np.empty((len(SCALES), len(e))), SCALES[:, None] * c
    rows = max(BLOCK // len(c), 1)
    for first in range(0, len(e), rows):
        some = e[first : first + rows]
        shifted = np.empty_like(some)
        for shift, of_scale in zip(shifts, sums[:, first : first + rows], strict=True):
            np.add(some, shift, out=shifted)
            np.abs(shifted, out=shifted).sum(axis=1, out=of_scale)
    levels = np.maximum.accumulate(np.quantile(sums, QUANTILES, axis=1), axis=1)  # [quantiles, scales]
    true = float(np.abs(gaps).sum())
    return [true * float(np.interp(measured, levels[i], SCALES, left=0.0)) for i in (2, 1, 0)]


def gaps_of(run: Answers, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A run's gaps [K, B], each over all images, and their noise [D, K, B]: NaN where nothing is known."""
    num, draws = int(patients.max()) + 1, resampled(int(patients.max()) + 1)
    gaps, noise = [], []
    for y, p in zip(run.outcome.T, run.probability.T, strict=True):
        known = ~np.isnan(y)
        who = patients[known]
        if not known.any():
            gaps.append(np.full(NUM_BINS, np.nan))
            noise.append(np.full((DRAWS, NUM_BINS), np.nan))
            continue
        place = who * NUM_BINS + bins_of(p[known])
        sums = np.bincount(place, (y - p)[known], minlength=num * NUM_BINS).reshape(num, NUM_BINS)
        counts = np.bincount(who, minlength=num)
        gap = sums.sum(axis=0) / counts.sum()
        gaps.append(gap)
        parts = (sums - gap * counts[:, None]) / counts.sum() * inflation(np.count_nonzero(counts))
        noise.append(draws @ parts)
    return np.stack(gaps), np.stack(noise, axis=1)


@lru_cache(maxsize=1)  # all runs of a comparison have the same patients
def resampled(num_patients: int) -> np.ndarray:
    """[D, P]: how often each patient is drawn, less one."""
    keys = fold(np.full(DRAWS, key("calibration", num_patients), np.int64), np.arange(DRAWS))
    drawn = (uniform(keys, num_patients).astype(float) * num_patients).astype(np.intp)
    places = drawn + num_patients * np.arange(DRAWS)[:, None]
    times = np.bincount(places.ravel(), minlength=DRAWS * num_patients).reshape(DRAWS, num_patients)
    return times - 1.0


@lru_cache
def inflation(num_patients: int) -> float:
    """By how much resampled patients vary too little: P / (P - 1), and Student's t in place of the normal."""
    from scipy.stats import norm, t

    if num_patients < 2:
        return float("nan")
    return float(np.sqrt(num_patients / (num_patients - 1)) * t.ppf(0.975, num_patients - 1) / norm.ppf(0.975))


def reliability(runs: Sequence[Answers], patients: np.ndarray, column: int | None = None) -> list[Point]:
    """The bins of all runs' answers together, of one column or of all; empty where nothing is known."""
    picked = [slice(None) if column is None else slice(column, column + 1)] * len(runs)
    y = np.concatenate([run.outcome[:, some].ravel() for run, some in zip(runs, picked, strict=True)])
    p = np.concatenate([run.probability[:, some].ravel() for run, some in zip(runs, picked, strict=True)])
    who = np.concatenate([np.repeat(patients, run.outcome[:, some].shape[1])
                          for run, some in zip(runs, picked, strict=True)])  # fmt: skip
    known = ~np.isnan(y)
    y, p, who = y[known], p[known], who[known]
    if not len(y):
        return []
    found, draws = np.unique(bins_of(p), return_inverse=True)[1], resampled(int(patients.max()) + 1)
    counts = np.bincount(found)
    predicted, observed = np.bincount(found, p) / counts, np.bincount(found, y) / counts
    parts = np.zeros((draws.shape[1], len(counts)))
    np.add.at(parts, (who, found), (y - observed[found]) / counts[found])
    drawn = observed + draws @ (parts * inflation(len(np.unique(who))))  # [D, B]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0).clip(0, 1)
    rows = zip(predicted.tolist(), observed.tolist(), low.tolist(), high.tolist(), counts.tolist(), strict=True)
    return [Point(*row) for row in rows]
