"""The queue between the driver and the workers: every rank does every job, in order, and no restart loses one."""

import pytest

from premed.execution import job_queue as module
from premed.execution.job_queue import JobQueue, Signal

RANKS = (0, 1)


def finish(queue, number):
    for rank in RANKS:
        assert isinstance(queue.take(number), str)
        queue.finish(number, rank, 2)


@pytest.fixture
def queue():
    queue = JobQueue()
    assert [queue.first(rank) for rank in RANKS] == [0, 0]
    return queue


def test_jobs_are_taken_in_order_and_done_when_every_rank_is_through(queue):
    assert queue.take(0) == Signal.WAIT
    assert queue.put("pretrain") == 0
    assert queue.take(0) == "pretrain"
    queue.finish(0, 1, 2)
    assert not queue.done(0)
    queue.finish(0, 0, 2)
    assert queue.done(0)
    assert queue.take(1) == Signal.WAIT
    assert queue.put("finetune") == 1 and queue.take(1) == "finetune"


def test_a_group_that_was_started_again_goes_on_with_the_first_job_that_is_not_done(queue):
    for job in ("pretrain", "finetune"):
        queue.put(job)
    finish(queue, 0)
    queue.finish(1, 0, 2)  # rank 1 died on the way
    assert queue.fresh()
    assert [queue.first(rank) for rank in RANKS] == [1, 1]
    assert not queue.fresh() and queue.take(1) == "finetune"


def test_a_job_is_done_when_all_ranks_of_one_start_are_through_however_many_there_were_before(queue):
    queue.put("pretrain")
    queue.finish(0, 1, 2)  # rank 0, which writes the result, died
    assert queue.first(0) == 0 and not queue.done(0)
    queue.finish(0, 0, 1)
    assert queue.done(0)


def test_a_closed_queue_takes_no_job_and_shuts_all_ranks_down_after_the_last(queue):
    queue.put("pretrain")
    queue.close()
    assert queue.put("finetune") is None
    assert queue.take(0) == "pretrain" and queue.take(1) == Signal.SHUTDOWN


def test_nobody_waits_longer_for_work_than_is_worth_the_resources(queue, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    queue.put("pretrain")
    finish(queue, 0)
    clock[0] += module.IDLE - 1
    assert queue.take(1) == Signal.WAIT
    clock[0] += 2
    assert queue.take(1) == Signal.SHUTDOWN and queue.put("finetune") is None


def test_a_gated_job_waits_after_each_validation_and_all_ranks_get_the_same_answer():
    queue = JobQueue()
    queue.put("finetune", gated=True)
    assert queue.asked_step(0) is None and queue.may_continue(0, 10) is None and queue.asked_step(0) == 10
    queue.allow(0, 10)
    assert queue.may_continue(0, 10) is True and queue.may_continue(0, 20) is None
    queue.allow(0, 20)
    assert queue.may_continue(0, 20) is True
    queue.cancel(0)  # one rank went on from here: so do the others
    assert queue.may_continue(0, 20) is True and queue.may_continue(0, 30) is False


def test_a_job_that_is_not_gated_continues_by_itself_until_it_is_cancelled():
    queue = JobQueue()
    queue.put("pretrain")
    assert queue.may_continue(0, 10) is True
    queue.cancel(0)
    assert queue.may_continue(0, 20) is False


def test_a_stopped_job_ends_where_it_is_and_no_other_begins(queue):
    for job in ("pretrain", "finetune"):
        queue.put(job, gated=True)
    assert queue.stopping(0) is False and queue.may_continue(0, 10) is None
    assert queue.stop(0) and queue.stopping(0)  # a training, which saves a checkpoint first
    assert queue.may_continue(0, 10) is True  # from its validation to the checkpoint
    assert not queue.first_done(0)
    queue.finish(0, 0, 2)
    assert queue.first_done(0) and not queue.stop(0)
    assert queue.put("test") is None


def test_of_a_job_that_is_not_training_nothing_is_waited_for(queue):
    queue.put("pretrain")
    assert not queue.stop(0)
    assert queue.take(0) == Signal.SHUTDOWN
