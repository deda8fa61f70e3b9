"""The tracker: which run a stage goes on in, who may run it, and what happens while MLflow is away."""

import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import MagicMock

import pytest
from support.stores import free_port, rows, start, steps

from premed.errors import StageFailed, UserError
from premed.events import MetricsLogged, WarningIssued
from premed.tracking import mlflow_tracker as module
from premed.tracking import model_registry
from premed.tracking.mlflow_tracker import MLflowTracker
from premed.tracking.tracker import RetryingTracker, Tracker, outage

pytest_plugins = ["support.store_fixtures"]

FILES = ("result.json", "curve.jsonl")


@pytest.fixture
def tracker(store, tmp_path):
    tracker = MLflowTracker(store.uri, store.artifacts, str(tmp_path / "outbox"))
    yield tracker
    tracker.close()


def opened(tracker, digest="d", kind="test", **tags):
    return tracker.open_run("chest", "a run", digest, kind, None, tags, {"lr": 1})


# ---- runs


def test_an_unfinished_run_goes_on_and_a_finished_one_stays(tracker):
    first = opened(tracker, tries="1")
    tracker.store.finish(first, "KILLED")
    assert opened(tracker, tries="2") == first
    run = tracker.store.get(first)
    assert run.status == "RUNNING" and run.tags["tries"] == "2" and run.tags["version.torch"]
    tracker.store.finish(first)
    assert opened(tracker) != first


def test_a_run_whose_process_was_killed_before_its_parameters_were_logged_gets_them(tracker):
    """Without them, `premed compare` refuses it beside the other seeds of its arm."""
    run_id = start(tracker.store)
    assert opened(tracker) == run_id and tracker.store.get(run_id).params == {"lr": "1"}
    tracker.reopen_run(run_id, {"lr": 2, "head": {"name": "linear"}})
    assert tracker.store.get(run_id).params == {"lr": "1", "head.name": "linear"}


def test_a_run_is_found_by_its_digest_once_it_is_finished(tracker):
    run_id = opened(tracker)
    assert tracker.finished_run("d", "test") is None and tracker.newest_run("chest", "d", "test") == run_id
    tracker.store.finish(run_id)
    assert tracker.finished_run("d", "test") == run_id and tracker.finished_run("d", "pretrain") is None
    assert tracker.newest_run("chest", "d", "test", ended=False) is None


def test_a_run_holds_all_that_was_logged_before_it_ended(tracker):
    run_id = opened(tracker, finetune_run="a")
    assert not tracker.finished_with(run_id, {"finetune_run": "a"})
    tracker.store.finish(run_id)
    assert tracker.finished_with(run_id, {"finetune_run": "a"}) and not tracker.finished_with(
        run_id, {"finetune_run": "b"}
    )


def test_events_of_workers_are_recorded_and_returned_once(tracker):
    run_id = opened(tracker)
    for row in rows(1, 2):
        tracker.record_event(run_id, MetricsLogged(num_steps=2, **row))
    assert [event.step for event in tracker.drain_events()] == [1, 2] and tracker.drain_events() == []
    tracker.finish(run_id, "FINISHED")
    assert tracker.wait_delivered(run_id) and steps(tracker.store, run_id) == [1, 2]


def test_the_throughput_of_a_point_is_recorded_with_it(tracker):
    run_id = opened(tracker)
    (row,) = rows(1)
    tracker.record_event(run_id, MetricsLogged(num_steps=1, throughput={"pace/data_wait": 0.25}, **row))
    tracker.finish(run_id, "FINISHED")
    assert tracker.wait_delivered(run_id) and tracker.store.get(run_id).metrics == {"loss": 0.5, "pace/data_wait": 0.25}


def test_wait_delivered_returns_only_when_mlflow_has_the_end_of_the_run(tracker):
    run_id = opened(tracker)
    tracker.log_rows(run_id, rows(*range(50)))
    tracker.finish(run_id, "FINISHED")
    assert tracker.wait_delivered(run_id) and tracker.store.get(run_id).status == "FINISHED"
    assert not list(tracker.outbox.folder.glob(f"{run_id}*"))


def test_wait_delivered_times_out_in_an_outage_and_loses_nothing(tracker, monkeypatch):
    run_id = opened(tracker)
    with monkeypatch.context() as outage:
        outage.setattr(tracker.store, "finish", lambda *args, **more: (_ for _ in ()).throw(ConnectionError("away")))
        tracker.finish(run_id, "FINISHED")
        assert not tracker.wait_delivered(run_id, timeout=0)
    assert tracker.wait_delivered(run_id) and tracker.store.get(run_id).status == "FINISHED"


def test_a_stage_is_downloaded_as_its_storage_had_it(tracker, tmp_path):
    run_id, scores = opened(tracker), [{"case": "a", "dice/1": 0.5}, {"case": "b", "dice/1": 1 / 3}]
    for name in FILES:
        (tmp_path / name).write_text(name)
        tracker.store.log_files(run_id, tmp_path / name)
    tracker.store.log_scores(run_id, scores)
    assert tracker.download(run_id, str(tmp_path / "back"))
    assert [(tmp_path / "back" / name).read_text() for name in FILES] == list(FILES)
    assert json.loads((tmp_path / "back" / "scores.json").read_text()) == scores
    assert not (tmp_path / "back" / "scores.csv").exists()


