"""Which samples make up which step, of several data sets: turns, equal shares, and orders of their own."""

from math import ceil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stages import jobs

from premed.data.samplers import AlternatingSampler, BalancedSampler, EpochSampler
from premed.errors import UserError
from premed.pretext import mae
from premed.training.fit import share
from premed.training.schedule import planned

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def settings(batch, epochs=1, steps=None):
    return SimpleNamespace(batch=batch, epochs=epochs, steps=steps, seed=0)


def whose(indices, sizes):
    """The data set that each sample of a step is of."""
    return np.searchsorted(np.cumsum(sizes), indices.samples, side="right")


def in_turn(sizes, batch, epochs=1, interval=2, steps=None):
    return AlternatingSampler.of(settings(batch, epochs, steps), sizes, "pretrain", interval)


def balanced(sizes, batch, epochs=1, steps=None):
    return BalancedSampler.of(settings(batch, epochs, steps), sizes, "pretrain")


# ---- in turn


def test_two_epochs_of_one_data_set_are_followed_by_two_of_the_next():
    sizes, steps = [10, 5], []
    plan = in_turn(sizes, batch=4, epochs=8)
    for step in range(plan.num_steps):
        (number,) = set(whose(plan.at(step), sizes))
        steps.append((number, plan.at(step).epoch))
    first = [(0, epoch) for epoch in (0, 1) for _ in range(3)] + [(1, epoch) for epoch in (0, 1) for _ in range(2)]
    assert steps == first + [(number, epoch + 2) for number, epoch in first]


@given(SIZES, st.integers(1, 9), st.integers(1, 30), st.integers(1, 3))
def test_epochs_are_counted_over_all_data_sets(sizes, batch, epochs, interval):
    plan = in_turn(sizes, batch, epochs, interval)
    turns = [epoch // interval % len(sizes) for epoch in range(epochs)]
    assert plan.num_steps == sum(ceil(sizes[number] / batch) for number in turns)


@given(SIZES, st.integers(1, 9), st.integers(1, 3))
def test_an_epoch_of_a_data_set_takes_each_of_its_images_once(sizes, batch, interval):
    plan = in_turn(sizes, batch, 3 * interval * len(sizes), interval)
    seen: dict = {}
    for indices in map(plan.at, range(plan.num_steps)):
        (number,) = set(whose(indices, sizes))
        seen.setdefault((number, indices.epoch), []).extend(indices.samples.tolist())
    begins = np.cumsum([0, *sizes])
    assert {key: sorted(samples) for key, samples in seen.items()} == {
        (number, epoch): list(range(begins[number], begins[number + 1]))
        for number in range(len(sizes))
        for epoch in range(3 * interval)
    }


def test_of_one_data_set_turns_are_epochs_as_ever():
    plan, other = in_turn([23], batch=4, epochs=9), EpochSampler(23, 4, 54, 0, "pretrain")
    assert plan.num_steps == other.num_steps
    for step in range(54):
        ours, theirs = plan.at(step), other.at(step)
        assert (ours.epoch, ours.samples.tolist()) == (theirs.epoch, theirs.samples.tolist())


# ---- in equal shares


@given(SIZES, st.integers(1, 12), st.integers(0, 50), st.integers(1, 30))
def test_over_any_stretch_of_steps_data_sets_differ_by_one_image_at_the_most(sizes, batch, begin, length):
    plan = balanced(sizes, batch)
    numbers = np.concatenate([whose(plan.at(step), sizes) for step in range(begin, begin + length)])
    counts = np.bincount(numbers, minlength=len(sizes))
    assert counts.sum() == batch * length and counts.max() - counts.min() <= 1


@given(SIZES, st.integers(1, 12))
def test_a_data_set_goes_through_all_its_images_before_one_comes_again(sizes, batch):
    plan = balanced(sizes, batch)
    indices = [plan.at(step) for step in range(3 * len(sizes) * max(sizes) // batch + 1)]
    samples, epochs = (np.concatenate([getattr(pick, name) for pick in indices]) for name in ("samples", "epoch"))
    begins = np.cumsum([0, *sizes])
    for number, size in enumerate(sizes):
        mine = (samples >= begins[number]) & (samples < begins[number + 1])
        for epoch in range(epochs[mine].max()):  # the last may not be over
            assert sorted(samples[mine & (epochs == epoch)]) == list(range(begins[number], begins[number] + size))


@given(st.integers(2, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_each_rank_s_share_has_as_many_of_each_data_set(num, each, world, step):
    sizes = [9] * num
    whole = balanced(sizes, batch=num * each * world).at(step)
    for rank in range(world):
        (indices,) = share(whole, rank, world)
        assert np.bincount(whose(indices, sizes)).tolist() == [each] * num


def test_an_epoch_takes_as_many_images_as_there_are():
    assert balanced([10, 3, 4], batch=8, epochs=5).num_steps == 5 * 3
    assert balanced([10, 3, 4], batch=8, epochs=5, steps=7).num_steps == in_turn([3, 4], 8, 5, steps=7).num_steps == 7


# ---- both


@pytest.mark.parametrize("kind", [in_turn, balanced])
def test_the_order_of_a_data_set_depends_on_no_other_s_size(kind):
    def second(sizes):
        plan = kind(sizes, batch=4)
        dealt = [(plan.at(step).epoch, plan.at(step).samples) for step in range(40)]
        pairs = [
            pair for epoch, samples in dealt for pair in zip(np.broadcast_to(epoch, len(samples)), samples, strict=True)
        ]
        return [(int(epoch), int(i) - sizes[0]) for epoch, i in pairs if sizes[0] <= i < sizes[0] + sizes[1]][:14]

    assert second([5, 7, 3]) == second([30, 7, 9])
    assert [i for _, i in second([7, 7])[:7]] != [int(i) for i in kind([7], batch=7).at(0).samples]


@pytest.mark.parametrize("kind", [in_turn, balanced])
def test_a_step_does_not_depend_on_what_was_asked_before_it(kind):
    sizes = [11, 4]
    there = [kind(sizes, batch=3).at(step).samples.tolist() for step in range(30)]
    assert [kind(sizes, batch=3).at(step).samples.tolist() for step in reversed(range(30))] == there[::-1]


# ---- a strategy's own


def test_a_strategy_s_own_plan_is_taken_with_the_rate_over_all_its_steps(tmp_path, monkeypatch):
    def plan(config, settings, sizes, draws):
        return AlternatingSampler.of(settings, sizes, draws, interval=1)

    monkeypatch.setattr(mae, "plan", plan, raising=False)
    stage = jobs(tmp_path, tmp_path, pretrain={"steps": None, "epochs": 4, "warmup_epochs": 1})["pretrain"].stage
    found, schedule = planned(stage, [16, 9])
    assert isinstance(found, AlternatingSampler) and (found.num_steps, schedule.num_steps) == (8, 8)
    assert schedule.warmup_steps == 2
    on_trunk = jobs(tmp_path, tmp_path, pretrain={"steps": None, "epochs": 4, "trunk": [2, 4]})["trunk"].stage
    with pytest.raises(UserError, match=r"^pretrain\.trunk: mae plans a fixed number of steps; leave trunk out"):
        planned(on_trunk, [16, 9])
