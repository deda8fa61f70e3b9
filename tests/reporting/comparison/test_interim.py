"""Comparisons whose seeds were added until they were decided: which seeds count, the interval, and what is said."""

import numpy as np
import pytest
from support.comparing import add, block_of, difference_of, score_of, xrays

from premed.config.decide import Decide
from premed.reporting.comparison.compare import compare
from premed.reporting.comparison.interim import design_tags, is_decided, ordinal
from premed.reporting.comparison.methods import statistics
from premed.reporting.comparison.result import looks_of
from premed.reporting.comparison.scores import score_table
from premed.reporting.comparison.selection import finished_experiments
from premed.reporting.comparison.sentences import sentences
from premed.reporting.sequential import levels, repeated_p
from premed.reporting.statistics import interval

DECIDE = Decide(max_seeds=8, margin=0.2)  # looks at 4, 6 and 8


@pytest.fixture
def seeds(store):
    """Adds seeds of `none` and `mae`, of a design."""

    def fill(numbers, gain=0.0, decide=DECIDE, shared=False):
        for seed in numbers:
            tags = design_tags(decide) if decide else {}
            for strategy, value in (("none", 1.0), ("mae", 1.0 + gain)):
                rows = xrays(value, 10 * seed + (strategy == "mae"), num=120, patients=20)
                run = add(store, strategy, seed, rows, pretrain_seed=0 if shared else seed)
                store.set_tags(run, tags)
        return store

    return fill


def pseudo_of(store, seeds):
    """Pseudo-values [S, P] of the difference of the mean AUCs."""
    tables = {
        (run.fields["strategy"], int(run.seed)): score_table([store.columns(run.stages["test"])], "mauc").scores["mauc"]
        for run in finished_experiments(store, None)[0]
    }
    return [tables["mae", seed].pseudo[:, 0] - tables["none", seed].pseudo[:, 0] for seed in seeds]


def test_seeds_count_up_to_the_last_look_and_the_interval_allows_for_all_looks(seeds):
    store = seeds(range(7))
    found, values = difference_of(compare(store)), np.stack(pseudo_of(store, range(6)))
    wanted = interval(float(values.mean()), [values], level=1 - levels((4, 6, 8))[1])
    assert (found.num_seeds, found.looks.taken, found.pairing) == (6, 2, "paired")
    assert (found.value, *found.interval) == pytest.approx((wanted.value, wanted.low, wanted.high))
    assert found.p == pytest.approx(repeated_p((4, 6, 8), 1, wanted.p)) and found.p > wanted.p
    plain = interval(float(values.mean()), [values])
    assert found.interval[0] < plain.low and plain.high < found.interval[1]
    notes = block_of(compare(store)).notes
    assert any("those of the 2nd of 3 looks (4, 6, 8 seeds), and allow for all" in note for note in notes)
    assert any("1 seed beyond that look left out" in note for note in notes)


def test_without_the_design_nothing_changes(seeds):
    store = seeds(range(4), decide=None)
    found, values = difference_of(compare(store)), np.stack(pseudo_of(store, range(4)))
    wanted = interval(float(values.mean()), [values])
    assert looks_of(found) is None
    assert (*found.interval, found.p) == pytest.approx((wanted.low, wanted.high, wanted.p))


def test_before_the_first_look_there_is_no_interval(seeds):
    result = compare(seeds(range(3)))
    assert difference_of(result).verdict == "no interval"
    assert "cannot be said: seeds are added until it is decided, and the first look is at 4 seeds; " in (
        block_of(result).conclusion
    )
    assert "3 pre-trainings with 3 fine-tunings of mae" in block_of(result).conclusion
    assert any("the first look is at 4 seeds" in note for note in block_of(result).notes)


def test_seeds_that_were_added_on_one_pre_training_and_also_with_one_each_are_not_mixed(seeds):
    store = seeds(range(6))
    seeds(range(1, 4), shared=True, decide=Decide(max_seeds=4))  # seed 0 on pre-training 0 is of both
    found, values = difference_of(result := compare(store)), np.stack(pseudo_of(store, range(6)))
    assert (found.num_seeds, found.looks.taken, [*found.looks.planned]) == (6, 2, [4, 6, 8])
    assert found.value == pytest.approx(values.mean()) and len(found.left_out) == 3
    why = "3 runs of mae left out of the difference: seeds were added with a pre-training each, and also on one"
    assert any(why in note for note in block_of(result).notes)


