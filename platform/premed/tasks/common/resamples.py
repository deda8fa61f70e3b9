"""Scores of resampled rows, many resamples at once: what a bootstrap of a large test part needs.

A resample is given by how often each row was drawn: `counts` [resamples, rows] int. The scores [resamples] are those
that `metrics` gives for the drawn rows; NaN where undefined.
"""

from collections.abc import Callable, Sequence

import numpy as np

from premed.tasks.common import metrics


def scores(counts: np.ndarray, of_class: Sequence[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]) -> np.ndarray:
    """Returns the mean over the classes that are defined in a resample; each gives sums and weights of `counts`."""
    sums, weights = (np.stack(parts) for parts in zip(*(each(counts) for each in of_class), strict=True))
    values = np.divide(sums, weights, out=np.full(sums.shape, np.nan), where=weights > 0)
    defined = (~np.isnan(values)).sum(0)
    return np.divide(np.nansum(values, 0), defined, out=np.full(len(counts), np.nan), where=defined > 0)


def mean_aucs(rows: metrics.Rows, classes: Sequence[str], counts: np.ndarray) -> np.ndarray:
    """Returns `mauc` of `metrics.auc_summary` for each resample."""
    truth, answers = metrics.columns(rows, "y", classes), metrics.probabilities(rows, classes)
    return scores(counts, [_wins(y, p) for y, p in zip(truth.T, answers.T, strict=True)])


def _wins(truth: np.ndarray, answer: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns the pairs that a class's positives win, ties by half, and all pairs, as a function of `counts`."""
    positive, negative = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    negative = negative[np.argsort(answer[negative])]
    first = np.searchsorted(answer[negative], answer[positive], "left")
    last = np.searchsorted(answer[negative], answer[positive], "right")

    def wins(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        below = np.zeros((len(counts), len(negative) + 1))
        np.cumsum(counts[:, negative], axis=1, out=below[:, 1:])
        drawn = counts[:, positive]
        return (drawn * (below[:, first] + below[:, last])).sum(1) / 2, drawn.sum(1) * below[:, -1]

    return wins


def accuracies(rows: metrics.Rows, classes: Sequence[str], counts: np.ndarray) -> np.ndarray:
    """Returns `accuracy` of `metrics.accuracy_summary` for each resample."""
    truth, answers = metrics.columns(rows, "y", classes), metrics.probabilities(rows, classes)
    right = np.where(np.isnan(truth).any(1), np.nan, truth.argmax(1) == answers.argmax(1))
    return scores(counts, [_sums(right)])


def mean_dices(rows: metrics.Rows, classes: Sequence[str], counts: np.ndarray) -> np.ndarray:
    """Returns `dice` of `metrics.segmentation_summary` for each resample."""
    return scores(counts, [_sums(column) for column in metrics.columns(rows, "dice", classes).T])


def _sums(values: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    known, filled = (~np.isnan(values)).astype(float), np.nan_to_num(values)
    return lambda counts: (counts @ filled, counts @ known)
