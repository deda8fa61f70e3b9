"""The SQLite file of a store: stopped while it is made, locked, full, removed, damaged."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from support.stores import rows, start, steps

from premed.errors import StageFailed, UserError
from premed.tracking import database
from premed.tracking.outbox import Outbox
from premed.tracking.run_store import RunStore
from premed.tracking.tracker import RetryingTracker

pytest_plugins = ["support.store_fixtures"]

LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


@pytest.fixture
def locked(store):
    """Locks the store's file for so many seconds, in another process; returns that."""
    started = []

    def lock(seconds):
        command = [sys.executable, "-c", LOCK, str(database.sqlite_file(store.uri)), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield lock
    for process in started:
        process.kill()
        process.wait()


def test_a_lock_that_ends_is_waited_for_and_told_with_who_holds_it(store, locked, caplog):
    process = locked(2.5)
    RunStore(store.uri)
    (line,) = caplog.messages
    assert line == f"{database.sqlite_file(store.uri)} is locked by process {process.pid} ({comm(process)}); waiting"


def test_a_lock_that_stays_is_one_line(store, locked):
    process = locked(60)
    with pytest.raises(
        UserError, match=rf"mlflow.db is locked by process {process.pid} .* for more than 0 s: end that"
    ):
        database.wait_unlocked(database.sqlite_file(store.uri), patience=0)


def test_a_free_file_is_not_waited_for(store, caplog):
    RunStore(store.uri)
    assert caplog.messages == []


def comm(process):
    with open(f"/proc/{process.pid}/comm") as file:
        return file.read().strip()


def make(folder):
    RunStore(f"sqlite:///{folder}/mlflow.db")


@pytest.mark.parametrize("delay", [0.1, *(pytest.param(delay, marks=pytest.mark.slow) for delay in (0.0, 0.4))])
def test_a_start_that_is_killed_while_the_database_is_made_leaves_none_or_a_whole_one(tmp_path, delay):
    child = multiprocessing.get_context("fork").Process(target=make, args=(tmp_path,))
    child.start()
    partial = tmp_path / ".mlflow.db.partial"
    deadline = time.monotonic() + 60
    while not partial.exists() and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    store = RunStore(f"sqlite:///{tmp_path}/mlflow.db")
    start(store)
    assert not partial.exists()


@pytest.mark.parametrize("missing", [["alembic_version"], ["alembic_version", "inputs", "input_tags"]])
def test_a_database_that_was_left_half_made_is_one_line_with_the_mend(store, missing):
    """As MLflow's own server leaves it: it notes the version of its tables last."""
    file = database.sqlite_file(store.uri)
    with closing(sqlite3.connect(file)) as connection:
        for table in missing:
            connection.execute(f"DROP TABLE {table}")
    copy = file.with_name("half.db")  # MLflow has the other open already
    file.rename(copy)
    with pytest.raises(UserError, match=r"half.db was left half made .* remove it"):
        RunStore(f"sqlite:///{copy}")


def test_a_database_with_runs_that_was_left_half_upgraded_is_not_to_be_removed(store):
    start(store)
    file = database.sqlite_file(store.uri)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TABLE alembic_version")
    copy = file.with_name("half.db")
    file.rename(copy)
    with pytest.raises(UserError, match=r"half.db was left half upgraded .* do not remove it"):
        RunStore(f"sqlite:///{copy}")


def test_a_damaged_database_is_one_line_and_its_records_are_kept(store, tmp_path, caplog):
    run_id, file = start(store), database.sqlite_file(store.uri)
    whole = file.read_bytes()
    file.write_bytes(b"this is no database." * 10_000)
    with pytest.raises(UserError, match="mlflow.db is damaged: put back a copy"):
        RunStore(store.uri)
    outbox, result = Outbox(store, tmp_path / "outbox", warn := []), warn  # type: ignore[arg-type]
    outbox.warn = result.append
    outbox.add("log_rows", run_id, rows(1))
    while not result:
        time.sleep(0.01)
    assert "is damaged" in result[0] and not list((tmp_path / "outbox").glob("*.rejected*"))
    file.write_bytes(whole)
    assert outbox.close(60) == 0 and steps(store, run_id) == [1]


def test_a_database_removed_while_it_is_used_is_told_at_once_in_one_line(store, capfd):
    """MLflow's log has a traceback of SQLAlchemy for each call."""
    run_id, file = start(store), database.sqlite_file(store.uri)
    file.unlink()
    tracker = RetryingTracker(Failing(store, run_id), lambda event: pytest.fail(f"{event}"))  # type: ignore[arg-type]
    os.environ["MLFLOW_TRACKING_URI"] = store.uri
    with pytest.raises(StageFailed, match=rf"^{file} was removed while it was in use; run the same command again"):
        tracker.reopen_run(run_id)
    assert "Traceback" not in capfd.readouterr().err


class Failing:
    def __init__(self, store, run_id):
        self.store, self.run_id = store, run_id

    def reopen_run(self, run_id, params):
        self.store.log_rows(run_id, rows(1))


def test_the_holder_of_no_lock_is_not_guessed(tmp_path):
    (tmp_path / "file").touch()
    assert database.holder(tmp_path / "file") == "another process, perhaps on another machine"


def test_two_starts_at_once_make_one_database(tmp_path):
    errors = []

    def open_store():
        try:
            make(tmp_path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_store) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".db") == ["mlflow.db"]
