"""Plans of runs whose seeds were added until it was decided: the last look's seeds and level, as compare has them."""

import numpy as np
import pytest
from support.interim import LOOKS, World, looked_at

from premed.config.decide import Decide
from premed.errors import UserError
from premed.reporting.comparison.compare import compare
from premed.reporting.comparison.interim import design_tags
from premed.reporting.sample_size import picture, plan, terminal
from premed.reporting.sample_size.components import Components, Side, Stated
from premed.reporting.sample_size.levels import level_at, level_now
from premed.reporting.sample_size.power import Design, layout, power, smallest_difference
from premed.reporting.sample_size.settings import PlanSettings
from premed.reporting.sequential import levels, repeated_p

DECIDE = Decide(max_seeds=12)  # looks at 4, 6, 8, 10 and 12
FIRST = levels(DECIDE.planned)[0]


@pytest.fixture
def auto(store, put):
    """Adds seeds of `none` and of `mae`, whose gain changes from seed to seed; of a design, or of none."""

    def fill(numbers, gain=0.02, decide=DECIDE, shared=False, strategy="mae"):
        for seed in numbers:
            rows = [put("none", seed, 0.6)] if strategy == "mae" else []
            gained = 0.6 + gain + 0.01 * (seed % 3)
            rows.append(put(strategy, seed, gained, noise_seed=700 + seed + 50 * (strategy != "mae"),
                            pretrain_seed=0 if shared else seed))  # fmt: skip
            for run in rows:
                store.set_tags(run, design_tags(decide) if decide else {})
        return store

    return fill


def only(result):
    ((found,),) = [block.comparisons for block in result.blocks]
    return found


def difference_of(store):
    (arm,) = [arm for arm in compare(store).tasks[0].blocks[0].rows if not arm.is_baseline]
    return arm.scores["dice"].difference


def planned(store, **settings):
    return only(plan.from_store(store, PlanSettings(**settings)))


def test_the_seeds_are_those_that_compare_takes(auto):
    at_look = planned(auto(range(4)))
    beyond = planned(auto([4], gain=0.3))
    without = planned(auto([20, 21], gain=0.3, decide=None))
    for found in (beyond, without):
        assert found.now == at_look.now == Design(4, 1, 12) and found.difference == at_look.difference
        assert [row.sd for row in found.rows] == pytest.approx([row.sd for row in at_look.rows], nan_ok=True)
        assert found.false_claim == at_look.false_claim and found.smallest == at_look.smallest


def test_the_chance_of_a_false_claim_is_that_of_the_same_data_with_as_many_fixed_seeds(auto, store):
    auto(range(4), decide=None)
    fixed = planned(store, margin=0.01)
    auto(range(4))
    looked = planned(store, margin=0.01)
    assert looked.looks.taken == 1 and fixed.looks is None
    assert vars(looked.false_claim) == pytest.approx(vars(fixed.false_claim), nan_ok=True)
    alone = 2 * looked.false_claim.chance
    assert (
        difference_of(store).p == pytest.approx(repeated_p(DECIDE.planned, 0, alone)) and difference_of(store).p > alone
    )


def test_what_is_shown_is_tested_at_the_look_s_level(auto, store, capsys):
    auto(range(4), decide=None)
    fixed = planned(store, margin=0.05)
    result = plan.from_store(auto(range(4)), PlanSettings(margin=0.05))
    found = only(result)
    assert (found.level, fixed.level) == (FIRST, 0.05) and FIRST < 0.01
    squares = layout(found.components, found.now)
    assert found.smallest == pytest.approx(smallest_difference(squares, 0.8, FIRST), rel=0.01)
    assert found.chance == pytest.approx(power(0.05, squares, FIRST), rel=0.01)
    assert found.smallest > 1.3 * fixed.smallest and found.chance < fixed.chance
    terminal.show(result)
    out = " ".join(capsys.readouterr().out.split())
    words = f"tested at {100 * FIRST:.2g} %, the level of the 1st of 5 looks"
    assert f"mae: {words} (4, 6, 8, 10, 12 seeds)" in out and f"with a power of 80 %, {words}; " in out
    assert "tested at the level of the look two-sided" in out and "tested at 5 %" not in out
    assert "of one look's test at its level" in out and "interval and p are those of the 1st of 5 looks" in out


def test_after_holm_it_is_the_level_at_which_all_looks_err_in_less(auto, store):
    auto(range(6))
    auto(range(4), strategy="unimiss")
    ((mae, unimiss),) = [block.comparisons for block in plan.from_store(store, PlanSettings()).blocks]
    for found, look in ((mae, 1), (unimiss, 0)):
        strictest = levels(DECIDE.planned, 0.025)[look]
        assert strictest < found.level == levels(DECIDE.planned)[look]
        squares = layout(found.components, found.now)
        assert found.smallest_corrected == pytest.approx(smallest_difference(squares, 0.8, strictest), rel=0.02)


