"""The score at more labels: a power law through the scores at nested shares of the labels, with its interval.

Learning curves of many models are near score = limit - factor · n^-exponent (Figueroa et al.: BMC Med Inform Decis Mak
12, 2012; Hestness et al. 2017). The curve's means vary with seeds and patients; the interval is that of the curves
through means drawn anew from both, each with its degrees of freedom (a Student's t for S-1 and P-1). It does not cover
that the law may be wrong where nothing was measured.

Shapes: K shares, S seeds, P patients, D draws.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from premed.reporting.statistics import SEEDS
from premed.rng import fold, key, uniform

LEAST = 4
"""Shares of the labels: with three, a law of three numbers fits whatever was measured."""
DRAWS = 2000
EXPONENTS = np.geomspace(0.05, 3.0, 48)


class Law(NamedTuple):
    """limit - factor · share^-exponent, of each draw [D]. A score of which lower is better has its sign changed."""

    limit: np.ndarray
    factor: np.ndarray
    exponent: np.ndarray

    def at(self, share: float) -> np.ndarray:
        return self.limit - self.factor * share**-self.exponent


def fit(shares: Sequence[float], scores: np.ndarray, most: float) -> Law:
    """The laws of least squares through scores [D, K], the higher the better, whose limit is at most `most`.

    Least squares in limit and factor for each of EXPONENTS, of which the best is taken. A score that does not rise with
    labels has factor 0.
    """
    x = np.asarray(shares, float)[None, :] ** -EXPONENTS[:, None]  # [exponents, K]
    centred = x - x.mean(axis=1, keepdims=True)
    slope = -(scores @ centred.T) / (centred**2).sum(axis=1)  # [D, exponents]
    factor = np.maximum(slope, 0.0)
    limit = scores.mean(axis=1, keepdims=True) + factor * x.mean(axis=1)
    above = limit > most
    factor = np.where(above, np.maximum((most - scores) @ x.T / (x**2).sum(axis=1), 0.0), factor)
    limit = np.where(above, most, limit)
    error = ((scores[:, None, :] - limit[..., None] + factor[..., None] * x) ** 2).sum(axis=-1)
    best = error.argmin(axis=1)
    rows = np.arange(len(scores))
    return Law(limit[rows, best], factor[rows, best], EXPONENTS[best])


def redrawn(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Means drawn anew [D, all K]: from groups of pseudo-values [S, P, K] on the same patients, each with own seeds."""
    from scipy.stats import chi2, norm

    num_patients = groups[0].shape[1]
    sizes = [group.shape[2] for group in groups]
    total = sum(sizes)
    width = len(groups) * (total + 1) + total + 1
    numbers = uniform(fold(np.arange(DRAWS, dtype=np.int64), key("forecast")), width).astype(float) + 2.0**-25
    columns = iter(numbers.T)

    def noise(covariance: np.ndarray, df: int) -> np.ndarray:
        """[D, K], normal with this covariance, over the root of χ²/df."""
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        normal = norm.ppf(np.stack([next(columns) for _ in range(len(covariance))], axis=1))
        return normal @ root.T / np.sqrt(chi2.ppf(next(columns), df) / df)[:, None]

    patients = np.concatenate([group.mean(axis=0) for group in groups], axis=1)  # [P, all K]
    of_patients = np.cov(patients, rowvar=False).reshape(total, total) / num_patients
    drawn = np.tile(patients.mean(axis=0), (DRAWS, 1))
    begin = 0
    for group, size in zip(groups, sizes, strict=True):
        here = slice(begin, begin + size)
        num_seeds = len(group)
        rest = group - group.mean(axis=0) - group.mean(axis=1, keepdims=True) + group.mean(axis=(0, 1))
        residual = np.einsum("spk,spl->kl", rest, rest) / ((num_seeds - 1) * (num_patients - 1))
        of_patients[here, here] -= residual / (num_seeds * num_patients)
        of_seeds = np.cov(group.mean(axis=1), rowvar=False).reshape(size, size) / num_seeds
        drawn[:, here] += noise(of_seeds, num_seeds - 1)
        begin += size
    return drawn + noise(of_patients, num_patients - 1)


def bounds(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of draws."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def refusal(num_shares: int, num_seeds: int) -> str:
    """Why there is no forecast; empty if there is one."""
    if num_shares < LEAST:
        return f"{num_shares} of {LEAST} shares of the labels that a power law needs"
    if num_seeds < SEEDS:
        return f"{num_seeds} of {SEEDS} seeds that all shares of the labels have"
    return ""
