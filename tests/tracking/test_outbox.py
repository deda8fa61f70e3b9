"""The outbox: outages, kills, replays; one slow test has a real server in it."""

import json
import math
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from support.forks import fork
from support.servers import MLflowServer
from support.stores import registered, rows, start, steps, stop, unreachable

from premed.tracking.outbox import Outbox, _Journal
from premed.tracking.run_store import RunStore
from premed.tracking.stage_leases import Lease

pytest_plugins = ["support.store_fixtures"]


def test_records_are_delivered_in_order_and_leave_no_file(store, tmp_path):
    run_id, outbox = start(store), Outbox(store, tmp_path / "outbox")
    for step in range(5):
        outbox.add("log_rows", run_id, [{"step": step, "time": step, "metrics": {"loss": np.float32(0.5)}}])
    outbox.add("log_scores", run_id, [{"case": "a", "dice": math.nan}])
    outbox.add("finish", run_id, "FINISHED", end_time=77)
    assert outbox.close(60) == 0
    assert steps(store, run_id) == [0, 1, 2, 3, 4]
    assert store.client.get_run(run_id).info.end_time == 77
    assert not list((tmp_path / "outbox").iterdir())


def test_an_outage_loses_nothing(store, tmp_path):
    run_id, outbox = start(store), Outbox(unreachable(), tmp_path)
    outbox.add("log_rows", run_id, rows(1, 2))
    outbox.add("finish", run_id)
    assert outbox.close(0.1) == 2
    outbox._writer.join(60)  # as if its process had ended
    later = Outbox(store, tmp_path)
    assert later.replay() == 2
    assert later.close(60) == 0
    assert steps(store, run_id) == [1, 2]
    assert store.get(run_id).status == "FINISHED"


def add_and_wait(run_id, folder, pipe):
    outbox = Outbox(unreachable(), folder)
    for step in range(100):
        outbox.add("log_rows", run_id, rows(step))
    pipe.send("written")
    signal.pause()


def test_a_kill_loses_no_record(store, tmp_path):
    run_id, (mine, theirs) = start(store), fork.Pipe()
    child = fork.Process(target=add_and_wait, args=(run_id, tmp_path / "outbox", theirs))
    child.start()
    assert mine.poll(60)
    outbox = Outbox(store, tmp_path / "outbox")
    assert outbox.replay() == 0  # its process lives
    child.kill()
    child.join()
    (tmp_path / "outbox" / f"{run_id}.jsonl").open("a").write('{"call": "log_')  # and it was in the middle of a line
    assert outbox.replay() == 101
    assert outbox.close(60) == 0
    assert steps(store, run_id) == list(range(100))


def test_records_delivered_twice_count_once(store, tmp_path):
    run_id, outbox = start(store), Outbox(unreachable(), tmp_path)
    outbox.add("log_rows", run_id, rows(1, 2))
    outbox.close(0)
    outbox._writer.join(60)
    store.log_rows(run_id, rows(1, 2))  # delivered, but the process ended before it noted that
    later = Outbox(store, tmp_path)
    later.replay()
    assert later.close(60) == 0
    assert steps(store, run_id) == [1, 2]


def test_what_mlflow_refuses_is_put_aside_and_the_rest_goes_on(store, tmp_path, caplog):
    run_id, outbox = start(store), Outbox(store, tmp_path)
    outbox.add("log_files", run_id, tmp_path / "nowhere")
    outbox.add("log_rows", run_id, [{"no": "step"}])
    outbox.add("log_rows", "0" * 32, rows(1))
    outbox.add("log_rows", run_id, rows(1))
    assert outbox.close(60) == 0
    assert steps(store, run_id) == [1]
    refused = [json.loads(line)["record"] for line in (tmp_path / f"{run_id}.rejected.jsonl").open()]
    assert ["nowhere" in refused[0], "step" in refused[1], len(refused)] == [True, True, 2]
    assert caplog.text.count("MLflow refuses") == 2 and caplog.text.count("is gone from MLflow") == 1


def test_a_run_deleted_in_mlflow_while_it_is_recorded_is_restored_with_one_word(store, tmp_path):
    run_id, messages = start(store), []
    outbox = Outbox(store, tmp_path, messages.append)
    outbox.add("log_rows", run_id, rows(1))
    wait_until(lambda: steps(store, run_id) == [1])
    store.client.delete_run(run_id)
    for step in range(2, 30):
        outbox.add("log_rows", run_id, rows(step))
    outbox.add("finish", run_id)
    assert outbox.close(60) == 0
    assert messages == [
        f"run {run_id} was deleted in MLflow while it is recorded; it is restored: stop the command first"
    ]
    assert steps(store, run_id) == list(range(1, 30)) and store.find("d").run_id == run_id


def test_a_run_deleted_with_its_experiment_is_restored_without_the_others(store, tmp_path):
    run_id, other, warnings = start(store), start(store, "other"), []
    outbox = Outbox(store, tmp_path, warnings.append)
    store.client.delete_experiment(store.experiment("chest"))
    outbox.add("log_rows", run_id, rows(1))
    outbox.add("finish", run_id)
    assert outbox.close(60) == 0
    assert len(warnings) == 1 and steps(store, run_id) == [1]
    assert store.client.get_run(run_id).info.lifecycle_stage == "active"
    assert store.client.get_run(other).info.lifecycle_stage == "deleted"


