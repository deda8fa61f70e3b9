"""Variance components against analyses of variance written out, and what a design does not tell apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support.two_way import TwoWay

from premed.reporting.comparison.result import Difference
from premed.reporting.sample_size.comparing import component_rows, false_claim, observed, of_patients, unplannable
from premed.reporting.sample_size.components import Group, Stated, cautious_factor, estimate
from premed.reporting.sample_size.power import Design, layout
from premed.reporting.statistics import interval

WORLD = TwoWay(0.03, 0.02, 0.05, 0.02, 0.04)
ALL = ("pretraining", "finetuning", "pretraining_patients", "finetuning_patients")


def drawn(num=4, each=1, patients=10, seed=0, world=WORLD):
    return world.draw(np.random.default_rng(seed), 0.02, num, each, patients)


def two_way(values):
    """Sums of squares written out: the mean squares of rows, columns and rest of values [S, P]."""
    num, patients = values.shape
    rows = sum(patients * (values[i].mean() - values.mean()) ** 2 for i in range(num)) / (num - 1)
    columns = sum(num * (values[:, p].mean() - values.mean()) ** 2 for p in range(patients)) / (patients - 1)
    total = sum(
        (values[i, p] - values[i].mean() - values[:, p].mean() + values.mean()) ** 2
        for i in range(num)
        for p in range(patients)
    )
    return rows, columns, total / ((num - 1) * (patients - 1))


def test_seeds_that_share_a_pre_training_tell_fine_tunings_and_guess_pre_trainings():
    values = drawn(1, 4)[0]
    found = estimate([Group([*values[:, None]], True, True)], Stated())
    rows, columns, rest = two_way(values)
    side = found.difference
    assert side.finetuning == pytest.approx((rows - rest) / 10) and side.finetuning_patients == pytest.approx(rest)
    assert found.patients == pytest.approx(max(columns - rest, 0) / 4)
    assert side.pretraining == pytest.approx(values.mean(axis=1).var(ddof=1))  # the guess
    assert side.pretraining_patients == 0


def test_a_fine_tuning_for_each_pre_training_is_all_taken_as_the_pre_training_s():
    values = drawn(5)[:, 0]
    rows, _, rest = two_way(values)
    side = estimate([Group([*values[:, None]], True, False)], Stated()).difference
    assert side.pretraining == pytest.approx((rows - rest) / 10) and side.pretraining_patients == pytest.approx(rest)
    assert side.finetuning == side.finetuning_patients == 0


def test_without_pre_trainings_seeds_are_the_fine_tunings():
    values = drawn(5)[:, 0]
    rows, _, rest = two_way(values)
    side = estimate([Group([*values[:, None]], False, False)], Stated()).difference
    assert side.finetuning == pytest.approx((rows - rest) / 10) and side.finetuning_patients == pytest.approx(rest)
    assert side.pretraining == 0 and not side.is_pretrained


def test_several_fine_tunings_of_several_pre_trainings_tell_all_apart():
    world = TwoWay(0.1, 0.05, 0.05, 0.04, 0.06)
    found = estimate([Group([*drawn(400, 3, 60, 1, world)], True, False)], Stated())
    for name in ALL:
        assert np.sqrt(getattr(found.difference, name)) == pytest.approx(getattr(world, name), rel=0.1), name
    assert np.sqrt(found.patients) == pytest.approx(0.05, rel=0.25)  # from 60 patients


@given(st.integers(0, 10**6), st.integers(3, 5), st.integers(1, 3))
def test_the_design_that_there_is_has_the_mean_squares_that_were_seen(seed, num, each):
    """Where no component is negative, layout is the inverse of estimate."""
    groups = [Group([*drawn(num, each, 8, seed, TwoWay(0.5, 0.3, 0.5, 0.02, 0.02))], True, False)]
    found, spread = estimate(groups, Stated()), observed(groups)
    again = layout(found, Design(num, each, 8))
    side = found.difference
    if min(side.pretraining, side.pretraining_patients, found.patients) > 0 and (each == 1 or side.finetuning > 0):
        assert again.seeds == pytest.approx(spread.seeds) and again.residuals == pytest.approx(spread.residuals)
        assert again.patients == pytest.approx(spread.patients) and list(again.sizes) == list(spread.sizes)


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_no_component_is_negative_and_cautious_ones_of_seeds_are_no_smaller(seed, pretrained, shared):
    groups = [Group([*drawn(4, 1, 6, seed)], pretrained, shared)]
    found, cautious = (estimate(groups, Stated(), care) for care in (False, True))
    for name in ALL:
        assert 0 <= getattr(found.difference, name) <= getattr(cautious.difference, name) + 1e-15
    assert 0 <= found.patients <= cautious.patients


def test_two_arms_with_seeds_of_their_own_keep_their_own_components_and_share_the_patients():
    ours, theirs = drawn(4, seed=1)[:, 0], drawn(6, seed=2)[:, 0]
    groups = [Group([*ours[:, None]], True, False), Group([*theirs[:, None]], False, False)]
    found = estimate(groups, Stated())
    (rows, _, rest), (other_rows, _, other_rest) = two_way(ours), two_way(theirs)
    assert found.arm.pretraining == pytest.approx(max(rows - rest, 0) / 10)
    assert found.baseline.finetuning == pytest.approx(max(other_rows - other_rest, 0) / 10)
    mean = ours.mean(axis=0) - theirs.mean(axis=0)
    assert found.patients == pytest.approx(max(mean.var(ddof=1) - rest / 4 - other_rest / 6, 0))


# ---- stated


def test_what_is_stated_is_taken_and_of_two_that_are_not_told_apart_the_other_is_the_rest():
    group = Group([*drawn(5, world=TwoWay(0.2, 0.1, 0.05, 0, 0.05))], True, False)
    total = estimate([group], Stated()).difference.pretraining
    side = estimate([group], Stated(finetuning=0.05)).difference
    assert (side.finetuning, side.pretraining) == pytest.approx((0.0025, total - 0.0025))
    side = estimate([group], Stated(pretraining=0.05)).difference
    assert (side.pretraining, side.finetuning) == pytest.approx((0.0025, total - 0.0025))
    side = estimate([group], Stated(0.3, 0.4)).difference
    assert (side.pretraining, side.finetuning) == pytest.approx((0.09, 0.16))


def test_what_is_stated_is_of_the_difference_also_where_each_arm_has_its_own_seeds():
    arms = [Group([*drawn(4, seed=seed)], True, False) for seed in (1, 2)]
    side = estimate(arms, Stated(0.3, 0.4)).difference
    assert (side.pretraining, side.finetuning) == pytest.approx((0.09, 0.16))
    mixed = estimate([arms[0], Group(arms[1].runs, False, False)], Stated(0.3, 0.4))
    assert (mixed.difference.pretraining, mixed.difference.finetuning) == pytest.approx((0.09, 0.16))
    assert mixed.baseline.pretraining == 0


def test_the_cautious_factor_is_the_upper_limit_of_a_variance():
    """80 of 100 estimated variances, times the factor, are above the true one."""
    variances = np.random.default_rng(0).standard_normal((20000, 3)).var(axis=1, ddof=1)
    assert (variances * cautious_factor(2) > 1).mean() == pytest.approx(0.8, abs=0.01)


# ---- in words


@pytest.mark.parametrize(
    ("pretrained", "shared", "each", "words"),
    [
        (True, True, 1, ["guess: as much", "from 4 seeds", "one pre-training's", "in that of test", "noise"]),
        (True, False, 1, ["one fine-tuning each", "in that of pre-tr", "from 10", "with fine-tuning ×", "in that of"]),
        (True, False, 2, ["from 4 pre-trainings", "4 degrees of freedom", "from 10", "estimated", "noise"]),
        (False, False, 1, ["no arm has one", "from 4 seeds", "from 10", "no pre-training", "noise"]),
    ],
)
def test_each_component_says_how_it_is_known(pretrained, shared, each, words):
    groups = [Group([*drawn(4, each)], pretrained, shared)]
    rows = component_rows(estimate(groups, Stated()), groups, Stated(), False)
    for row, word in zip(rows, words, strict=True):
        assert word in row.known
        assert np.isnan(row.sd) == row.known.startswith("in that of")
    stated = Stated(0.1, 0.2)
    first, second, *_ = component_rows(estimate(groups, stated), groups, stated, False)
    assert second.known == "stated" and (first.known == "stated") == pretrained


def test_what_cannot_be_planned_says_why_and_what_to_do():
    assert "one patient" in unplannable([], Stated())
    assert "one patient" in unplannable([Group([*drawn(3, 1, 1)], False, False)], Stated())
    two = [Group([*drawn(2)], True, False)]
    assert unplannable(two, Stated()).endswith("run more, or state it: --sd-finetuning and --sd-pretraining")
    assert unplannable(two, Stated(finetuning=0.1)).endswith("state it: --sd-pretraining")
    assert unplannable(two, Stated(0.1, 0.1)) == ""
    assert "nothing varies" in unplannable([Group([np.ones((1, 5))] * 3, False, False)], Stated())
    assert unplannable([Group([*drawn(3)], False, False)], Stated()) == ""


# ---- false claims


def claim_of(groups, stated=Stated(), margin=None):  # noqa: B008
    means = [group.means for group in groups]
    signed = [means[0], *(-each for each in means[1:])]
    value = sum(each.mean() for each in signed)
    of = interval(value, signed)
    found = Difference(
        value, (of.low, of.high), of.df, of.seeds, of.p, "paired", len(means[0]), of.p, "", (value, 0.0), ()
    )
    components = of_patients(groups, stated) if len(means[0]) < 3 else estimate(groups, stated)
    return false_claim(groups, found, components, margin), of, value


def test_the_chance_of_a_false_claim_over_patients_is_the_published_one():
    """Christodoulou et al. 2025: t_{n-1} of sqrt(n) (mean_B - mean_A) / sqrt(s_A² + s_B² - 2 s_A s_B r)."""
    rng = np.random.default_rng(3)
    ours, theirs = 0.81 + 0.1 * rng.standard_normal((2, 30)) + 0.05 * rng.standard_normal(30) + [[0.02], [0]]
    spread = (
        ours.var(ddof=1)
        + theirs.var(ddof=1)
        - 2 * ours.std(ddof=1) * theirs.std(ddof=1) * np.corrcoef(ours, theirs)[0, 1]
    )
    published = stats.t.cdf(-np.sqrt(30) * abs(ours.mean() - theirs.mean()) / np.sqrt(spread), 29)
    once = np.stack([ours - theirs] * 3) + np.array([[0.01], [0], [-0.01]])  # seeds that change no patient's mean
    found, of, value = claim_of([Group([*once[:, None]], True, False)])
    assert found.patients_only == pytest.approx(published)
    assert found.chance == pytest.approx(of.p / 2) and found.chance > published
    assert np.isnan([found.any_pretraining, found.below_margin]).all()


def test_the_chance_that_the_difference_is_below_the_margin():
    found, of, value = claim_of([Group([*drawn(4)], True, False)], margin=0.01)
    error = (of.high - value) / stats.t.ppf(0.975, of.df)
    assert found.below_margin == pytest.approx(stats.t.cdf((0.01 - abs(value)) / error, of.df))


def test_one_pre_training_s_claim_for_the_method_has_the_guessed_variance_in_it():
    values = drawn(1, 4)[0]
    found, of, value = claim_of([Group([*values[:, None]], True, True)], Stated(pretraining=0.5))
    variance = ((of.high - value) / stats.t.ppf(0.975, of.df)) ** 2
    df = of.df * ((variance + 0.25) / variance) ** 2
    assert found.any_pretraining == pytest.approx(stats.t.sf(abs(value) / np.sqrt(variance + 0.25), df))
    assert found.any_pretraining > 0.4 > found.chance


def test_of_two_seeds_the_stated_variance_of_seeds_is_in_the_claim():
    found, of, value = claim_of([Group([*drawn(2)], False, False)], Stated(finetuning=0.5))
    assert not of.seeds and found.chance > 0.4 > found.patients_only == pytest.approx(of.p / 2)
