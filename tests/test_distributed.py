"""distributed.py: several ranks learn together, and soon, that they are to stop."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stages import on_ranks
from support.suite import examples

from premed import distributed
from premed.distributed import LOOK, MOST_STEPS, SharedLook


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


def looks(seconds, stop_at=float("inf"), validations=()):
    """The times at which a training looks whose steps take so many seconds each, and when it stops, if it does.

    validations: the steps after which it validates for a minute, and looks before and after it.
    """
    times, clock, look = [], Clock(), SharedLook(torch.device("cpu"))

    def stopping():
        times.append(clock.now)
        return clock.now >= stop_at

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "time", clock)
        patch.setattr(distributed.dist, "broadcast", lambda tensor, rank: None)
        for step, duration in enumerate(seconds, 1):
            clock.now += duration
            if look(step, stopping, always=step in validations):
                return times, clock.now
            if step in validations:
                clock.now += 60
                if look(step, stopping, always=True):
                    return times, clock.now
    return times, None


@settings(max_examples=examples(60))
@given(st.floats(1e-4, 30), st.floats(0, 1), st.sets(st.integers(1, 400), max_size=3))
def test_steps_of_any_length_are_followed_by_a_look_within_half_a_second_and_not_by_many(seconds, when, validations):
    total = 400 * seconds
    times, stopped = looks([seconds] * 400, when * total, validations)
    assert stopped is not None and stopped - when * total <= LOOK + seconds + 60 * bool(validations) + 1e-6
    times, _ = looks([seconds] * 400)
    assert max(later - sooner for sooner, later in zip(times, times[1:], strict=False)) <= max(LOOK, seconds) + 1e-6
    assert len(times) <= min(400, 2 * total / LOOK + 400 / MOST_STEPS + 2)


def test_steps_that_become_slow_between_two_looks_are_looked_at_before_a_stopped_command_leaves():
    _, stopped = looks([0.001] * 200 + [0.3] * 400, stop_at=0.25)
    assert stopped is not None and stopped - 0.25 < 20


def rank_main(folder):
    """Two ranks, of which the second has a clock of its own; the first is to stop from its twentieth look on."""
    rank, _ = distributed.rank_and_world()
    clock, look, asked, answers = Clock(), SharedLook(torch.device("cpu")), [], []
    distributed.time = clock

    def stopping():
        asked.append(rank)
        return len(asked) >= 20

    for step in range(1, 2000):
        clock.now += [0.02 if step < 300 else 0.2, 7.0][rank]
        answers.append(look(step, stopping))
        if answers[-1]:
            break
    (folder / f"{rank}.json").write_text(json.dumps([answers, asked]))


@pytest.mark.slow
def test_all_ranks_stop_after_the_same_step_by_the_first_ones_clock(tmp_path):
    assert on_ranks(2, rank_main, tmp_path) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] == second[0] and first[0][-1] is True
    assert first[1] == [0] * 20 and second[1] == []
    assert 300 < len(first[0]) < 340