def test_a_run_that_is_gone_for_good_is_told_once_and_its_records_are_kept(store, tmp_path):
    messages, outbox = [], None
    outbox = Outbox(store, tmp_path, messages.append)
    for step in range(150):
        outbox.add("log_rows", "0" * 32, rows(step))
    assert outbox.close(60) == 0
    assert messages == [
        f"run {'0' * 32} is gone from MLflow; its records are kept in {tmp_path}/{'0' * 32}.rejected.jsonl, "
        "and the same command records it anew"
    ]
    assert len((tmp_path / f"{'0' * 32}.rejected.jsonl").read_text().splitlines()) == 150


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 kB, and what fills and frees it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk], capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_loses_no_record_and_is_told_once(store, tmp_path, small_disk):
    """It takes a part of a line at its end, without an error."""
    run_id, messages = start(store), []
    outbox = Outbox(unreachable(), small_disk, lambda text: messages.append(text) if "kept in memory" in text else None)
    for step in range(300):
        outbox.add("log_rows", run_id, rows(step))
    (line,) = messages
    assert "No space left on device" in line and str(small_disk) in line
    outbox.store = store
    assert outbox.close(60) == 0
    assert steps(store, run_id) == list(range(300)) and not list(small_disk.glob("*.rejected*"))


def test_what_the_disk_did_not_take_reaches_it_once_it_does(store, tmp_path, small_disk):
    run_id, messages = start(store), []
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * 12_000)
    outbox = Outbox(unreachable(), small_disk, messages.append)
    for step in range(100):
        outbox.add("log_rows", run_id, rows(step))
    filler.unlink()
    outbox.add("log_rows", run_id, rows(100))
    assert outbox.close(0.1) == 101
    outbox._writer.join(60)  # as if its process had ended
    later = Outbox(store, small_disk)
    assert later.replay() == 101 and later.close(60) == 0
    assert steps(store, run_id) == list(range(101))


def test_what_the_disk_did_not_take_reaches_it_when_the_command_ends(store, tmp_path, small_disk):
    run_id = start(store)
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * 12_000)
    outbox = Outbox(unreachable(), small_disk, lambda text: None)
    for step in range(100):
        outbox.add("log_rows", run_id, rows(step))
    filler.unlink()
    assert outbox.close(0.1) == 100
    outbox._writer.join(60)
    later = Outbox(store, small_disk)
    assert later.replay() == 100 and later.close(60) == 0
    assert steps(store, run_id) == list(range(100))


def test_a_disk_that_cannot_be_read_for_a_moment_ends_no_delivery(store, tmp_path, monkeypatch):
    run_id, warnings, read = start(store), [], _Journal.read

    def fails_once(self):
        monkeypatch.setattr(_Journal, "read", read)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_Journal, "read", fails_once)
    outbox = Outbox(store, tmp_path, warnings.append)
    for step in range(3):
        outbox.add("log_rows", run_id, rows(step))
    assert outbox.close(60) == 0
    assert warnings == [f"{tmp_path}: [Errno 5] Input/output error; trying again", f"{tmp_path} can be used again"]
    assert steps(store, run_id) == [0, 1, 2]


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_runs_that_log_one_dataset_at_once_all_have_it(store, tmp_path, caplog):
    gate, names = threading.Barrier(4), {}

    class Together(RunStore):
        def log_datasets(self, run_id, entries):
            with suppress(threading.BrokenBarrierError):
                gate.wait(0.5)  # until all are about to log; a retry may come alone
            super().log_datasets(run_id, entries)

    outboxes = [Outbox(Together(store.uri), tmp_path / "outbox") for _ in range(4)]
    for number in range(3):
        entry = {"name": f"set {number}", "digest": "d", "context": "train", "source": "here", "num_cases": 3}
        gate.reset()
        mine = [start(store) for _ in outboxes]
        for outbox, run_id in zip(outboxes, mine, strict=True):  # MLflow queries, then inserts: it refuses the second
            outbox.add("log_datasets", run_id, [entry])
            outbox.add("finish", run_id)
        names |= dict.fromkeys(mine, entry["name"])
        while list((tmp_path / "outbox").glob("*.lock")):
            time.sleep(0.01)
    assert [outbox.close(60) for outbox in outboxes] == [0] * 4
    assert not list((tmp_path / "outbox").iterdir()) and not caplog.text
    for run_id, name in names.items():
        assert [each.dataset.name for each in store.client.get_run(run_id).inputs.dataset_inputs] == [name]


def test_a_call_that_cannot_be_delivered_twice_is_refused(store, tmp_path):
    with pytest.raises(ValueError, match="register cannot be delivered later"):
        Outbox(store, tmp_path).add("register", "r")


@pytest.mark.cluster
@pytest.mark.slow
def test_a_server_that_goes_and_comes_back_has_every_metric_once(empty_database, tmp_path, module):
    server = MLflowServer(tmp_path, f"sqlite:///{shutil.copy(empty_database, tmp_path / 'm.db')}")
    try:
        store = RunStore(server.uri)
        run_id, outbox = start(store), Outbox(store, tmp_path / "outbox")
        assert Lease(store).acquire("d", "a") and not Lease(store).acquire("d", "b")
        assert registered(store, run_id, "chest", module, np.zeros((2, 1, 8, 8), np.float32), 0.5, {}) == "1"
        for step in range(30):
            if step == 10:
                stop(server.process)
            if step == 20:
                server.start()
            outbox.add("log_rows", run_id, rows(step))
        outbox.add("log_scores", run_id, [{"case": "a", "dice": 0.5}])
        outbox.add("finish", run_id)
        assert outbox.close(120) == 0
        assert steps(store, run_id) == list(range(30))
        assert store.scores(run_id) == [{"case": "a", "dice": 0.5}]
        assert store.find("d") == store.get(run_id)
    finally:
        stop(server.process)
