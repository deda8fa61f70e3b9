"""A server that takes connections and says nothing: found in a short question, told, and waited for by nobody else."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.servers import FLOW, http_server, silent_server
from support.stores import free_port, rows

from premed.errors import StageFailed, UserError
from premed.tracking import client
from premed.tracking.mlflow_tracker import MLflowTracker
from premed.tracking.probe import FRESH, Probe
from premed.tracking.run_store import RunStore
from premed.tracking.tracker import RetryingTracker

pytest_plugins = ["support.store_fixtures"]

SEARCH = "/api/2.0/mlflow/experiments/search"
HEALTHY = FLOW | {"/health": (200, "OK")}


# ---- a command's start


def one_line(uri, words):
    with pytest.raises(UserError, match=words) as caught:
        RunStore(uri, "/tmp/artifacts")
    assert "secret" not in str(caught.value)


def test_a_server_that_hangs_is_one_line_that_says_for_how_long(monkeypatch):
    """The limit is 10 s; MLflow's own would be 2 minutes."""
    assert client._ANSWER_SECONDS == 10
    monkeypatch.setattr(client.reach, "__defaults__", (0.5,))
    words = (
        r"MLFLOW_TRACKING_URI={} does not answer \(it accepts connections, and sent no answer for 0.5 s\): restart it"
    )
    with silent_server() as port:
        one_line(uri := f"http://127.0.0.1:{port}", words.format(uri))
    with http_server(HEALTHY, silent=[SEARCH]) as port:  # its database hangs
        one_line(uri := f"http://127.0.0.1:{port}", words.format(uri))


def test_a_postgresql_that_hangs_or_refuses_is_one_line(monkeypatch):
    """MLflow by itself tries ten times, in 100 s, and waits without end for one that hangs."""
    pytest.importorskip("psycopg2")
    monkeypatch.setattr(client.reach, "__defaults__", (2,))  # libpq's least
    with silent_server() as port:
        where = f"postgresql://me:secret@127.0.0.1:{port}/runs"
        one_line(
            where, r"me:\*\*\*@.* does not answer \(it accepts connections, and sent no answer for 2 s\): restart it"
        )
    one_line(f"postgresql://me:secret@127.0.0.1:{free_port()}/runs", "cannot be opened: .*Connection refused")


# ---- in mid-command


def test_while_a_server_is_away_one_thread_asks_and_nobody_waits():
    requests, clock, silent = [], [0.0], [SEARCH]
    with http_server(FLOW, received=requests, silent=silent) as port:
        ask = Probe(f"http://127.0.0.1:{port}", lambda: clock[0])
        with pytest.raises(ConnectionError, match=r"it accepts connections, and sent no answer for 0.2 s"):
            ask(0.2)
        for _ in range(3):  # known
            with pytest.raises(ConnectionError):
                ask(60)
        assert len(requests) == 1
        clock[0] += FRESH
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask, 0.5)
            while len(requests) < 2:
                time.sleep(0.01)
            with pytest.raises(ConnectionError):  # another thread asks
                ask(60)
            assert not asking.done()
            assert isinstance(asking.exception(), ConnectionError)
        clock[0] += FRESH
        silent.clear()
        ask(60)
        ask(60, fresh=1.0)
        assert len(requests) == 3
        ask(60)
        assert len(requests) == 4


def test_of_threads_that_ask_at_once_one_does_and_all_get_the_answer():
    requests = []
    with http_server(FLOW, received=requests) as port:
        ask = Probe(f"http://127.0.0.1:{port}", lambda: 0.0)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: ask(60, fresh=1.0), range(8)))
    assert len(requests) == 1


def test_who_waits_for_another_s_question_waits_no_longer_than_it_would_for_its_own():
    with silent_server() as port, ThreadPoolExecutor(1) as pool:
        ask = Probe(f"http://127.0.0.1:{port}")
        asking = pool.submit(ask, 1.0)
        while not ask._asking.locked():
            time.sleep(0.01)
        with pytest.raises(ConnectionError, match="it has sent no answer for 0.1 s"):
            ask(0.1)
        assert not asking.done()


def test_a_server_that_answered_a_moment_ago_and_hangs_now_is_asked():
    """As when a command is stopped: what follows would wait two minutes for it."""
    with http_server(FLOW, silent=(silent := [])) as port:
        ask = Probe(f"http://127.0.0.1:{port}")
        ask()
        silent.append(SEARCH)
        with pytest.raises(ConnectionError, match="sent no answer for 0.2 s"):
            ask(0.2)


def test_a_file_is_not_asked(tmp_path):
    Probe(f"sqlite:///{tmp_path}/mlflow.db")()


def test_an_outage_of_tries_that_take_long_ends_when_the_patience_does():
    class Hangs:
        def finished_run(self, digest, kind):
            raise ConnectionError("silent")

    events = []
    retrying = RetryingTracker(Hangs(), events.append, waits=[0] * 10**6, patience=0.2)
    with pytest.raises(StageFailed, match="run the same command again to resume"):
        retrying.finished_run("d", "test")
    assert len(events) == 1


def test_a_call_that_hangs_is_told_with_how_long_it_may_take(monkeypatch):
    monkeypatch.setattr("premed.tracking.tracker.SILENCE", 0.05)
    warnings, over = [], threading.Event()

    def show(event):
        warnings.append(event.text)
        over.set()

    class Hangs:
        def release(self, digest):
            over.wait()

        def close(self, timeout):
            over.clear()
            over.wait()
            return 3

    retrying = RetryingTracker(Hangs(), show)
    retrying.release("d")
    assert retrying.close(60) == 3
    text = "MLflow has not answered for 0.05 s; waiting, for at most"
    assert warnings == [f"{text} 2 minutes", f"{text} 60 s"]


def test_every_call_of_a_tracker_that_asks_mlflow_asks_whether_it_answers_first(store, tmp_path):
    tracker = MLflowTracker(store.uri, store.artifacts, str(tmp_path / "outbox"))
    assert tracker.acquire("held")

    def away(seconds=0.0, fresh=0.0):
        raise ConnectionError("silent")

    tracker.store.__dict__["probe"] = away
    calls = {
        "acquire": ("d",),
        "newest_run": ("e", "d", "k"),
        "finished_run": ("d", "k"),
        "finished_with": ("r", {}),
        "open_run": ("e", "n", "d", "k", None, {}, {}),
        "reopen_run": ("r",),
        "download": ("r", str(tmp_path)),
        "is_registered": ("r",),
        "registered_as": ("r",),
        "register_model": ("r", "n", "f", None),
    }
    for name, arguments in calls.items():
        with pytest.raises(ConnectionError, match="silent"):
            getattr(tracker, name)(*arguments)
    claim = tracker.leases["held"].mine
    tracker.beat()
    assert not tracker.lease_lost("held")
    tracker.release("held")
    assert "held" not in tracker.held and store.client.get_run(claim).info.lifecycle_stage == "active"
    tracker.outbox.add("log_rows", "r" * 32, rows(1))
    assert tracker.close(0.3) == 1
