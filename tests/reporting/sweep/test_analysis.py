"""The analysis of a sweep's result: grids, slice plots, scores, costs, what reuse saved."""

import math

import numpy as np
import pytest
from support.sweeping import by_seed, full_grid, pruned_search, stage, sweep, trial

from premed.reporting.sweep.analysis import (
    Spread,
    field_pairs,
    ranking,
    reuse_savings,
    score_grid,
    slice_plot,
    trial_cost,
    trial_score,
)
from premed.reporting.sweep.summary import reuse_lines

RATIO, EPOCHS, DECAY = "pretext.mask_ratio", "pretrain.epochs", "finetune.layer_decay"


# ---- grids and slice plots


def test_a_cell_is_the_mean_and_deviation_over_seeds_and_over_the_other_fields():
    grid = score_grid(result := full_grid(), RATIO, EPOCHS)
    cells = by_seed(result).groupby([RATIO, EPOCHS])["score"].agg(["mean", "std", "size"])
    assert grid.rows.labels == ["0.3", "0.5", "0.75"] and grid.columns.labels == ["20", "40"]
    assert np.allclose(np.reshape(grid.cells, (6, 3)), cells.to_numpy())
    assert (grid.pooled, grid.num_seeds) == ([DECAY], 2)


def test_a_trial_that_was_stopped_failed_or_has_no_number_is_in_no_cell():
    trials = [trial(0, {"a": 1}, {"0": 0.5}), trial(1, {"a": 1}, {"0": 0.1}, state="stopped")]
    trials += [trial(2, {"a": 2}, {"0": math.nan}), trial(3, {"a": 2}, state="failed"), trial(4, {"b": 0}, {"0": 0.9})]
    grid = score_grid(sweep({"a": [1, 2]}, trials), "a", None)
    assert grid.cells[0][0].mean == 0.5 and grid.cells[0][0].num == 1 and grid.cells[1][0].num == 0


def test_without_numbers_by_seed_a_cell_has_the_trial_s_own():
    grid = score_grid(sweep({"a": [1]}, [trial(0, {"a": 1}, values=[0.7])]), "a", None)
    assert grid.cells[0][0].mean == 0.7 and math.isnan(grid.cells[0][0].std)


@pytest.mark.parametrize(("mode", "expected"), [("max", [0.0, 0.5, 1.0]), ("min", [1.0, 0.5, 0.0])])
def test_the_best_cell_is_the_highest_or_the_lowest_as_the_mode_says(mode, expected):
    trials = [trial(i, {"a": i}, {"0": value}) for i, value in enumerate([0.2, 0.3, 0.4])]
    grid = score_grid(sweep({"a": [0, 1, 2, 3]}, trials), "a", None)
    assert np.allclose(grid.relative(mode)[:, 0], [*expected, math.nan], equal_nan=True)


def test_fields_are_paired_by_importance_and_stand_as_in_the_space():
    assert field_pairs(full_grid()) == [(RATIO, EPOCHS), (EPOCHS, DECAY), (RATIO, DECAY)]
    assert field_pairs(sweep({"a": [1, 2]}, [])) == [("a", None)] and field_pairs(sweep({}, [])) == []


def test_a_grid_that_would_be_wide_is_transposed():
    assert field_pairs(sweep({"a": [1, 2], "b": [*range(9)]}, [])) == [("b", "a")]


def test_points_stand_at_their_values_and_means_are_over_finished_trials():
    plot, means = slice_plot(result := full_grid(), DECAY), by_seed(full_grid()).groupby(DECAY)["score"].mean()
    assert plot.scale == "categorical" and np.allclose(plot.means, means) and len(plot.points) == len(result.trials)
    result = pruned_search()
    points = {point.number: point for point in slice_plot(result, "finetune.lr").points}
    assert {number for number, point in points.items() if point.is_stopped} == {1, 2, 5, 7, 8, 10}
    assert points[3].x == result.trials[3].setting["finetune.lr"] and 4 not in points and 11 not in points


# ---- scores


def test_a_trial_s_score_is_the_sweep_s_own_with_the_deviation_over_its_seeds():
    assert trial_score(trial(0, {}, {"0": 0.4, "1": 0.6})) == Spread(0.5, pytest.approx(np.std([0.4, 0.6], ddof=1)), 2)
    assert math.isnan(trial_score(trial(0, {}, {"0": 0.4})).std)


def test_a_stopped_trial_s_score_is_its_last_validation_s():
    assert trial_score(trial(0, {}, state="stopped", curve={2: 0.5, 10: 0.6, 1: 0.2})).mean == 0.6


@pytest.mark.parametrize("state", ["waiting", "running", "failed"])
def test_a_trial_without_an_end_has_no_score(state):
    assert math.isnan(trial_score(trial(0, {}, {"0": 0.4}, state=state)).mean)


@pytest.mark.parametrize(("mode", "numbers"), [("max", [2, 0, 1]), ("min", [1, 0, 2])])
def test_trials_are_ranked_by_the_mode(mode, numbers):
    trials = [trial(i, {}, {"0": value}) for i, value in enumerate([0.5, 0.4, 0.6, math.nan])]
    assert [each.number for each in ranking(sweep({}, trials, modes=[mode]))] == numbers


# ---- costs


def test_a_stage_is_paid_for_once_and_would_have_been_paid_for_by_every_trial():
    again = stage("pretrain", "p", 100, reused=True)
    trials = [
        trial(0, {}, stages=[stage("pretrain", "p", 100), again, stage("finetune", "a", 10)]),
        trial(1, {}, stages=[again, stage("finetune", "b", 20, 1500)]),
        trial(2, {}, stages=[stage("finetune", "c", math.nan, None)], state="failed"),
    ]
    savings = reuse_savings(result := sweep({}, trials))
    assert (savings.shared, savings.unshared) == (
        {"pretrain": 100, "finetune": 30},
        {"pretrain": 200, "finetune": 30},
    )
    assert (savings.saved, savings.fraction, savings.num_shared["pretrain"]) == (100, 100 / 230, 1)
    assert reuse_lines(result)[0] == (
        "All stages took 2.2 min; had every trial trained its own, 3.8 min: reuse saved 1.7 min (43%)."
    )
    costs = [trial_cost(each) for each in trials]
    assert [(each.total, each.reused) for each in costs] == [(110, set()), (120, {"pretrain"}), (0, set())]
    assert costs[1].peak_memory_mb == 1500 and math.isnan(costs[2].peak_memory_mb)


def test_the_grid_s_six_pretrainings_serve_three_trials_each():
    savings = reuse_savings(full_grid())
    numbers = savings.num_shared["pretrain"], savings.num_unshared["pretrain"], savings.num_shared["finetune"]
    assert numbers == (6, 18, 36) and savings.saved == pytest.approx(2 * savings.shared["pretrain"])
