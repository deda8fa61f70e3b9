"""Scores of many resamples at once are those of the drawn rows, one resample after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.suite import examples

from premed.tasks.common import metrics, resamples

CLASSES = ("a", "b", "c")
seeds = st.integers(0, 2**32 - 1)


def drawn(rows, counts):
    """The rows of each resample, as often as they were drawn."""
    return [[row for row, count in zip(rows, each, strict=True) for _ in range(count)] for each in counts]


def table(rng, truth):
    """Rows with tied answers; truth [rows, classes]."""
    answers = rng.integers(0, 4, truth.shape) / 4
    return [
        {f"y/{c}": y for c, y in zip(CLASSES, ys, strict=True)}
        | {f"p/{c}": p for c, p in zip(CLASSES, ps, strict=True)}
        for ys, ps in zip(truth, answers, strict=True)
    ]


def dices(rng, num):
    """Rows with regions that some cases have in neither mask."""
    values = rng.choice([0, 0.5, 0.9, np.nan], (num, 3))
    return [
        {f"{kind}/{c}": value for c, value in zip(CLASSES, each, strict=True) for kind in ("dice", "hd95")}
        | {f"state/{c}": "both" for c in CLASSES}
        for each in values
    ]


def counted(rng, num, resamples=5):
    return rng.multinomial(num, np.full(num, 1 / num), resamples)


def equal(values, expected, name):
    np.testing.assert_allclose(values, [each.get(name, np.nan) for each in expected], rtol=1e-12)


@settings(deadline=None, max_examples=examples(100))
@given(seeds, st.integers(1, 12))
def test_mean_aucs(seed, num):
    rng = np.random.default_rng(seed)
    rows, counts = table(rng, rng.choice([0, 1, np.nan], (num, 3), p=[0.5, 0.4, 0.1])), counted(rng, num)
    expected = [metrics.auc_summary(each, CLASSES) for each in drawn(rows, counts)]
    equal(resamples.mean_aucs(rows, CLASSES, counts), expected, "mauc")


@settings(deadline=None, max_examples=examples(100))
@given(seeds, st.integers(1, 12))
def test_accuracies(seed, num):
    rng = np.random.default_rng(seed)
    truth = np.eye(3)[rng.integers(0, 3, num)]
    truth[rng.random(num) < 0.2] = np.nan
    rows, counts = table(rng, truth), counted(rng, num)
    expected = [metrics.accuracy_summary(each, CLASSES) for each in drawn(rows, counts)]
    equal(resamples.accuracies(rows, CLASSES, counts), expected, "accuracy")


@settings(deadline=None, max_examples=examples(100))
@given(seeds, st.integers(1, 12))
def test_mean_dices(seed, num):
    rng = np.random.default_rng(seed)
    rows, counts = dices(rng, num), counted(rng, num)
    expected = [metrics.segmentation_summary(each, CLASSES) for each in drawn(rows, counts)]
    equal(resamples.mean_dices(rows, CLASSES, counts), expected, "dice")


def test_an_answer_that_is_no_number_is_named():
    rows = [{"case": "one", "y/a": 1.0, "p/a": float("nan")}]
    with pytest.raises(ValueError, match="p/a of one is nan"):
        resamples.mean_aucs(rows, ("a",), np.ones((1, 1), int))
