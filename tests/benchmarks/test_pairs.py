"""Times of two works in turn, and what is computed from them, against formulas written out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premed.benchmarks.pairs import interleaved, timed
from premed.benchmarks.result import Floor, Result, Spread, Times

SECONDS = st.floats(1e-3, 1e3)


def measured(num, theirs=True):
    """The order of the executions, and the pairs that were reported."""
    order, reported = [], []

    def work(name):
        def run():
            order.append(name)
            return Times(len(order), 0.0)

        return run

    def on_pair(ours, other):
        reported.append((int(ours.cpu), other and int(other.cpu)))

    interleaved(work("a"), work("b") if theirs else None, num, on_pair)
    return "".join(order), reported


def test_pairs_run_in_turn_and_every_other_one_the_other_way_round():
    assert measured(3) == ("abbaab", [(1, 2), (4, 3), (5, 6)])
    assert measured(2, theirs=False) == ("aa", [(1, None), (2, None)])


def test_a_time_is_the_process_s_own_cpu_and_a_clock_s():
    took = timed(lambda: sum(i * i for i in range(10**5)))
    assert 0 < took.cpu < 60 and took.wall > 0
    assert timed(lambda: Times(1, 2)) == Times(1, 2)  # of what measures itself


def test_what_a_device_still_computes_is_waited_for_on_both_sides_of_a_time():
    order = []
    timed(lambda: order.append("work"), lambda: order.append("wait"))
    assert order == ["wait", "work", "wait"]


def quantile(values, share):
    """Linear between the sorted values, of which the first is 0 and the last is 1."""
    values, place = sorted(values), share * (len(values) - 1)
    low, high = values[math.floor(place)], values[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS, SECONDS), min_size=1, max_size=9))
def test_the_ratio_is_the_median_of_the_pairs_own_ratios_with_their_quartiles(numbers):
    result = Result("row", "peer", "cpu")
    result.ours = [Times(cpu, wall) for cpu, wall, _, _ in numbers]
    result.theirs = [Times(cpu, wall) for _, _, cpu, wall in numbers]
    for clock, ratios in {
        "cpu": [theirs / ours for ours, _, theirs, _ in numbers],
        "wall": [theirs / ours for _, ours, _, theirs in numbers],
    }.items():
        found = result.ratio(clock)
        assert found is not None
        wanted = [quantile(ratios, share) for share in (0.5, 0.25, 0.75)]
        assert [found.median, found.low, found.high] == pytest.approx(wanted)
    assert result.ratio() == result.ratio("cpu")
    assert result.seconds() == pytest.approx(quantile([ours for ours, *_ in numbers], 0.5))
    assert result.seconds("theirs", "wall") == pytest.approx(quantile([wall for *_, wall in numbers], 0.5))


def test_the_share_of_the_floor_is_the_floor_over_the_median_time():
    result = Result("row", "peer", "wall", floor=Floor("", 0.5))
    assert result.share_of_floor() is None and result.ratio() is None and result.seconds() is None
    result.ours = [Times(9, seconds) for seconds in (4.0, 1.0, 2.0)]
    assert result.share_of_floor() == 0.25


def test_a_pair_whose_second_half_is_still_missing_has_no_ratio():
    result = Result("row", "peer", ours=[Times(1, 1), Times(1, 1)], theirs=[Times(3, 3)])
    assert result.ratio() == Spread(3, 3, 3)
