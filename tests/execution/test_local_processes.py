"""Ranks of process groups on this machine, without Ray: what they return, and that none waits for one that failed."""

import os
import signal
import time

import pytest

from premed.distributed import all_gather
from premed.errors import UserError
from premed.execution.local_processes import run_processes


def meet(value, together):
    """What the ranks of a group tell each other, and when all groups had begun."""
    began = time.time()
    number = together()
    return all_gather((value, os.getpid())), number, began, time.time()


def fail(error, together):
    if together() == 1:
        raise error
    all_gather(1)
    time.sleep(600)


def die(together):
    os.kill(os.getpid(), signal.SIGKILL)


def test_ranks_meet_in_their_group_and_groups_begin_together():
    found = run_processes("pretrain", meet, "a", ranks=2, groups=2)
    first, second = found[0][0], found[2][0]
    assert found[1][0] == first and found[3][0] == second  # each group knows its own ranks alone
    assert len({pid for _, pid in (*first, *second)}) == 4 and {value for value, _ in first} == {"a"}
    assert sorted(each[1] for each in found) == [0, 1, 2, 3]
    assert max(each[2] for each in found) <= min(each[3] for each in found)


def test_one_that_fails_ends_the_others():
    began = time.monotonic()
    with pytest.raises(UserError, match="^no val images$"):
        run_processes("pretrain", fail, UserError("no val images"), ranks=2)
    assert time.monotonic() - began < 300


def test_a_process_that_runs_out_of_memory_is_one_line():
    with pytest.raises(UserError, match="^pretrain: does not fit: its process was killed, .*; make smaller task.roi"):
        run_processes("pretrain", die)
