"""One run's table of scores as what `stats` works on: every score with its pseudo-values by patient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from premed import stats
from premed.stats import Scores

Columns = Mapping[str, Sequence[Any]]
"""A table of scores by columns, as `RunStore.columns` gives it."""
SCALES: dict[str, stats.Scale] = {"dice": "share", "hd95": "positive", "mauc": "share", "accuracy": "share"}
LOWER_IS_BETTER = {"hd95"}


@dataclass(frozen=True)
class Sheet:
    """One score of one run: first its overall number, then those of its K classes. Undefined is NaN."""

    classes: tuple[str, ...]
    full: np.ndarray  # [1 + K]
    pseudo: np.ndarray  # [P, 1 + K]
    alone: np.ndarray  # [1 + K]: whether it hangs on one patient


@dataclass(frozen=True)
class Card:
    """All scores of one run."""

    score: str
    """The main one, a key of `sheets`."""
    sheets: dict[str, Sheet]
    cases: np.ndarray  # [N], sorted
    num_patients: int
    counts: dict[str, float]
    """What stands beside the scores: n_missed, n_invented, n_excluded; or n_undefined."""


def card(columns: Columns, score: str | None, exclusive: bool = False) -> Card:
    """The card of a run's table. score: the task's main one, if that is known; exclusive: each image has one class."""
    cases = np.array(columns["case"], str)
    order = np.argsort(cases)
    patients = np.unique(np.array(columns["patient"], str)[order], return_inverse=True)[1]

    def numbers(kind: str, classes: Sequence[str]) -> np.ndarray:
        """[N, K] of the columns `<kind>/<class>`."""
        return np.array([columns[f"{kind}/{name}"] for name in classes], float).T[order]

    if organs := names_of(columns, "dice"):
        sheets = {kind: averaged(organs, stats.means(numbers(kind, organs), patients)) for kind in ("dice", "hd95")}
        states = [state for name in organs for state in columns[f"state/{name}"]]
        words = {"n_missed": "missed", "n_invented": "invented", "n_excluded": "absent"}
        counts = {count: float(states.count(word)) for count, word in words.items()}
    else:
        classes = names_of(columns, "y")
        truth, answer = numbers("y", classes), numbers("p", classes)
        sheets = {"mauc": averaged(classes, stats.aucs(truth, answer, patients))}
        if exclusive or score == "accuracy":
            sheets["accuracy"] = sheet(classes, stats.means(hits(truth, answer), patients))
        counts = {"n_undefined": float(np.isnan(sheets["mauc"].full[1:]).sum())}
    return Card(score or next(iter(sheets)), sheets, cases[order], int(patients.max()) + 1, counts)


def names_of(columns: Columns, kind: str) -> tuple[str, ...]:
    return tuple(name.partition("/")[2] for name in columns if name.startswith(f"{kind}/"))


def sheet(classes: tuple[str, ...], scores: Scores) -> Sheet:
    """Of scores whose first column is the overall number."""
    return Sheet(classes, *scores)


def averaged(classes: tuple[str, ...], scores: Scores) -> Sheet:
    """Of scores of classes, whose overall number is the mean over those that are defined."""
    defined = ~np.isnan(scores.full)

    def mean(of: np.ndarray) -> np.ndarray:
        """`of` [..., K] with its mean over the defined classes before it: [..., 1 + K]."""
        overall = of[..., defined].mean(axis=-1) if defined.any() else np.full(of.shape[:-1], np.nan)
        return np.concatenate([overall[..., None], of], axis=-1)

    return Sheet(classes, mean(scores.full), mean(scores.pseudo), np.insert(scores.alone, 0, scores.alone.any()))


def hits(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """[N, 1 + K]: whether the likeliest class is the true one, for all images and for those of each class."""
    likeliest, true = answer.argmax(axis=1, keepdims=True), truth.argmax(axis=1, keepdims=True)
    right = np.where(np.isnan(truth).any(axis=1, keepdims=True), np.nan, likeliest == true)
    return np.concatenate([right, np.where(true == np.arange(truth.shape[1]), right, np.nan)], axis=1)
