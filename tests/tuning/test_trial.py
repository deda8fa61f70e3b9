"""What a scheduler hears of a trial, and that a training waits for a verdict only where there is one to come."""

import math
from dataclasses import replace

import pytest

from premed.events import MetricsLogged
from premed.tuning.sweep import Hearing
from premed.tuning.trial import Validations, value_of


def heard(rows, known=(), mode="max"):
    """What is told of a fine-tuning of 60 steps with 6 validations: (number, best so far, step) or (step,) alone."""
    told = []
    take = lambda *what: told.append(what)  # noqa: E731
    validations = Validations("val/dice", mode, 6, dict(known), take, take)
    for step, metrics in rows:
        validations(MetricsLogged(step, 60, 0, metrics))
    return told


def test_the_best_so_far_is_told_of_each_validation_and_points_of_the_curve_are_none():
    rows = [(5, {"train/loss": 1.0}), (10, {"val/dice": 0.3}), (20, {"val/dice": 0.2}), (30, {"val/dice": 0.4})]
    assert heard(rows) == [(1, 0.3, 10), (2, 0.3, 20), (3, 0.4, 30)]
    assert heard(rows, mode="min") == [(1, 0.3, 10), (2, 0.2, 20), (3, 0.2, 30)]


@pytest.mark.parametrize("metrics", [{"val/dice": math.nan}, {"val/mauc": 0.5}])
def test_training_goes_on_from_a_validation_without_the_number(metrics):
    """Else its workers would wait for ever, and the trial never fail."""
    assert heard([(10, metrics), (20, {"val/dice": 0.2})]) == [(10,), (2, 0.2, 20)]


def test_training_goes_on_from_a_validation_that_an_earlier_start_told_of():
    """Its checkpoint was older: the validation comes again, and the verdict is known."""
    rows = [(10, {"val/dice": 0.3}), (20, {"val/dice": 0.2}), (30, {"val/dice": 0.1})]
    assert heard(rows, known={1: 0.3, 2: 0.3}.items()) == [(10,), (20,), (3, 0.3, 30)]


def test_a_trial_hears_of_its_first_seed_s_fine_tuning_alone():
    shown, told = [], []
    hearing = Hearing(shown.append)
    hearing.ears["trial 1 seed 0"] = told.append
    mine = MetricsLogged(1, 2, 0, {"val/loss": 1.0}, kind="finetune", experiment="trial 1 seed 0")
    other = {"experiment": ""}, {"experiment": "trial 1 seed 1"}, {"kind": "pretrain"}
    events = [*(replace(mine, **change) for change in other), mine]
    for event in events:
        hearing(event)
    assert shown == events and told == [mine]


def test_costs_are_sums_over_stages():
    stages = [
        {"kind": "trunk", "seconds": 5.0, "peak_memory_mb": 10.0},
        {"kind": "cooldown", "seconds": 2.0, "peak_memory_mb": 30.0},
        {"kind": "finetune", "seconds": 3.0, "peak_memory_mb": 20.0, "summary": {"val/dice": 0.4}},
    ]
    metrics = "seconds", "pretrain_seconds", "finetune_seconds", "peak_memory_mb", "val/dice"
    assert [value_of(metric, stages) for metric in metrics] == [10.0, 7.0, 3.0, 30.0, 0.4]
