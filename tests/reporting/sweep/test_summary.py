"""A sweep's result in sentences: the best setting, and how sure that is."""

import pytest
from support.sweeping import by_seed, full_grid, pruned_search, sweep, trial

from premed.reporting.sweep.summary import caveats, conclusion


def test_the_conclusion_names_the_best_setting_and_how_sure_it_is():
    result = full_grid()
    best = by_seed(result).groupby("number")["score"].mean().idxmax()
    start = "Best of 18 finished trials: mask_ratio 0.5, epochs 40, layer_decay 0.85 gave val Dice 0.749 ± 0.009"
    assert conclusion(result) == f"{start} over 2 seeds (trial {best})."
    text = " ".join(caveats(result))
    assert "the variance over seeds is not known" in text and "optimistic" in text and "not finished" not in text


def test_with_three_seeds_it_says_who_lies_within_their_deviation():
    trials = [trial(i, {"a": i}, {"0": x - 0.02, "1": x, "2": x + 0.02}) for i, x in enumerate([0.7, 0.69, 0.6])]
    text = " ".join(caveats(sweep({"a": [0, 1, 2]}, trials, seeds=[0, 1, 2])))
    assert "1 trial lies within the best's deviation" in text and "not known" not in text
    assert "The next best is trial 1 (a 1), 0.010 behind." in text


def test_an_unfinished_sweep_and_stopped_trials_are_named():
    text = " ".join(caveats(pruned_search()))
    assert "not finished: 1 trial to come" in text and "6 trials stopped early" in text


@pytest.mark.parametrize(
    ("states", "text"),
    [
        ([], "No trial is done yet."),
        (["waiting", "failed"], "No trial is done yet."),
        (["failed", "failed"], "No trial came to a score: all failed."),
    ],
)
def test_without_a_score_the_conclusion_says_so(states, text):
    assert conclusion(sweep({"a": [1]}, [trial(i, {"a": 1}, state=each) for i, each in enumerate(states)])) == text
