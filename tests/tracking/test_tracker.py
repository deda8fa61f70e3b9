"""The ledger: which run a stage goes on in, who may run it, and what happens while MLflow is away."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from stores import free_port, rows, start, steps

from premed.errors import StageFailed, UserError
from premed.events import MetricsLogged, WarningIssued
from premed.tracking import tracker as module
from premed.tracking.tracker import Ledger, Patient, away

pytest_plugins = ["store_fixtures"]

FILES = ("result.json", "curve.jsonl")


@pytest.fixture
def ledger(store, tmp_path):
    ledger = Ledger(store.uri, store.artifacts, str(tmp_path / "spool"))
    yield ledger
    ledger.close()


def opened(ledger, digest="d", kind="test", **tags):
    return ledger.open("chest", "a run", digest, kind, None, tags, {"lr": 1})


# ---- runs


def test_an_unfinished_run_goes_on_and_a_finished_one_stays(ledger):
    first = opened(ledger, tries="1")
    ledger.store.finish(first, "KILLED")
    assert opened(ledger, tries="2") == first
    run = ledger.store.get(first)
    assert run.status == "RUNNING" and run.tags["tries"] == "2" and run.tags["version.torch"]
    ledger.store.finish(first)
    assert opened(ledger) != first


def test_a_run_is_found_by_its_digest_once_it_is_finished(ledger):
    run_id = opened(ledger)
    assert ledger.finished("d", "test") is None and ledger.newest("chest", "d", "test") == run_id
    ledger.store.finish(run_id)
    assert ledger.finished("d", "test") == run_id and ledger.finished("d", "pretrain") is None
    assert ledger.newest("chest", "d", "test", ended=False) is None


def test_a_run_holds_what_it_was_told_before_it_ended(ledger):
    run_id = opened(ledger, finetune_run="a")
    assert not ledger.holds(run_id, {"finetune_run": "a"})
    ledger.store.finish(run_id)
    assert ledger.holds(run_id, {"finetune_run": "a"}) and not ledger.holds(run_id, {"finetune_run": "b"})


def test_what_workers_tell_is_recorded_and_shown_once(ledger):
    run_id = opened(ledger)
    for row in rows(1, 2):
        ledger.event(run_id, MetricsLogged(num_steps=2, **row))
    assert [event.step for event in ledger.drain()] == [1, 2] and ledger.drain() == []
    ledger.call("finish", run_id, "FINISHED")
    assert ledger.settle(run_id) and steps(ledger.store, run_id) == [1, 2]


def test_what_is_told_beside_a_point_is_recorded_with_it(ledger):
    run_id = opened(ledger)
    (row,) = rows(1)
    ledger.event(run_id, MetricsLogged(num_steps=1, throughput={"pace/data_wait": 0.25}, **row))
    ledger.call("finish", run_id, "FINISHED")
    assert ledger.settle(run_id) and ledger.store.get(run_id).metrics == {"loss": 0.5, "pace/data_wait": 0.25}


def test_settle_comes_back_only_when_mlflow_has_heard_the_end(ledger):
    run_id = opened(ledger)
    ledger.call("log_rows", run_id, rows(*range(50)))
    ledger.call("finish", run_id, "FINISHED")
    assert ledger.settle(run_id) and ledger.store.get(run_id).status == "FINISHED"
    assert not list(ledger.spool.folder.glob(f"{run_id}*"))


def test_settle_gives_up_on_a_silent_mlflow_and_loses_nothing(ledger, monkeypatch):
    run_id = opened(ledger)
    with monkeypatch.context() as outage:
        outage.setattr(ledger.store, "finish", lambda *args, **more: (_ for _ in ()).throw(ConnectionError("away")))
        ledger.call("finish", run_id, "FINISHED")
        assert not ledger.settle(run_id, timeout=0)
    assert ledger.settle(run_id) and ledger.store.get(run_id).status == "FINISHED"


def test_a_stage_comes_back_from_mlflow_as_its_vault_had_it(ledger, tmp_path):
    run_id, scores = opened(ledger), [{"case": "a", "dice/1": 0.5}, {"case": "b", "dice/1": 1 / 3}]
    for name in FILES:
        (tmp_path / name).write_text(name)
        ledger.store.log_files(run_id, tmp_path / name)
    ledger.store.log_scores(run_id, scores)
    assert ledger.fetch(run_id, str(tmp_path / "back"))
    assert [(tmp_path / "back" / name).read_text() for name in FILES] == list(FILES)
    assert json.loads((tmp_path / "back" / "scores.json").read_text()) == scores
    assert not (tmp_path / "back" / "scores.csv").exists()


def test_an_outage_during_a_download_is_not_an_answer(ledger, tmp_path, monkeypatch):
    """Else a finished stage would be trained again for it."""
    monkeypatch.setattr(ledger.store, "download", lambda *_: (_ for _ in ()).throw(ConnectionError("away")))
    with pytest.raises(ConnectionError):
        ledger.fetch(opened(ledger), str(tmp_path / "back"))
    assert ledger.drain() == []


def test_files_that_mlflow_lost_are_a_warning(ledger, tmp_path):
    assert not ledger.fetch(opened(ledger), str(tmp_path / "back"))
    (warning,) = ledger.drain()
    assert isinstance(warning, WarningIssued) and "cannot be had" in warning.text


def test_a_model_that_mlflow_refuses_is_a_warning(ledger, monkeypatch):
    monkeypatch.setattr(ledger.store, "register", lambda *args: (_ for _ in ()).throw(ValueError("no\nmore")))
    assert ledger.register("run") is None
    assert ledger.drain() == [WarningIssued("the model was not registered: no")]


def test_a_question_that_the_registry_refuses_is_a_warning(ledger):
    assert ledger.registered("run") is False
    assert ledger.registered("it's no run") is None
    (warning,) = ledger.drain()
    assert warning.text.startswith("the model was not registered: ")


# ---- leases


def test_one_of_two_ledgers_holds_a_stage_until_it_lets_go(ledger, store, tmp_path):
    other = Ledger(store.uri, store.artifacts, str(tmp_path / "other"))
    assert ledger.acquire("d") and not other.acquire("d") and other.acquire("e")
    ledger.release("d")
    assert other.acquire("d")
    other.close()
    assert ledger.acquire("d") and ledger.acquire("e")


def test_of_several_threads_that_ask_one_ledger_one_holds_the_stage(ledger):
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ledger.acquire, ["d"] * 8)) == 1
    assert not ledger.acquire("d")
    ledger.release("d")
    assert ledger.acquire("d")


def test_a_held_lease_beats(store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)
    ledger = Ledger(store.uri, store.artifacts, str(tmp_path / "spool"))
    ledger.acquire("d")
    lease = ledger.leases["d"]

    def beat():
        return store.client.get_run(lease.mine).data.tags["premed.beat"]

    before = beat()
    while beat() == before:  # the test's own time limit ends a lease that never beats
        continue
    ledger.close()


# ---- an outage


class Away:
    """Does not answer the first `times` calls."""

    def __init__(self, times, error):
        self.times, self.error = times, error

    def finished(self, digest, kind):
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return f"{digest} {kind}"


def test_an_outage_is_waited_for_and_told_once():
    told = []
    patient = Patient(Away(3, ConnectionError("refused")), told.append, waits=[0] * 3)
    assert patient.finished("d", "test") == "d test"
    assert told == [WarningIssued("MLflow does not answer (refused); waiting")]


def test_an_outage_without_end_fails_in_one_line():
    patient = Patient(Away(3, ConnectionError("refused")), lambda event: None, waits=[0] * 2)
    with pytest.raises(StageFailed, match=r"^MLflow does not answer \(refused\); the same command goes on$"):
        patient.finished("d", "test")


@pytest.mark.parametrize("error", [UserError("deleted"), StageFailed("ended"), ValueError("wrong"), KeyError("x")])
def test_what_waiting_cannot_mend_is_raised_at_once(error):
    assert not away(error)
    with pytest.raises(type(error)):
        Patient(Away(1, error), pytest.fail, waits=[0]).finished("d", "test")


def test_a_server_that_is_gone_counts_as_an_outage(monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Exception) as raised:
        MlflowClient(f"http://127.0.0.1:{free_port()}").search_experiments()
    assert away(raised.value)


# ---- small things


def test_a_run_of_an_ended_process_is_marked_when_the_next_command_starts(store, tmp_path):
    ended = {"premed.pid": "4194305", "premed.born": "1.00"}  # no process can have that number
    run_id = start(store)
    store.set_tags(run_id, ended)
    Ledger(store.uri, store.artifacts, str(tmp_path / "spool")).close()
    assert store.get(run_id).status == "KILLED"