def test_an_outage_during_a_download_is_not_an_answer(tracker, tmp_path, monkeypatch):
    """Else a finished stage would be trained again for it."""
    monkeypatch.setattr(tracker.store, "download", lambda *_: (_ for _ in ()).throw(ConnectionError("away")))
    with pytest.raises(ConnectionError):
        tracker.download(opened(tracker), str(tmp_path / "back"))
    assert tracker.drain_events() == []


def test_files_that_mlflow_lost_are_a_warning(tracker, tmp_path):
    assert not tracker.download(opened(tracker), str(tmp_path / "back"))
    (warning,) = tracker.drain_events()
    assert isinstance(warning, WarningIssued) and "cannot be downloaded" in warning.text


def test_a_model_that_mlflow_refuses_is_a_warning(tracker, monkeypatch):
    monkeypatch.setattr(model_registry, "register", lambda *args: (_ for _ in ()).throw(ValueError("no\nmore")))
    assert tracker.register_model(opened(tracker), "model", "folder", 0.5) is None
    assert tracker.drain_events() == [WarningIssued("MLflow's model registry failed: no")]


def test_a_query_that_the_registry_refuses_is_a_warning(tracker):
    assert tracker.is_registered("run") is False
    assert tracker.is_registered("it's no run") is None
    (warning,) = tracker.drain_events()
    assert warning.text.startswith("MLflow's model registry failed: ")


# ---- leases


def test_one_of_two_trackers_holds_a_stage_until_it_releases_it(tracker, store, tmp_path):
    other = MLflowTracker(store.uri, store.artifacts, str(tmp_path / "other"))
    assert tracker.acquire("d") and not other.acquire("d") and other.acquire("e")
    tracker.release("d")
    assert other.acquire("d")
    other.close()
    assert tracker.acquire("d") and tracker.acquire("e")


def test_of_several_threads_that_acquire_from_one_tracker_one_holds_the_stage(tracker):
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(tracker.acquire, ["d"] * 8)) == 1
    assert not tracker.acquire("d")
    tracker.release("d")
    assert tracker.acquire("d")


def test_a_held_lease_sends_heartbeats(store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    tracker = MLflowTracker(store.uri, store.artifacts, str(tmp_path / "outbox"))
    tracker.acquire("d")
    lease = tracker.leases["d"]

    def beat():
        return store.client.get_run(lease.mine).data.tags["premed.beat"]

    before = beat()
    while beat() == before:  # the test's own time limit ends a lease that never beats
        continue
    tracker.close()


# ---- an outage


class Away:
    """Does not answer the first `times` calls."""

    def __init__(self, times, error):
        self.times, self.error = times, error

    def finished_run(self, digest, kind):
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return f"{digest} {kind}"


def test_an_outage_is_waited_for_and_warned_of_once():
    events = []
    retrying = RetryingTracker(Away(3, ConnectionError("refused")), events.append, waits=[0] * 3)
    assert retrying.finished_run("d", "test") == "d test"
    assert events == [WarningIssued("MLflow does not answer (refused); waiting, for at most 10 minutes")]


@pytest.mark.parametrize("name", [name for name in vars(Tracker) if not name.startswith("_")])
def test_every_method_of_a_tracker_is_tried_again_with_its_own_arguments(name):
    parameters = list(inspect.signature(getattr(Tracker, name)).parameters)[1:]
    tracker = MagicMock()
    getattr(tracker, name).side_effect = [ConnectionError("refused"), "answer"]
    retrying = RetryingTracker(tracker, lambda event: None, waits=[0])
    assert getattr(retrying, name)(*parameters) in ("answer", None)
    assert [call.args for call in getattr(tracker, name).call_args_list] == [tuple(parameters)] * 2
    assert list(inspect.signature(getattr(MLflowTracker, name)).parameters)[1:] == parameters


def test_an_outage_without_end_fails_in_one_line():
    retrying = RetryingTracker(Away(3, ConnectionError("refused")), lambda event: None, waits=[0] * 2)
    with pytest.raises(
        StageFailed, match=r"^MLflow does not answer \(refused\); run the same command again to resume$"
    ):
        retrying.finished_run("d", "test")


@pytest.mark.parametrize("error", [UserError("deleted"), StageFailed("ended"), ValueError("wrong"), KeyError("x")])
def test_an_error_that_is_no_outage_is_raised_at_once(error):
    assert not outage(error)
    with pytest.raises(type(error)):
        RetryingTracker(Away(1, error), pytest.fail, waits=[0]).finished_run("d", "test")


def test_a_server_that_is_gone_counts_as_an_outage(monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Exception) as raised:
        MlflowClient(f"http://127.0.0.1:{free_port()}").search_experiments()
    assert outage(raised.value)


# ---- small things


def test_a_run_of_an_ended_process_is_marked_when_the_next_command_starts(store, tmp_path):
    ended = {"premed.pid": "4194305", "premed.born": "1.00"}  # no process can have that number
    run_id = start(store)
    store.set_tags(run_id, ended)
    MLflowTracker(store.uri, store.artifacts, str(tmp_path / "outbox")).close()
    assert store.get(run_id).status == "KILLED"