def test_seeds_that_are_needed_are_those_of_a_planned_look_at_its_level(auto):
    found = planned(auto(range(4)), margin=0.04)
    seeds, finetunings, patients = found.needs[:3]
    chances = {
        num: power(0.04, layout(found.components, Design(num, 1, 12)), level)
        for num, level in zip(DECIDE.planned, levels(DECIDE.planned), strict=True)
    }
    shown = [num for num, chance in chances.items() if chance >= 0.8]
    assert seeds.needed == shown[0] > 4 and seeds.most == 12 and seeds.note == "at a planned look"
    assert finetunings.needed is None and finetunings.note == "seeds: auto has one of each"
    fewer, enough = (layout(found.components, Design(4, 1, patients.needed - less)) for less in (1, 0))
    assert power(0.04, fewer, FIRST) < 0.8 <= power(0.04, enough, FIRST)
    assert patients.note == "begun anew with the same looks" and np.isnan(patients.hours)


def test_no_number_beyond_the_last_look_is_told(auto):
    result = plan.from_store(auto(range(4)), PlanSettings(margin=0.004))
    seeds = only(result).needs[0]
    assert (seeds.needed, seeds.cautious, seeds.most) == (None, None, 12)
    assert "pre-trainings, a fine-tuning each" not in result.blocks[0].conclusion


def test_before_the_first_look_there_is_nothing_to_plan_with(auto):
    with pytest.raises(UserError, match="the first look, at 4 seeds, is still to come; no plan before$"):
        plan.from_store(auto(range(3)), PlanSettings(stated=Stated(0.01, 0.01)))


def test_another_baseline_than_the_planned_one_is_noted(auto, store, put):
    auto(range(4))
    for seed in range(4):
        put("unimiss", seed, 0.61, pretrain_seed=seed)
    (block,) = plan.from_store(store, PlanSettings(), baseline="unimiss").blocks
    assert all(found.looks is None for found in block.comparisons)
    assert any("told apart from none" in note and "does not allow for that" in note for note in block.notes)


def test_the_picture_has_the_planned_looks_each_at_its_level(auto):
    result = plan.from_store(auto(range(4)), PlanSettings())
    found = only(result)
    (axes,) = picture.draw(result).figure.axes
    for number, drawn in zip(*axes.get_lines()[0].get_data(), strict=True):
        squares = layout(found.components, Design(int(number), 1, 12))
        level = levels(DECIDE.planned)[DECIDE.planned.index(number)]
        assert drawn == smallest_difference(squares, 0.8, level)
    assert [*axes.get_lines()[0].get_xdata()] == [*DECIDE.planned]


def test_without_looks_the_level_is_5_percent():
    assert level_now(None) == level_at(None, 7) == 0.05


WORLD = World(30)


@pytest.mark.slow
def test_a_look_s_own_test_finds_the_smallest_difference_with_the_power():
    """Simulated draws of every effect; the test at 5 % would be said to find a much smaller one."""
    side = Side(0.5, 0.5, 0.0, WORLD.seed_patients / 2, True)
    components, rng = Components(side, side, WORLD.patients), np.random.default_rng(3)
    for look, (num, level) in enumerate(zip(LOOKS, levels(LOOKS), strict=True)):
        squares = layout(components, Design(num, 1, WORLD.num_patients))
        shown = smallest_difference(squares, 0.8, level)
        p = looked_at(WORLD.draw(rng, shown, 4000)).p
        found, earlier = p[look] < level, (p[: look + 1] < np.array(levels(LOOKS))[: look + 1, None]).any(axis=0)
        assert found.mean() == pytest.approx(0.8, abs=0.025) and earlier.mean() < 0.86
        at_5_percent = smallest_difference(squares, 0.8)
        assert (looked_at(WORLD.draw(rng, at_5_percent, 4000)).p[look] < level).mean() < 0.75


@pytest.mark.slow
def test_a_false_claim_is_no_likelier_than_said_where_one_stopped_at_a_look():
    """True differences drawn flat, each looked at until it was decided."""
    rng, at_level = np.random.default_rng(5), np.array(levels(LOOKS))[:, None]
    claimed, wrong = [], []
    for _ in range(10):
        true = rng.uniform(-12, 12, (2000, 1, 1))
        looked = looked_at(WORLD.draw(rng, true, 2000))
        stops = looked.p < at_level
        at, every = np.where(stops.any(axis=0), stops.argmax(axis=0), len(LOOKS) - 1), np.arange(2000)
        value = looked.value[at, every]
        inner = abs(value) < 9  # far from the ends of what is drawn
        claimed.append((looked.p[at, every] / 2)[inner])
        wrong.append((value * true[:, 0, 0] < 0)[inner])
    claimed, wrong = np.concatenate(claimed), np.concatenate(wrong)
    assert wrong.mean() <= claimed.mean() == pytest.approx(wrong.mean(), abs=0.005)
