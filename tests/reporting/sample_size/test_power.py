"""The power of compare's test: against noncentral t where it is one, and against simulations of the whole test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.suite import examples
from support.two_way import TwoWay

from premed.reporting import statistics
from premed.reporting.sample_size.components import Components, Side
from premed.reporting.sample_size.power import Design, MeanSquares, fewest, layout, power, smallest_difference


def components(world, pretrained=(True, True)):
    """Of a world of `TwoWay`; what one side alone has, where only one has pre-trainings, is the arm's."""
    own = [pretrained[i] / sum(pretrained) if any(pretrained) else 0.0 for i in (0, 1)]
    sides = [
        Side(
            share * world.pretraining**2,
            world.finetuning**2 / 2,
            share * world.pretraining_patients**2,
            world.finetuning_patients**2 / 2,
            of,
        )
        for share, of in zip(own, pretrained, strict=True)
    ]
    return Components(sides[0], sides[1], world.patients**2)


def noncentral(difference, error, df, level=0.05):
    critical, shift = stats.t.ppf(1 - level / 2, df), difference / error
    below = stats.nct.cdf(-critical, df, shift)  # NaN where it is too small for SciPy
    return stats.nct.sf(critical, df, shift) + np.nan_to_num(below)


# ---- where the test is a t-test


@pytest.mark.parametrize("num_seeds", [3, 5, 12])
def test_where_seeds_alone_vary_it_is_a_t_test_over_seeds(num_seeds):
    world = layout(components(TwoWay(pretraining=0.03)), Design(num_seeds, 1, 20))
    for difference in (0.02, 0.05, 0.1):
        wanted = noncentral(difference, 0.03 / np.sqrt(num_seeds), num_seeds - 1)
        assert power(difference, world) == pytest.approx(wanted, abs=2e-3)
        assert power(difference, world, 0.01) == pytest.approx(
            noncentral(difference, 0.03 / np.sqrt(num_seeds), num_seeds - 1, 0.01), abs=2e-3
        )


@pytest.mark.parametrize("num_patients", [12, 40])
def test_where_patients_alone_vary_it_is_a_t_test_over_patients(num_patients):
    world = layout(components(TwoWay(patients=0.05)), Design(3, 1, num_patients))
    for difference in (0.01, 0.03, 0.05):
        wanted = noncentral(difference, 0.05 / np.sqrt(num_patients), num_patients - 1)
        assert power(difference, world) == pytest.approx(wanted, abs=2e-3)


def test_fewer_than_three_seeds_are_tested_over_patients():
    world = MeanSquares([2], [0.9], [0.001], 0.002, 15)
    assert power(0.1, world) == pytest.approx(noncentral(0.1, np.sqrt(0.003), 14), abs=1e-4)


def test_of_no_difference_it_is_the_test_s_level_or_less():
    world = layout(components(TwoWay(0.01, 0.01, 0.05, 0.02, 0.05)), Design(4, 1, 30))
    assert 0.02 < power(0.0, world) <= 0.055


def test_where_nothing_varies_or_there_is_one_patient_there_is_no_power():
    assert np.isnan(power(0.1, MeanSquares([3], [0.0], [0.0], 0.0, 12)))
    assert np.isnan(power(0.1, MeanSquares([3], [0.1], [0.0], 0.1, 1)))
    assert np.isnan(power(0.1, MeanSquares([2], [0.0], [0.0], 0.0, 12)))
    assert np.isnan(smallest_difference(MeanSquares([3], [0.0], [0.0], 0.0, 12), 0.8))


# ---- designs


def test_a_design_s_mean_squares_are_the_formula_s():
    world = TwoWay(0.3, 0.2, 0.5, 0.7, 0.11)
    found = layout(components(world), Design(4, 3, 20))
    residual = (0.7**2 / 4 + 0.11**2 / 12) / 20
    assert found.residuals == pytest.approx([residual]) and list(found.sizes) == [4]
    assert found.seeds == pytest.approx([0.3**2 / 4 + 0.2**2 / 12 + residual])
    assert found.patients == pytest.approx(0.5**2 / 20)
    assert found.variance == pytest.approx(0.3**2 / 4 + 0.2**2 / 12 + residual + 0.5**2 / 20)


def test_a_baseline_without_pre_trainings_has_seeds_of_its_own_where_the_arm_s_are_nested():
    found = layout(components(TwoWay(0.3, 0.2, 0.5, 0.7, 0.11), (True, False)), Design(4, 3, 20))
    ours = (0.7**2 / 4 + 0.11**2 / 2 / 12) / 20
    theirs = 0.11**2 / 2 / 12 / 20
    assert list(found.sizes) == [4, 12] and found.residuals == pytest.approx([ours, theirs])
    assert found.seeds == pytest.approx([0.3**2 / 4 + 0.2**2 / 2 / 12 + ours, 0.2**2 / 2 / 12 + theirs])
    assert len(layout(components(TwoWay(0.3, 0.2), (True, False)), Design(4, 1, 20)).sizes) == 1  # paired by seed


# ---- the smallest difference


