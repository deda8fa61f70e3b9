"""The intervals against formulas written out, and against truths that are known because they were made up."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score
from support import simulation
from support.simulation import World

from premed.reporting import statistics


def made(seed, num=60, patients=9, classes=3, unknown=0.1):
    """Labels, answers with ties, and patients of unequal sizes."""
    rng = np.random.default_rng(seed)
    owners = np.concatenate([np.arange(patients), rng.integers(0, patients, num - patients) // 2])
    truth = (rng.random((num, classes)) < 0.4).astype(float)
    answer = np.round(rng.random((num, classes)) + 0.3 * truth, 1)
    truth[rng.random(truth.shape) < unknown] = np.nan
    return truth, answer, owners


def weighted_auc(y, x, weights):
    pairs = np.array([(a > b) + (a == b) / 2 for a in x[y == 1] for b in x[y == 0]]).reshape((y == 1).sum(), -1)
    one, two = weights[y == 1], weights[y == 0]
    return one @ pairs @ two / (one.sum() * two.sum())


def by_hand(statistic, weights, owners, patients):
    """The infinitesimal jackknife as it is defined: the score's slope in each patient's weight, by small steps."""
    step, score = 1e-5, statistic(weights)
    for p in range(patients):
        up, down = (statistic(weights + sign * step * (owners == p)) for sign in (1, -1))
        yield score + patients * (up - down) / (2 * step)


@pytest.mark.parametrize("seed", range(5))
def test_the_pseudovalues_of_aucs_are_their_slopes_in_the_patients_weights(seed):
    truth, answer, owners = made(seed)
    found = statistics.aucs(truth, answer, owners)
    for k in range(3):
        known = ~np.isnan(truth[:, k])
        y, x, whose = truth[known, k], answer[known, k], owners[known]
        assert found.full[k] == pytest.approx(weighted_auc(y, x, np.ones(len(y))))
        slopes = by_hand(lambda weights, y=y, x=x: weighted_auc(y, x, weights), np.ones(len(y)), whose, 9)
        np.testing.assert_allclose(found.pseudo[:, k], [*slopes], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_pseudovalues_of_means_are_their_slopes_in_the_patients_weights(seed):
    values, _, owners = made(seed, unknown=0.3)
    found = statistics.means(values, owners)
    for k in range(3):
        known = ~np.isnan(values[:, k])
        some = values[known, k]
        slopes = by_hand(lambda w, some=some: (w @ some) / w.sum(), np.ones(len(some)), owners[known], 9)
        np.testing.assert_allclose(found.pseudo[:, k], [*slopes], rtol=1e-6, atol=1e-6)


def test_with_many_patients_it_equals_leaving_out_one_by_one():
    truth, answer, _ = made(0, num=400, unknown=0)
    y, x, owners = truth[:, 0], answer[:, 0], np.arange(400) // 2
    left = [roc_auc_score(y[owners != p], x[owners != p]) for p in range(200)]
    jackknife = 199**2 / 200 * np.var(left, ddof=1)
    assert statistics.aucs(truth, answer, owners).pseudo[:, 0].var(ddof=1) / 200 == pytest.approx(jackknife, rel=0.03)


def test_with_one_image_per_patient_the_variance_of_an_auc_is_delongs():
    truth, answer, _ = made(1, num=80, unknown=0)
    y, x = truth[:, 0], answer[:, 0]
    pairs = np.array([[(a > b) + (a == b) / 2 for b in x[y == 0]] for a in x[y == 1]])
    delong = pairs.mean(1).var() / len(pairs) + pairs.mean(0).var() / len(pairs.T)
    found = statistics.aucs(truth, answer, np.arange(80)).pseudo[:, 0]
    assert found.var() / 80 == pytest.approx(delong)


def test_of_folds_with_few_patients_the_variance_of_the_mean_auc_is_delongs_with_its_degrees_of_freedom():
    """Deviations from the mean of two or three positive patients are too small."""
    _, answer, _ = made(2, num=48, unknown=0)
    folds, x = np.arange(48) % 4, answer[:, 0]
    y = (np.arange(48) < 4 * np.array([2, 3, 2, 5])[folds]).astype(float)
    found = statistics.aucs(y[:, None], x[:, None], np.arange(48), folds)
    variances = []
    for fold in range(4):
        ours, theirs = (x[(folds == fold) & (y == kind)] for kind in (1, 0))
        pairs = np.array([[(a > b) + (a == b) / 2 for b in theirs] for a in ours])
        variances.append(pairs.mean(1).var(ddof=1) / len(ours) + pairs.mean(0).var(ddof=1) / len(theirs))
    assert found.pseudo[:, 0].var() / 48 == pytest.approx(np.sum(variances) / 4**2)
    assert found.pseudo[:, 0].mean() == pytest.approx(found.full[0])


@given(st.integers(0, 10**6))
def test_pseudovalues_average_to_the_score(seed):
    truth, answer, owners = made(seed, num=24, patients=5)
    for found in (statistics.aucs(truth, answer, owners), statistics.means(truth, owners)):
        np.testing.assert_allclose(found.pseudo.mean(axis=0), found.full, atol=1e-9)


def test_a_class_without_both_labels_has_no_auc_and_one_of_a_single_patient_says_so():
    owners = np.array([0, 0, 1, 2, 2])
    truth = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1], [np.nan] * 5], float).T
    found = statistics.aucs(truth, np.linspace(0, 1, 20).reshape(5, 4), owners)
    assert np.isnan(found.full).tolist() == [False, True, False, True]
    assert np.isfinite(found.pseudo).all(axis=0).tolist() == [True, False, True, False]
    assert found.alone.tolist() == [True, False, False, False]


def test_a_mean_over_one_patient_s_images_says_so():
    found = statistics.means(np.array([[0.5, np.nan], [0.7, 0.2], [0.9, 0.4]]), np.array([0, 1, 1]))
    assert found.alone.tolist() == [False, True]
    assert found.full == pytest.approx([0.7, 0.3])


# ---- intervals


PSEUDO = np.random.default_rng(0).normal(size=(4, 20)) + np.random.default_rng(1).normal(size=20)


def test_the_variance_is_that_of_a_two_way_random_effects_analysis():
    num_seeds, num_patients = PSEUDO.shape
    mean, rows, columns = PSEUDO.mean(), PSEUDO.mean(axis=1), PSEUDO.mean(axis=0)
    between_seeds = num_patients * ((rows - mean) ** 2).sum() / (num_seeds - 1)
    between_patients = num_seeds * ((columns - mean) ** 2).sum() / (num_patients - 1)
    residual = ((PSEUDO - rows[:, None] - columns + mean) ** 2).sum() / ((num_seeds - 1) * (num_patients - 1))
    variance = (between_seeds + max(between_patients - residual, 0)) / PSEUDO.size
    share = between_seeds / PSEUDO.size / variance
    df = 1 / (share / (num_seeds - 1) + (1 - share) ** 2 / (num_patients - 1))
    reach = scipy_stats.t.ppf(0.975, df) * np.sqrt(variance)
    found = statistics.interval(mean, [PSEUDO])
    assert (found.low, found.high, found.df) == pytest.approx((mean - reach, mean + reach, df))
    assert found.seeds


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_fewer_than_three_seeds_give_a_t_interval_over_patients(num_seeds):
    pseudo = PSEUDO[:num_seeds]
    found, mean = statistics.interval(pseudo.mean(), [pseudo]), pseudo.mean(axis=0)
    reference = scipy_stats.ttest_1samp(mean, 0)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert found.p == pytest.approx(reference.pvalue) and not found.seeds


def test_without_patients_a_difference_of_other_seeds_is_welchs_test():
    one, two = (np.random.default_rng(seed).normal(size=(size, 1)) for seed, size in ((2, 4), (3, 6)))
    groups = [np.repeat(one, 5, axis=1), -np.repeat(two, 5, axis=1)]
    found = statistics.interval(one.mean() - two.mean(), groups)
    reference = scipy_stats.ttest_ind(one[:, 0], two[:, 0], equal_var=False)
    assert (found.p, found.df) == pytest.approx((reference.pvalue, reference.df))


def test_the_interval_of_a_share_is_symmetric_on_the_logit_and_stays_within_it():
    plain, found = (statistics.interval(0.95, [0.95 + 0.5 * PSEUDO], scale) for scale in ("plain", "share"))
    assert plain.high > 1 > found.high
    low, middle, high = (np.log(x / (1 - x)) for x in (found.low, found.value, found.high))
    assert high - middle == pytest.approx(middle - low) == pytest.approx((plain.high - 0.95) / (0.95 * 0.05))


def test_the_interval_of_a_distance_is_symmetric_on_the_logarithm():
    found = statistics.interval(2.0, [2 + 5 * PSEUDO], "positive")
    assert found.low > 0 and found.low * found.high == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("value", "pseudo"), [(0.0, np.zeros((3, 5))), (0.7, np.full((3, 5), 0.7)), (0.3, PSEUDO[:, :1])]
)
def test_where_nothing_varies_or_there_is_one_patient_there_is_no_interval(value, pseudo):
    found = statistics.interval(value, [pseudo])
    assert np.isnan([found.low, found.high, found.p]).all()


def test_holm_is_holms_step_down_and_leaves_out_what_has_no_p():
    assert statistics.holm([0.01, np.nan, 0.04, 0.03])[:1] == pytest.approx([0.03])
    np.testing.assert_allclose(statistics.holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06])
    assert statistics.holm([]) == [] and np.isnan(statistics.holm([np.nan])).all()


# ---- what is made up is known


@pytest.mark.parametrize("world", [World("dice", 3, 60), World("auc", 3, 12)], ids=["dice", "auc"])
def test_intervals_hold_what_they_say_and_find_no_difference_where_there_is_none(world):
    score, difference, _ = simulation.run(replace(world, gain=0.3), "seeds and patients", 200)
    *_, false = simulation.run(world, "seeds and patients", 200, seed=1)
    assert 0.92 <= score <= 0.98 and 0.92 <= difference <= 0.98  # 500 of them, and more worlds, in the slow test below
    assert 0.01 <= false <= 0.08


def test_intervals_that_leave_out_the_seeds_do_not_hold():
    _, difference, _ = simulation.run(World("dice", 3, 60, gain=0.3), "without seeds", 200)
    *_, false = simulation.run(World("dice", 3, 60), "without seeds", 200, seed=1)
    assert difference < 0.85 and false > 0.15


def test_intervals_that_count_images_as_patients_do_not_hold():
    score, _, _ = simulation.run(World("dice", 5, 12, gain=0.3), "without clusters", 200)
    *_, false = simulation.run(World("dice", 5, 12), "without clusters", 200, seed=1)
    assert score < 0.9 and false > 0.08


@pytest.mark.slow
@pytest.mark.parametrize("score", ["dice", "auc"])
@pytest.mark.parametrize(("num_seeds", "num_patients"), [(3, 12), (3, 60), (5, 12), (5, 60)])
@pytest.mark.parametrize("paired", [True, False])
def test_five_hundred_simulations_stay_within_bounds(score, num_seeds, num_patients, paired):
    world = World(score, num_seeds, num_patients, paired=paired)
    holds, difference, _ = simulation.run(replace(world, gain=0.3), "seeds and patients")
    *_, false = simulation.run(world, "seeds and patients", seed=1)
    assert 0.92 <= holds <= 0.98 and 0.92 <= difference <= 0.98
    assert (0.03 if paired else 0.01) <= false <= 0.07
