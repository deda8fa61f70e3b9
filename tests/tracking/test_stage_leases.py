"""Leases: two processes, killed ones, silent ones, on real SQLite stores."""

import multiprocessing.connection
import os
import signal
import subprocess
import time

import psutil
import pytest
from support.forks import fork
from support.stores import start, unreachable

from premed.tracking.provenance import gone, process_tags
from premed.tracking.run_store import RunStore
from premed.tracking.stage_leases import Lease, close_dead_runs

pytest_plugins = ["support.store_fixtures"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def race(uri, rounds, barrier, wins):
    store = RunStore(uri)
    for number in range(rounds):
        lease = Lease(store)
        barrier.wait(60)
        if lease.acquire(f"stage {number}", f"{os.getpid()}"):
            wins.put((number, os.getpid()))
        barrier.wait(60)
        lease.release()


def test_of_two_processes_that_start_together_one_gets_the_lease(tmp_path):
    barrier, wins, rounds = fork.Barrier(2), fork.Queue(), 6
    both = [fork.Process(target=race, args=(f"sqlite:///{tmp_path}/new.db", rounds, barrier, wins)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    held = [wins.get(timeout=1) for _ in range(rounds)]
    assert sorted(number for number, _ in held) == list(range(rounds))
    assert wins.empty()


def hold(uri, pipe):
    store = RunStore(uri)
    assert Lease(store).acquire("d", "first")
    pipe.send(start(store, "d", "pretrain"))
    signal.pause()


def test_the_lease_of_a_killed_process_is_taken_over_at_once(store):
    mine, theirs = fork.Pipe()
    child = fork.Process(target=hold, args=(store.uri, theirs))
    child.start()
    assert mine.poll(60)
    run_id = mine.recv()
    assert not Lease(store).acquire("d", "second")
    child.kill()
    multiprocessing.connection.wait([child.sentinel])  # dead, and not yet reaped
    lease = Lease(store)
    assert lease.acquire("d", "second")
    assert store.get(run_id).status == "KILLED"
    assert lease.heartbeat()
    child.join()


def test_a_clock_that_is_set_while_a_lease_is_held_changes_nothing(store, monkeypatch):
    """Neither this process's identity nor its heartbeat depends on the time of day."""
    lease, run_id = Lease(store), start(store, "d", "pretrain")
    assert lease.acquire("d", "first")
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1.0)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    assert close_dead_runs(store) == []
    assert not Lease(store).acquire("d", "second")
    assert lease.heartbeat() and store.get(run_id).status == "RUNNING"


def test_a_process_of_another_boot_or_with_a_used_number_is_gone():
    mine = process_tags()
    boot, _, ticks = mine["premed.born"].partition(":")
    assert not gone(mine)
    assert gone(mine | {"premed.born": f"{boot}:{int(ticks) + 1}"}) and gone(mine | {"premed.born": f"other:{ticks}"})
    by_clock = f"{psutil.Process().create_time():.2f}"  # as versions before this one wrote it
    assert not gone(mine | {"premed.born": by_clock}) and gone(mine | {"premed.born": "1.00"})


@pytest.mark.parametrize("change", [{"premed.pid": "many"}, {"premed.born": "long ago"}, {"premed.born": None}])
def test_of_a_process_whose_tags_were_changed_nothing_is_known(change):
    """They can be edited in MLflow's UI; the next `premed run` closes the runs of ended processes first of all."""
    tags = {name: value for name, value in (process_tags() | change).items() if value is not None}
    assert not gone(tags)


def test_close_dead_runs_marks_what_an_ended_process_left_running(store):
    left, alive, claim = start(store), start(store), Lease(store)
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert claim.acquire("d", "ended")
    for run_id in (left, claim.mine):
        store.client.set_tag(run_id, "premed.pid", ended.pid)
    assert close_dead_runs(store) == [left]
    assert [store.get(run_id).status for run_id in (left, alive)] == ["KILLED", "RUNNING"]
    assert list(store.search({}, experiment="premed leases")) == []


def test_a_lease_is_free_again_when_released(store):
    first, second = Lease(store), Lease(store)
    assert first.acquire("d", "a") and not second.acquire("d", "b") and second.acquire("other", "b")
    first.release()
    first.release()
    assert not first.heartbeat()
    assert Lease(store).acquire("d", "c")


@pytest.fixture
def far(store):
    """A lease held on another host."""
    lease = Lease(store)
    assert lease.acquire("d", "far")
    for tag, value in process_tags().items():
        store.client.set_tag(lease.mine, tag, f"far {value}" if tag == "premed.host" else value)
    return lease


def polls(lease, clock, every, times, between=lambda: None):
    for _ in range(times):
        if lease.acquire("d", "near"):
            return True
        between()
        clock.now += every
    return False


def test_a_silent_holder_elsewhere_loses_its_lease_after_a_while(store, far):
    clock = Clock()
    near = Lease(store, stale_after=60, clock=clock)
    run_id = start(store)
    assert not polls(near, clock, 10, 6)
    assert polls(near, clock, 10, 1)
    assert not far.heartbeat()
    assert store.get(run_id).status == "KILLED"


def test_a_holder_elsewhere_that_sends_heartbeats_keeps_its_lease(store, far):
    clock = Clock()
    assert not polls(Lease(store, stale_after=60, clock=clock), clock, 20, 12, between=far.heartbeat)


def test_no_lease_is_lost_in_an_outage_between_two_polls(store, far):
    clock = Clock()
    assert not polls(Lease(store, stale_after=60, clock=clock), clock, 3600, 3)
    far.store = unreachable()
    assert far.heartbeat()


def test_claims_do_not_show_among_the_runs(store):
    Lease(store).acquire("d", "a")
    assert list(store.search({"premed.digest": "d"})) == []
