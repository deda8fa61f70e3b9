"""The desk between the driver and the workers: every rank does every job, in order, and none is lost to a restart."""

import pytest

from premed import desk as room
from premed.desk import Desk

RANKS = (0, 1)


def through(desk, number):
    for rank in RANKS:
        assert isinstance(desk.take(number), tuple)
        desk.finish(number, rank, 2)


@pytest.fixture
def desk():
    desk = Desk()
    assert [desk.first(rank) for rank in RANKS] == [0, 0]
    return desk


def test_jobs_are_taken_in_order_and_done_when_every_rank_is_through(desk):
    assert desk.take(0) == "wait"
    assert desk.put("pretrain", "a") == 0
    assert desk.take(0) == ("pretrain", "a")
    desk.finish(0, 1, 2)
    assert not desk.done(0)
    desk.finish(0, 0, 2)
    assert desk.done(0)
    assert desk.take(1) == "wait"
    assert desk.put("finetune", "b") == 1 and desk.take(1) == ("finetune", "b")


def test_a_group_that_was_started_again_goes_on_with_the_first_job_that_is_not_done(desk):
    for job in ("pretrain", "finetune"):
        desk.put(job, job)
    through(desk, 0)
    desk.finish(1, 0, 2)  # rank 1 died on the way
    assert desk.fresh()
    assert [desk.first(rank) for rank in RANKS] == [1, 1]
    assert not desk.fresh() and desk.take(1) == ("finetune", "finetune")


def test_a_job_is_done_when_all_ranks_of_one_start_are_through_however_many_there_were_before(desk):
    desk.put("pretrain", "a")
    desk.finish(0, 1, 2)  # rank 0, which writes the result, died
    assert desk.first(0) == 0 and not desk.done(0)
    desk.finish(0, 0, 1)
    assert desk.done(0)


def test_a_closed_desk_takes_no_job_and_sends_everybody_home_after_the_last(desk):
    desk.put("pretrain", "a")
    desk.close()
    assert desk.put("finetune", "b") is None
    assert desk.take(0) == ("pretrain", "a") and desk.take(1) == "go home"


def test_nobody_waits_longer_for_work_than_is_worth_the_resources(desk, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: clock[0])
    desk.put("pretrain", "a")
    through(desk, 0)
    clock[0] += room.IDLE - 1
    assert desk.take(1) == "wait"
    clock[0] += 2
    assert desk.take(1) == "go home" and desk.put("finetune", "b") is None


def test_a_job_waits_after_each_validation_for_leave_and_all_ranks_hear_the_same():
    desk = Desk()
    desk.put("finetune", "a", True)
    assert desk.may_go_on(0, 10) is None
    desk.rule(0, 10)
    assert desk.may_go_on(0, 10) is True and desk.may_go_on(0, 20) is None
    desk.rule(0, 20)
    assert desk.may_go_on(0, 20) is True
    desk.call_off(0)  # one rank went on from here: so do the others
    assert desk.may_go_on(0, 20) is True and desk.may_go_on(0, 30) is False


def test_a_job_without_a_scheduler_goes_on_by_itself_until_it_is_called_off():
    desk = Desk()
    desk.put("pretrain", "a")
    assert desk.may_go_on(0, 10) is True
    desk.call_off(0)
    assert desk.may_go_on(0, 20) is False
