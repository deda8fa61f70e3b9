"""rng.py: the same bits everywhere, uniform, and independent of their neighbours."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from premed.rng import SampleRng, bits, fold, key, permutation, sample_keys, uniform

KEYS = st.integers(-(2**63), 2**63 - 1)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


# The same everywhere --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@given(of=st.lists(KEYS, min_size=1, max_size=5), value=KEYS, n=st.integers(1, 9))
def test_numpy_and_torch_draw_the_same_bits(device, of, value, n):
    ours, theirs = np.array(of, np.int64), torch.tensor(of, dtype=torch.int64, device=device)
    np.testing.assert_array_equal(fold(ours, value), fold(theirs, value).cpu())
    np.testing.assert_array_equal(fold(ours, "mask"), fold(theirs, "mask").cpu())
    np.testing.assert_array_equal(fold(ours, ours), fold(theirs, theirs).cpu())
    np.testing.assert_array_equal(bits(ours, n), bits(theirs, n).cpu())
    np.testing.assert_array_equal(uniform(ours, n), uniform(theirs, n).cpu())


@given(of=KEYS, name=st.one_of(st.text(), KEYS), n=st.integers(1, 70))
def test_a_sample_s_draws_are_those_of_arrays(of, name, n):
    draw, keys = SampleRng(of), np.asarray(of, np.int64)
    assert draw.child(name).key == int(fold(keys, name))
    drawn = uniform(fold(keys, str(name)), n)
    np.testing.assert_array_equal(draw.uniform(str(name), n), drawn, strict=True)
    assert draw.integer(str(name), 1 + n) == min(int(drawn[0].astype(np.float64) * (1 + n)), n)
    for probability in (0.0, 0.2, float(drawn[0]), np.nextafter(float(drawn[0]), 1), 1.0):
        assert draw.chance(str(name), probability) == bool(drawn[0] < probability)


def test_the_bits_are_splitmix64s():
    # the generator of Steele, Lea and Flood, started at 1234567: its well-known first outputs
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert bits(np.asarray(1234567), 5).astype(np.uint64).tolist() == expected


def test_known_draws_stay_as_they_are():
    assert key(0, "pretrain", 3) == 7547795792879027380
    assert sample_keys(0, "pretrain", 3, np.array([0, 5])).tolist() == [-4932111772348162566, 2926678124837818769]
    assert permutation(key("order"), 8).tolist() == [5, 6, 7, 1, 4, 2, 3, 0]
    assert (SampleRng(7).uniform("x", 3) * 2**24).tolist() == [11438932, 7729281, 13752309]
    assert SampleRng(7).child("crop").integer("y", 1000) == 549


def test_no_draw_warns_of_an_overflow():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw = SampleRng(2**63 - 1).child("crop").child(-1)
        assert len(draw.uniform("x", 3)) == 3 and draw.integer("y", 7) < 7 and not draw.chance("z", 0)
        assert len(permutation(-(2**63), 10)) == 10
        assert len(fold(sample_keys(2**62, "s", 2**40, np.array([2**62])), 2**63 - 1)) == 1


# What keys tell apart -------------------------------------------------------------------------------------------------


def test_keys_tell_numbers_names_and_their_order_apart():
    names = [(1, 2), (2, 1), (12,), ("1", 2), (1, "2"), ("12",), (1, 2, 0), ("",), ()]
    assert len({key(*some) for some in names}) == len(names)


def test_a_samples_key_does_not_depend_on_what_is_drawn_beside_it():
    together = sample_keys(0, "s", 1, np.array([4, 9, 2]))
    alone = [sample_keys(0, "s", 1, np.array([i]))[0] for i in (4, 9, 2)]
    assert together.tolist() == alone


def test_seed_stage_epoch_and_sample_each_make_other_keys():
    settings = [(seed, stage, epoch) for seed in range(5) for stage in ("a", "b") for epoch in range(5)]
    every = np.concatenate([sample_keys(*some, np.arange(200)) for some in settings])
    assert len(np.unique(every)) == len(every)


# Uniform and independent ----------------------------------------------------------------------------------------------

NEIGHBOURS = {
    "seeds": [(seed, "s", 0) for seed in range(6)],
    "stages": [(0, stage, 0) for stage in "abcdef"],
    "epochs": [(0, "s", epoch) for epoch in range(6)],
}


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_neighbouring_runs_draw_uniformly_and_on_their_own(what):
    drawn = [uniform(sample_keys(*some, np.arange(5000)), 1)[:, 0] for some in NEIGHBOURS[what]]
    assert all(stats.kstest(some, "uniform").pvalue > 1e-3 for some in drawn)
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.06 for a, b in pairwise(drawn))


def test_neighbouring_samples_and_draws_are_independent():
    drawn = uniform(sample_keys(0, "s", 0, np.arange(3000)), 6).astype(np.float64)
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 1e-3
    between_draws = np.corrcoef(drawn.T) - np.eye(6)
    between_samples = [np.corrcoef(drawn[:-1, i], drawn[1:, j])[0, 1] for i in range(6) for j in range(6)]
    assert abs(between_draws).max() < 0.08 and max(map(abs, between_samples)) < 0.08


def test_every_bit_is_set_half_of_the_time():
    drawn = bits(np.arange(5000), 1)[:, 0].astype(np.uint64)
    set_share = [(drawn >> np.uint64(i) & np.uint64(1)).mean() for i in range(64)]
    np.testing.assert_allclose(set_share, 0.5, atol=0.04)


@given(of=KEYS)
def test_uniform_lies_in_zero_to_one_and_is_a_multiple_of_2_to_the_minus_24(of):
    drawn = uniform(np.asarray(of, np.int64), 20)
    assert drawn.dtype == np.float32 and (drawn >= 0).all() and (drawn < 1).all()
    assert (drawn.astype(np.float64) * 2**24 % 1 == 0).all()


# Orders and named draws -----------------------------------------------------------------------------------------------


@given(of=KEYS, n=st.integers(1, 200))
def test_a_permutation_has_each_number_once_and_is_the_same_again(of, n):
    order = permutation(of, n)
    assert sorted(order) == list(range(n))
    assert permutation.__wrapped__(of, n).tolist() == order.tolist()


def test_every_number_is_first_equally_often():
    first = [permutation(key("first", i), 6)[0] for i in range(3000)]
    assert stats.chisquare(np.bincount(first, minlength=6)).pvalue > 1e-3


def test_a_permutation_cannot_be_changed_by_who_asked_for_it():
    with pytest.raises(ValueError, match="read-only"):
        permutation(1, 5)[0] = 3


def test_a_draws_names_and_children_do_not_move_each_other():
    of = sample_keys(0, "s", 0, np.arange(3000)).tolist()
    columns = {
        "a": [SampleRng(k).uniform("a")[0] for k in of],
        "b": [SampleRng(k).uniform("b")[0] for k in of],
        "child": [SampleRng(k).child("a").uniform("a")[0] for k in of],
        "0": [SampleRng(k).child(0).uniform("a")[0] for k in of],
        "1": [SampleRng(k).child(1).uniform("a")[0] for k in of],
    }
    assert abs(np.corrcoef(list(columns.values())) - np.eye(5)).max() < 0.08


@given(of=KEYS, low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3))
def test_a_draw_stays_below_its_high_end(of, low, width):
    low, high = float(np.float32(low)), float(np.float32(low + width))
    drawn = SampleRng(of).uniform("x", 8, low, np.float64(high))
    assert drawn.dtype == np.float32
    assert (low <= drawn).all() and (drawn < high).all()


def test_a_sum_that_rounds_up_to_the_high_end_is_taken_back(monkeypatch):
    monkeypatch.setattr("premed.rng.uniform", lambda keys, n: np.full(n, 1 - 2.0**-24, np.float32))
    assert SampleRng(0).uniform("x", 1, 100, 101)[0] < 101


@given(of=KEYS, below=st.integers(1, 2**40))
def test_an_integer_lies_below_its_bound(of, below):
    assert 0 <= SampleRng(of).integer("x", below) < below


def test_chances_come_true_as_often_as_they_should():
    for probability in (0.0, 0.2, 1.0):
        share = np.mean([SampleRng(i).chance("x", probability) for i in range(2000)])
        assert abs(share - probability) < 0.04 * (0 < probability < 1) + 1e-9
