"""The levels of looks: against integrals written out, against seeds drawn one by one, and in the whole test."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm, ttest_1samp
from support import interim
from support.interim import LOOKS, NULL, SKEWED, World, looked_at, simulated

from premed.reporting import statistics
from premed.reporting.sequential import ALPHA, last_look, levels, repeated_p
from premed.reporting.statistics import interval


def normal_levels(shares, alpha, power):
    """Armitage, McPherson and Rowe's integrals for normal statistics (J R Stat Soc A 132, 1969, 235)."""
    nodes, weights = np.polynomial.legendre.leggauss(96)
    spent, found, density, x, w, before = 0.0, [], None, None, None, 0.0
    for share in shares:
        here, sd = alpha * share**power - spent, np.sqrt(share - before)
        if density is None:
            bound = norm.isf(here / 2) * sd
        else:
            inside = density * w
            beyond = lambda b, i=inside, at=x, sd=sd: i @ (ndtr((-b - at) / sd) + ndtr((at - b) / sd))  # noqa: E731
            bound = brentq(lambda b, f=beyond, here=here: f(b) - here, 0, 12)
        new = nodes * bound
        density = norm.pdf(new / sd) / sd if density is None else norm.pdf((new[:, None] - x) / sd) @ (density * w) / sd
        x, w, before, spent = new, weights * bound, share, spent + here
        found.append(2 * norm.sf(bound / np.sqrt(share)))
    return found


def test_of_very_many_seeds_the_levels_are_those_of_normal_statistics():
    found = levels((1000, 2000, 3000, 4000))
    np.testing.assert_allclose(found, normal_levels([0.25, 0.5, 0.75, 1.0], ALPHA, 2), rtol=0.02)


def test_one_look_is_the_plain_test():
    assert levels((9,)) == pytest.approx((0.05,), rel=0.005)
    assert repeated_p((9,), 0, 0.2) == pytest.approx(0.2, rel=0.02)


def test_the_looks_at_seeds_that_are_drawn_one_by_one_spend_five_percent_by_the_square_of_their_share():
    seeds = np.random.default_rng(0).standard_normal((50_000, LOOKS[-1]))
    below = [
        ttest_1samp(seeds[:, :num], 0, axis=1).pvalue < level for num, level in zip(LOOKS, levels(LOOKS), strict=True)
    ]
    spent = np.logical_or.accumulate(below).mean(axis=1)
    np.testing.assert_allclose(spent, 0.05 * (np.array(LOOKS) / LOOKS[-1]) ** 2, atol=0.0025)


def test_a_repeated_p_is_below_five_percent_where_the_repeated_interval_leaves_out_0():
    for look, level in enumerate(levels(LOOKS)):
        p = [repeated_p(LOOKS, look, level * factor) for factor in (1e-4, 0.5, 0.999, 1.001, 2.0)]
        assert p == sorted(p) and p[2] < ALPHA <= p[3]
        assert all(repeated_p(LOOKS, look, each) >= each for each in (1e-6, 1e-3, 0.02, 0.3))
    assert np.isnan(repeated_p(LOOKS, 0, np.nan)) and repeated_p(LOOKS, 0, 1.0) == 1.0


def test_the_last_look_is_the_one_that_has_its_seeds():
    assert [last_look((4, 6, 8), num) for num in (3, 4, 5, 6, 9)] == [None, 0, 0, 1, 2]


def test_the_simulated_test_is_compare_s():
    values = World(9).draw(np.random.default_rng(1), 0.3, 5)
    found = looked_at(values)
    low, high = found.interval(levels(LOOKS))
    for look, (num, level) in enumerate(zip(LOOKS, levels(LOOKS), strict=True)):
        for i in range(5):
            of = interval(float(values[i, :num].mean()), [values[i, :num]], level=1 - level)
            assert (of.low, of.high, of.p) == pytest.approx((low[look, i], high[look, i], found.p[look, i]))


@pytest.mark.slow
@pytest.mark.parametrize("world", NULL, ids=interim.words)
def test_where_there_is_no_difference_at_most_five_percent_find_one_however_seeds_and_patients_vary(world):
    found, _, naive = simulated(world, 0.0, 8000)
    assert found.found <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 8000)
    assert found.holds >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 8000)
    if not world.fixed and not world.patients:
        assert naive > 0.12  # the test can fail


@pytest.mark.slow
def test_looking_adds_nothing_to_the_error_that_few_skewed_patients_make():
    found, fixed, _ = simulated(SKEWED, 0.0, 8000)
    assert 0.05 < found.found < fixed


@pytest.mark.slow
def test_a_large_difference_takes_fewer_seeds_and_most_of_the_power_is_kept():
    unit = np.sqrt(2 + 2.25 / 30)
    middle, with_all, _ = simulated(World(30), 1.2 * unit, 8000)
    large, _, _ = simulated(World(30), 3.0 * unit, 8000)
    assert with_all - 0.05 < middle.found < with_all and middle.seeds < 9.2
    assert large.found > 0.999 and large.seeds < 5.5
    assert middle.holds > 0.94 and middle.value > 1.2 * unit  # what stops early looks larger than it is


@pytest.mark.slow
def test_a_difference_as_large_as_the_margin_is_called_smaller_in_at_most_five_percent():
    margin = 2.5 * np.sqrt(2 + 2.25 / 60)
    at, _, _ = simulated(World(60, patients=0.25), margin, 8000, margin=margin)
    none, _, _ = simulated(World(60, patients=0.25), 0.0, 8000, margin=margin)
    assert at.small <= 0.05 and none.small > 0.8 and none.seeds < 9


@pytest.mark.slow
@pytest.mark.parametrize("differences", [(0.0, 0.0), (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 4.0)])
def test_of_several_arms_that_stop_one_by_one_at_most_five_percent_find_one_that_is_not_there(differences):
    found = interim.several(World(30), differences, 4000)
    absent = found[[each == 0 for each in differences]]
    assert 0.02 < absent.any(axis=0).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


def test_the_simulated_correction_is_holm_s():
    p = np.array([0.04, 0.001, 0.03, 0.5])
    np.testing.assert_allclose(interim.holm(p[:, None])[:, 0], np.minimum(statistics.holm(p), 1), atol=1e-12)
