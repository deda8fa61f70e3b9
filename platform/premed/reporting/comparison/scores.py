"""The scores of one run, from its table of cases: every score with its pseudo-values by patient, for `statistics`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from premed.errors import UserError
from premed.reporting import statistics
from premed.reporting.calibration import Answers, top_label
from premed.reporting.statistics import Scores

Columns = Mapping[str, Sequence[Any]]
"""A table of cases by columns, as `RunStore.columns` gives it."""
SCALES: dict[str, statistics.Scale] = {"dice": "share", "hd95": "positive", "mauc": "share", "accuracy": "share"}


@dataclass(frozen=True)
class ClassScores:
    """One score of one run: first its overall number, then those of its K classes. Undefined is NaN."""

    classes: tuple[str, ...]
    full: np.ndarray  # [1 + K]
    pseudo: np.ndarray  # [P, 1 + K]
    alone: np.ndarray  # [1 + K]: whether it is computed from one patient


@dataclass(frozen=True)
class ScoreTable:
    """All scores of one run."""

    main: str
    """The task's own, a key of `scores`."""
    scores: dict[str, ClassScores]
    cases: np.ndarray  # [N], sorted
    patients: np.ndarray  # [N], numbers from 0 on
    counts: dict[str, float]
    """n_missed, n_invented, n_excluded of a segmentation; n_undefined of a classification."""
    answers: Answers | None
    """Of a classification, for its calibration: of exclusive classes the likeliest, else each class."""
    majority: tuple[str, float] | None = None
    """Of exclusive classes, the one that most images have, and its share of them: its accuracy as a constant answer."""
    one_sided: dict[str, int] = field(default_factory=dict)
    """By class: in how many folds all labels are alike, so that they have no AUC; only of classes that others have."""

    @property
    def num_patients(self) -> int:
        return int(self.patients.max()) + 1


def score_table(folds: Sequence[Columns], main: str | None, exclusive: bool = False) -> ScoreTable:
    """The scores of a run. main: the task's own, if it is known; exclusive: each image has one class.

    folds: its table of cases or, of a cross-validated run, those of its folds. Scores that are means over images are
    means over those of all folds; an AUC, for which the answers of one network are ranked, is the mean of the folds'.
    Raises UserError if a case or a patient is in two of them.
    """
    columns = joined(folds)
    cases, of_fold = np.array(columns["case"], str), np.repeat(np.arange(len(folds)), [len(f["case"]) for f in folds])
    order = np.argsort(cases)
    for kind in ("case", "patient"):  # the networks of one fold have seen the other's, where the data changed between
        several = Counter(each for fold in folds for each in set(map(str, fold[kind])))
        if twice := [each for each, num in several.items() if num > 1]:
            remedy = "run all folds on one state of the data, or compare one fold, as in --where task.fold=0"
            raise UserError(f"{min(twice)}: the {kind} is in the test part of two folds; {remedy}")
    patients = np.unique(np.array(columns["patient"], str)[order], return_inverse=True)[1]

    def numbers(kind: str, classes: Sequence[str]) -> np.ndarray:
        """[N, K] of the columns `<kind>/<class>`."""
        return np.array([columns[f"{kind}/{name}"] for name in classes], float).T[order]

    answers, majority, one_sided = None, None, {}
    if regions := class_names(columns, "dice"):
        scores = {
            kind: with_mean(regions, statistics.means(numbers(kind, regions), patients)) for kind in ("dice", "hd95")
        }
        states = [state for name in regions for state in columns[f"state/{name}"]]
        words = {"n_missed": "missed", "n_invented": "invented", "n_excluded": "absent"}
        counts = {count: float(states.count(word)) for count, word in words.items()}
    else:
        classes = class_names(columns, "y")
        truth, answer = numbers("y", classes), numbers("p", classes)
        in_fold = of_fold[order] if len(folds) > 1 else None
        without = {name: sum(len({*fold[f"y/{name}"]} & {0.0, 1.0}) < 2 for fold in folds) for name in classes}
        one_sided = {name: num for name, num in without.items() if 0 < num < len(folds)}
        scores = {"mauc": with_mean(classes, statistics.aucs(truth, answer, patients, in_fold))}
        if exclusive or main == "accuracy":
            scores["accuracy"] = ClassScores(classes, *statistics.means(correct(truth, answer), patients))
            shares = truth.mean(axis=0)
            majority = classes[int(shares.argmax())], float(shares.max())
        counts = {"n_undefined": float(np.isnan(scores["mauc"].full[1:]).sum())}
        answers = top_label(truth, answer) if "accuracy" in scores else Answers(truth, answer)
    main = main or next(iter(scores))
    return ScoreTable(main, scores, cases[order], patients, counts, answers, majority, one_sided)


def joined(folds: Sequence[Columns]) -> Columns:
    """One table of the cases of all folds."""
    return folds[0] if len(folds) == 1 else {name: [cell for fold in folds for cell in fold[name]] for name in folds[0]}


def class_names(columns: Columns, kind: str) -> tuple[str, ...]:
    return tuple(name.partition("/")[2] for name in columns if name.startswith(f"{kind}/"))


def with_mean(classes: tuple[str, ...], scores: Scores) -> ClassScores:
    """The scores of classes with, as the overall number, their mean over the classes that are defined."""
    defined = ~np.isnan(scores.full)

    def mean(of: np.ndarray) -> np.ndarray:
        """`of` [..., K] with its mean over the defined classes before it: [..., 1 + K]."""
        overall = of[..., defined].mean(axis=-1) if defined.any() else np.full(of.shape[:-1], np.nan)
        return np.concatenate([overall[..., None], of], axis=-1)

    return ClassScores(classes, mean(scores.full), mean(scores.pseudo), np.insert(scores.alone, 0, scores.alone.any()))


def correct(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """[N, 1 + K]: whether the likeliest class is the true one, for all images and for those of each class."""
    likeliest, true = answer.argmax(axis=1, keepdims=True), truth.argmax(axis=1, keepdims=True)
    is_correct = np.where(np.isnan(truth).any(axis=1, keepdims=True), np.nan, likeliest == true)
    return np.concatenate([is_correct, np.where(true == np.arange(truth.shape[1]), is_correct, np.nan)], axis=1)
