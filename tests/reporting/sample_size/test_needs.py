"""What it takes to show a difference, and what that costs, against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.two_way import TwoWay

from premed.reporting.sample_size.components import Components, Group, Side, Stated, estimate
from premed.reporting.sample_size.needs import UNKNOWN, Prices, Question, needs, of_labels
from premed.reporting.sample_size.power import Design, fewest, layout, power

ARM = Prices(pretraining=10.0, finetuning=1.0, test=0.1, device="GPU", trained=(1, 1, 1), is_pretrained=True)
NONE = Prices(np.nan, 1.0, 0.1, "GPU", trained=(3,), is_pretrained=False)


def question(planned, pretraining=0.01, finetuning=0.0, patients=0.05, now=Design(3, 1, 20), **more):  # noqa: B008
    half = Side(pretraining**2, finetuning**2, 0.0, 0.03**2, True).scaled(0.5)
    both = Components(half, half, patients**2)
    usual = {"is_one_pretraining": False, "are_identified": False, "prices": (ARM, NONE)}
    return Question(planned, 0.8, now, both, both, **usual | more)


# ---- costs


def test_more_pre_trainings_cost_those_that_are_not_there_with_a_fine_tuning_and_a_test_each():
    assert ARM.more(5, 1, 20, 20) == pytest.approx(2 * 10 + 2 * 1 + 2 * 0.1)
    assert NONE.more(5, 1, 20, 20) == pytest.approx(2 * 1 + 2 * 0.1)
    assert ARM.more(3, 1, 20, 20) == ARM.more(2, 1, 20, 20) == 0


def test_more_fine_tunings_of_the_same_pre_trainings_cost_no_pre_training():
    assert ARM.more(3, 4, 20, 20) == pytest.approx(9 * 1.1)
    assert NONE.more(3, 4, 20, 20) == pytest.approx(9 * 1.1)


def test_of_fine_tunings_that_share_a_pre_training_one_is_used_again_where_each_has_its_own():
    once = Prices(10.0, 1.0, 0.1, "GPU", trained=(5,), is_pretrained=True)
    assert once.more(3, 1, 20, 20) == pytest.approx(2 * 10 + 2 * 1.1)


def test_more_patients_cost_their_test_by_every_run_and_no_training():
    assert ARM.more(3, 1, 60, 20) == pytest.approx(3 * 40 / 20 * 0.1)
    assert ARM.more(4, 1, 60, 20) == pytest.approx(3 * 40 / 20 * 0.1 + 10 + 1 + 60 / 20 * 0.1)


def test_what_is_not_known_has_no_cost():
    assert np.isnan(UNKNOWN.more(3, 1, 20, 20))


# ---- numbers


def test_each_row_is_the_first_number_with_the_power():
    query = question(0.06, now=Design(3, 1, 10))

    def shown(num, patients):
        return power(0.06, layout(query.components, Design(num, 1, patients))) >= 0.8

    trainings, finetunings, patients = needs(query)
    assert shown(trainings.needed, 10) and not shown(trainings.needed - 1, 10) and trainings.needed > 3
    assert shown(3, patients.needed) and not shown(3, patients.needed - 1) and patients.needed > 10
    assert trainings.hours == pytest.approx(query.hours(Design(trainings.needed, 1, 10))) and trainings.device == "GPU"
    assert patients.hours == pytest.approx(query.hours(Design(3, 1, patients.needed)))
    assert (finetunings.needed, finetunings.note) == (None, "confounded with pre-trainings")


def test_a_difference_that_the_design_shows_already_costs_nothing():
    found = needs(question(0.5))
    assert [(need.needed, need.hours) for need in found if need.most] == [(3, 0.0), (20, 0.0)]


def test_fine_tunings_are_counted_on_where_they_are_told_apart():
    query = question(0.05, pretraining=0.001, finetuning=0.05, patients=0.01, are_identified=True, now=Design(4, 1, 20))
    _, finetunings, _ = needs(query)
    assert finetunings.needed > 1
    assert finetunings.hours == pytest.approx(query.hours(Design(4, finetunings.needed, 20)))
    before = Design(4, finetunings.needed - 1, 20)
    assert power(0.05, layout(query.components, before)) < 0.8


def test_one_pre_training_needs_others_and_nothing_else_helps():
    found = needs(question(0.06, now=Design(1, 5, 20), is_one_pretraining=True))
    assert found[0].now == 1 and found[0].needed >= 3
    assert [(need.needed, need.note) for need in found[1:]] == [(None, "for this pre-training alone")] * 2


def test_where_neither_trainings_nor_patients_are_enough_both_are():
    query = question(0.01, pretraining=0.02, patients=0.05)
    found = needs(query)
    both = found[-1]
    assert found[0].needed is None and both.patients and both.needed
    assert power(0.01, layout(query.components, Design(both.needed, 1, both.patients))) >= 0.8
    assert power(0.01, layout(query.components, Design(both.needed - 1, 1, both.patients))) < 0.8
    assert both.hours == pytest.approx(query.hours(Design(both.needed, 1, both.patients)))


@given(st.floats(0.0, 0.2))
def test_labels_are_the_first_multiple_whose_forecast_is_shown(smallest):
    found = of_labels(smallest, lambda times: -0.02 * times, -1.0, 3.0, "GPU")
    first = next((times for times in range(1, 11) if 0.02 * times >= smallest), None)
    assert found.needed == first
    if first is not None:
        assert found.hours == (3.0 * first if first > 1 else 0.0)
    assert of_labels(0.01, lambda times: -0.02 * times, 1.0, 3.0, "GPU").needed is None  # the other way round


@pytest.mark.slow
@pytest.mark.parametrize("pilot", [3, 5])
def test_cautious_numbers_have_the_power_after_most_pilots(pilot):
    """What a few seeds estimate is often too little: of the numbers planned from them, how many have the power?"""
    plain, cautious = planned_from_pilots(pilot, 300)
    assert cautious >= 0.7 and cautious > plain + 0.15


def planned_from_pilots(pilot, simulations):
    """The shares of pilots whose number of pre-trainings, and whose cautious one, has a true power of 80 %."""
    world, patients, planned = TwoWay(pretraining=0.02, patients=0.05, finetuning_patients=0.05), 60, 0.03
    half = Side(0.02**2, 0.0, 0.05**2, 0.0, True).scaled(0.5)
    true = Components(half, half, 0.05**2)
    enough = fewest(lambda num: power(planned, layout(true, Design(num, 1, patients))) >= 0.8, 3, 100)
    rng, counts = np.random.default_rng(pilot), np.zeros(2)
    for _ in range(simulations):
        groups = [Group([*world.draw(rng, planned, pilot, 1, patients)], True, False)]
        for which, care in enumerate((False, True)):
            found = estimate(groups, Stated(), care)
            counts[which] += not power(planned, layout(found, Design(enough - 1, 1, patients))) >= 0.8
    return counts / simulations
