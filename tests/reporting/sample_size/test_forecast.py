"""Power laws: found where they are, bounded, refused; and how often their intervals hold what is true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premed.reporting.sample_size.curves import laws_of
from premed.reporting.sample_size.forecast import EXPONENTS, bounds, fit, redrawn, refusal

SHARES = (0.1, 0.25, 0.5, 1.0)


@given(st.floats(0.5, 0.95), st.floats(0.01, 0.3), st.sampled_from(EXPONENTS[::5]))
def test_a_law_is_found_again(limit, factor, exponent):
    scores = limit - factor * np.array(SHARES) ** -exponent
    found = fit(SHARES, scores[None], 1.0)
    for share in (1.0, 2.0, 4.0):
        assert found.at(share)[0] == pytest.approx(limit - factor * share**-exponent, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=6), st.sampled_from([1.0, 0.0]))
def test_a_limit_is_no_better_than_the_best_score_and_the_law_never_falls(scores, most):
    shares = np.linspace(0.1, 1, len(scores))
    found = fit(shares, np.array([scores]) - (1 - most), most)
    assert found.limit[0] <= most + 1e-12 and found.factor[0] >= 0
    assert found.at(4.0)[0] >= found.at(1.0)[0] - 1e-12


def test_the_law_is_that_of_least_squares():
    from scipy.optimize import least_squares

    scores = np.array([0.55, 0.68, 0.71, 0.77])
    found = fit(SHARES, scores[None], 1.0)
    x = np.array(SHARES)
    best = least_squares(lambda law: law[0] - law[1] * x ** -law[2] - scores, [0.9, 0.1, 0.5],
                         bounds=([0, 0, 0.05], [1, 5, 3]))  # fmt: skip
    ours = ((found.limit - found.factor * x**-found.exponent - scores) ** 2).sum()
    assert ours == pytest.approx(2 * best.cost, rel=0.02)


def test_fewer_than_four_shares_or_three_seeds_are_refused():
    assert refusal(3, 5).startswith("3 of 4 shares") and refusal(4, 2).startswith("2 of 3 seeds")
    assert refusal(4, 3) == ""


# ---- intervals


def curves(rng, num_seeds, num_patients, seeds=0.01, patients=0.05, noise=0.05, true=(0.85, 0.1, 0.4)):
    """Pseudo-values [S, P, K]: patients differ alike at every share; seeds and noise are drawn for each."""
    limit, factor, exponent = true
    means = limit - factor * np.array(SHARES) ** -exponent
    shape = num_seeds, num_patients, len(SHARES)
    return (
        means
        + patients * rng.standard_normal((1, num_patients, 1))
        + seeds * rng.standard_normal((num_seeds, 1, len(SHARES)))
        + noise * rng.standard_normal(shape)
    )


def test_means_drawn_anew_have_the_two_way_variance_of_any_sum_of_them():
    """For a weighted sum of the means it is what `statistics` finds for the weighted pseudo-values."""
    from premed.reporting.statistics import variances

    pseudo = curves(np.random.default_rng(0), 30, 40)
    weights = np.array([1.0, -2.0, 0.5, 1.5])
    combined = pseudo @ weights
    over_seeds, residual = variances(combined)
    over_patients = combined.mean(axis=0).var(ddof=1) / 40
    drawn = redrawn([pseudo]) @ weights
    df_seeds, df_patients = 29 / 27, 39 / 37  # variances of Student's t
    wanted = over_seeds * df_seeds + max(over_patients - residual, 0) * df_patients
    assert drawn.var() == pytest.approx(wanted, rel=0.1)
    assert drawn.mean() == pytest.approx(combined.mean(), abs=4 * np.sqrt(wanted / len(drawn)))


def test_two_groups_have_their_own_seeds_and_the_same_patients():
    rng = np.random.default_rng(1)
    ours = curves(rng, 20, 30)
    theirs = ours[:12] - 0.03 + 0.01 * rng.standard_normal((12, 1, 4))
    drawn = redrawn([ours, theirs])
    assert drawn.shape[1] == 8
    assert drawn.mean(axis=0) == pytest.approx(np.concatenate([ours.mean((0, 1)), theirs.mean((0, 1))]), abs=2e-3)
    assert np.corrcoef(drawn[:, 0], drawn[:, 4])[0, 1] > 0.5  # of the patients, who are the same


def test_the_same_runs_have_the_same_forecast():
    pseudo = curves(np.random.default_rng(2), 5, 20)
    one, two = (laws_of([pseudo], SHARES, 1.0, 1.0)[1].at(2.0) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_a_score_of_which_lower_is_better_falls_towards_zero_and_not_below():
    means = 4 + 6 * np.array(SHARES) ** -0.5
    pseudo = means + np.random.default_rng(0).standard_normal((4, 15, 1)) + np.zeros((4, 15, 4))
    through, drawn = laws_of([pseudo], SHARES, -1.0, 0.0)
    assert -through.at(4.0)[0] == pytest.approx(7, abs=1.5) and (-drawn.at(1e9) >= -1e-9).all()


def coverage(num_seeds, num_patients, times, simulations):
    true = (0.85, 0.1, 0.4)
    rng = np.random.default_rng([num_seeds, num_patients])
    wanted = true[0] - true[1] * times ** -true[2]
    held = 0
    for _ in range(simulations):
        laws = laws_of([curves(rng, num_seeds, num_patients, true=true)], SHARES, 1.0, 1.0)
        low, high = bounds(laws[1].at(times))
        held += low <= wanted <= high
    return held / simulations


@pytest.mark.slow
@pytest.mark.parametrize("times", [2.0, 4.0])
@pytest.mark.parametrize(("num_seeds", "num_patients"), [(3, 12), (3, 60), (5, 30), (10, 60)])
def test_intervals_hold_the_score_at_more_labels_where_the_law_holds(num_seeds, num_patients, times):
    assert coverage(num_seeds, num_patients, times, 300) >= 0.92