def test_a_large_difference_is_decided_and_said_in_one_sentence(seeds):
    result = compare(seeds(range(4), gain=6.0))
    assert difference_of(result).verdict == "better" and is_decided(difference_of(result))
    assert "allowing for all looks" in block_of(result).conclusion
    said = " ".join(statistics(result.tasks[0], block_of(result)))
    assert "with looks planned at 4, 6, 8 seeds" in said and "Jennison" in said


def test_a_small_difference_is_known_to_be_less_than_the_margin(seeds):
    result = compare(seeds(range(8)))
    found = difference_of(result)
    assert max(map(abs, found.interval)) < 0.2 and is_decided(found)
    assert found.verdict == "not separable, less than 0.2 apart"
    assert "cannot be told apart in mean AUC, and are less than 0.2 apart" in block_of(result).conclusion
    (line,) = sentences(result, {})
    assert line.startswith("chestxray14: mae and none not separable, less than 0.2 apart with 100 % of the labels")


def test_without_a_margin_a_small_difference_is_not_decided(seeds):
    found = difference_of(compare(seeds(range(8), decide=Decide(max_seeds=8))))
    assert found.verdict == "not separable" and not is_decided(found)


def test_one_pre_training_that_all_seeds_share_stays_one_draw(seeds):
    found = difference_of(compare(seeds(range(4), gain=6.0, shared=True)))
    assert found.verdict == "better, this pre-training" and is_decided(found)


def test_seeds_without_the_design_are_left_out_of_it(seeds):
    seeds(range(4))
    store = seeds([20, 21], gain=6.0, decide=None)
    result = compare(store)
    assert difference_of(result).num_seeds == 4 and score_of(result).mean > 0.6
    assert any("2 seeds beyond that look left out" in note for note in block_of(result).notes)
    assert any("2 seeds of none beyond that look left out of the difference" in note for note in block_of(result).notes)
    said, difference = block_of(result).conclusion, difference_of(result)
    assert (
        f"{difference.means[0]:.3f} against {difference.means[1]:.3f}, a difference of {difference.value:+.3f}" in said
    )
    assert difference.means[0] < score_of(result).mean
    assert "4 pre-trainings with 4 fine-tunings of mae and 4 trainings of none" in said


def test_another_baseline_than_the_planned_one_is_noted(seeds, store):
    seeds(range(4))
    for seed in range(4):
        add(store, "unimiss", seed, xrays(1.1, seed, num=120, patients=20), pretrain_seed=seed)
    result = compare(store, baseline="unimiss")
    assert looks_of(difference_of(result)) is None
    assert any(
        "until it was told apart from none" in note and "does not allow" in note for note in block_of(result).notes
    )


def test_looks_that_were_changed_after_looking_are_noted(seeds, store):
    seeds(range(4))
    for run in store.search({"premed.kind": "experiment"}):
        store.set_tags(run.run_id, design_tags(Decide(max_seeds=12)))
    assert any("the looks were changed after looking" in note for note in block_of(compare(store)).notes)
    assert difference_of(compare(store)).looks.planned == (4, 6, 8, 10, 12)


def test_several_arms_are_each_at_their_own_look_and_corrected_together(seeds, store):
    seeds(range(6))
    for seed in range(4):
        rows = xrays(7.0, seed, num=120, patients=20)
        store.set_tags(add(store, "unimiss", seed, rows, pretrain_seed=seed), design_tags(DECIDE))
    result = compare(store)
    one, two = difference_of(result), difference_of(result, "unimiss")
    assert (one.num_seeds, two.num_seeds) == (6, 4) and two.p_holm == pytest.approx(2 * two.p)


def test_ordinals():
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 22)] == ["1st", "2nd", "3rd", "4th", "11th", "22nd"]