@settings(max_examples=examples(60))
@given(st.floats(0, 0.05), st.floats(0.001, 0.1), st.integers(3, 8), st.integers(5, 60), st.floats(0.5, 0.95))
def test_the_smallest_difference_has_the_power_that_is_wanted_and_less_takes_more(seeds, patients, num, many, wanted):
    of = components(TwoWay(pretraining=seeds, patients=patients, finetuning_patients=0.02))
    found = smallest_difference(layout(of, Design(num, 1, many)), wanted)
    assert power(found, layout(of, Design(num, 1, many))) == pytest.approx(wanted, abs=1e-3)
    assert smallest_difference(layout(of, Design(num + 1, 1, many)), wanted) < found
    more = smallest_difference(layout(of, Design(num, 1, 2 * many)), wanted)
    assert more < found * 1.03  # where seeds vary most, fewer degrees of freedom may outweigh what patients add


def test_a_power_that_no_difference_at_all_has_takes_a_difference_of_zero():
    """Of some designs the test errs in a little more than 5 of 100, so that it finds 0 with a power of 5.01 %."""
    world = layout(components(TwoWay(0.01, 0.01, 0.05, 0, 0.05)), Design(3, 1, 12))
    chance = power(0.0, world)
    assert smallest_difference(world, 0.99 * chance) == 0.0
    assert smallest_difference(world, 1.01 * chance) > 0.0


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_fewest_is_the_first_that_is_enough(first, need, most):
    wanted = next((number for number in range(first, max(first, most) + 1) if number >= need), None)
    assert fewest(lambda number: number >= need, first, most) == wanted


# ---- simulations of the whole test: draws of every effect, compare's own interval

WORLDS = {
    "3 seeds, 12 patients": (TwoWay(0.01, 0.01, 0.05, 0, 0.05), 3, 1, 12),
    "3 seeds, 60 patients": (TwoWay(0.02, 0.01, 0.05, 0.02, 0.05), 3, 1, 60),
    "5 seeds, 30 patients, seeds alike": (TwoWay(0, 0, 0.05, 0, 0.05), 5, 1, 30),
    "10 seeds, 30 patients, patients alike": (TwoWay(0.02, 0.02, 0, 0, 0.05), 10, 1, 30),
    "4 pre-trainings, 3 fine-tunings, 30 patients": (TwoWay(0.02, 0.02, 0.05, 0.03, 0.05), 4, 3, 30),
    "3 pre-trainings, 5 fine-tunings, 12 patients": (TwoWay(0.02, 0.04, 0.03, 0.03, 0.05), 3, 5, 12),
}


def share_found(world, num, each, patients, difference, simulations, seed=0):
    """The share of simulations in which compare's interval excludes 0."""
    rng = np.random.default_rng([seed, num, each, patients])
    found = 0
    for _ in range(simulations):
        means = world.draw(rng, difference, num, each, patients).mean(axis=1)
        found += statistics.interval(means.mean(), [means]).p < 0.05
    return found / simulations


def test_a_power_of_80_percent_is_that_of_simulations():
    world, *design = WORLDS["4 pre-trainings, 3 fine-tunings, 30 patients"]
    difference = smallest_difference(layout(components(world), Design(*design)), 0.8)
    assert share_found(world, *design, difference, 1500) == pytest.approx(0.8, abs=0.035)  # 3.4 standard errors


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("name", WORLDS)
def test_the_power_is_that_of_simulations(name, wanted):
    world, *design = WORLDS[name]
    difference = smallest_difference(layout(components(world), Design(*design)), wanted)
    assert share_found(world, *design, difference, 4000) == pytest.approx(wanted, abs=0.025)


@pytest.mark.slow
def test_the_power_of_unpaired_arms_is_that_of_simulations():
    """A baseline without pre-trainings, with seeds of its own."""
    of = components(TwoWay(0.03, 0.02, 0.05, 0.03, 0.05), (True, False))
    expected = layout(of, Design(4, 3, 25))
    arm, base = TwoWay(0.03, 0.02 / 2**0.5, 0.05, 0.03, 0.05 / 2**0.5), TwoWay(0, 0.02 / 2**0.5, 0, 0, 0.05 / 2**0.5)
    difference = smallest_difference(expected, 0.8)
    rng, found = np.random.default_rng(7), 0
    for _ in range(4000):
        ours = arm.draw(rng, difference, 4, 3, 25).mean(axis=1)
        theirs = base.draw(rng, 0.0, 1, 12, 25)[0]
        found += statistics.interval(ours.mean() - theirs.mean(), [ours, -theirs]).p < 0.05
    assert found / 4000 == pytest.approx(0.8, abs=0.025)


@pytest.mark.slow
def test_the_chance_of_a_false_claim_is_how_often_the_order_is_wrong():
    """Of true differences drawn flat, those measured on one side of 0 are on the other as often as was claimed."""
    rng, world = np.random.default_rng(5), TwoWay(0.02, 0, 0.05, 0, 0.05)
    claimed, wrong = [], []
    for _ in range(6000):
        true = rng.uniform(-0.3, 0.3)
        means = world.draw(rng, true, 5, 1, 30)[:, 0]
        value = means.mean()
        if abs(value) < 0.06:
            claimed.append(statistics.interval(value, [means]).p / 2)
            wrong.append(value * true < 0)
    claimed, wrong = np.array(claimed), np.array(wrong)
    assert len(claimed) > 1000 and claimed.mean() == pytest.approx(wrong.mean(), abs=0.03)
    doubtful = claimed > 0.1
    assert claimed[doubtful].mean() == pytest.approx(wrong[doubtful].mean(), abs=0.05)
