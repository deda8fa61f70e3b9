"""The run store, its leases and its spool, on real SQLite stores; one slow test has a real server in it."""

import json
import math
import multiprocessing
import multiprocessing.connection
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from premed import runs, tracking
from premed.leases import Lease, process_tags, sweep_dead
from premed.runs import RunStore
from premed.spec import UserError
from premed.spool import Spool

spawn = multiprocessing.get_context("spawn")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "new" / "mlflow.db"
    RunStore(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(empty_database, tmp_path):
    (tmp_path / "home").mkdir()
    shutil.copy(empty_database, tmp_path / "home" / "mlflow.db")
    return RunStore(f"sqlite:///{tmp_path}/home/mlflow.db")


@pytest.fixture(autouse=True)
def no_global_store(monkeypatch, tmp_path_factory):
    """MLflow's own settings point nowhere: whatever leans on them fails."""
    elsewhere = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    yield
    assert not list(elsewhere.iterdir())


def start(store, digest="d", kind="test", **more):
    return store.start("chest", "a run", digest=digest, kind=kind, **more)


def rows(*steps, time=0, metric="loss", value=None):
    return [{"step": s, "time": time + s, "metrics": {metric: s / 2 if value is None else value}} for s in steps]


def steps(store, run_id, metric="loss"):
    return [each.step for each in store.client.get_metric_history(run_id, metric)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def unreachable(port=None):
    """A store that answered once, as another process got it, and now does not."""
    store = RunStore.__new__(RunStore)
    store.__dict__.update(uri=f"http://127.0.0.1:{port or free_port()}", artifacts=None)
    return store


# ---- the store


def test_a_store_is_made_where_the_uri_says(empty_database, store, tmp_path):
    assert empty_database.is_file()
    assert store.get(start(store)).artifact_uri.startswith(f"file://{tmp_path}/home/artifacts/chest/")


def test_a_store_travels_to_another_process_as_two_strings(store):
    run_id = start(store)
    assert len(pickle.dumps(store)) < 500
    assert pickle.loads(pickle.dumps(store)).get(run_id).name == "a run"


@pytest.mark.parametrize(
    ("uri", "mend"),
    [
        ("http://127.0.0.1:{port}", "does not answer: start it or unset the variable"),
        ("http://user:secret@127.0.0.1:{port}", r"user:\*\*\*@127"),
        ("mlruns", "write sqlite:///mlruns/mlflow.db"),
        ("file:///tmp/mlruns", "write sqlite:///"),
        ("sqlite://", "write sqlite:///path"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_with_the_mend(uri, mend):
    with pytest.raises(UserError, match=mend) as caught:
        RunStore(uri.format(port=free_port()))
    assert "MLFLOW_TRACKING_URI=" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_postgresql_takes_the_driver_that_is_there(monkeypatch, driver):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == driver or None)
    assert tracking.settle("postgresql://me@db/runs")[0] == f"postgresql+{driver}://me@db/runs"


def test_postgresql_without_a_driver_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install psycopg2-binary"):
        RunStore("postgresql://me:secret@db/runs", "/tmp/artifacts")


def test_an_experiment_deleted_in_the_ui_is_not_written_into(store):
    start(store)
    store.client.delete_experiment(store.experiment("chest"))
    with pytest.raises(UserError, match="mlflow experiments restore -x"):
        start(store)


def test_a_stage_is_a_child_of_its_experiment_with_flat_parameters(store):
    parent = start(store, "p", "experiment")
    run = store.get(start(store, "c", parent=parent, params={"task": {"roi": [96, 96], "at": {"lr": 1e-3}}}))
    assert run.parent == parent
    assert run.tags["mlflow.parentRunId"] == parent
    assert run.params == {"task.roi": "[96, 96]", "task.at.lr": "0.001"}


def test_hundreds_of_long_parameters_and_tags_fit(store):
    long = {f"name {i}": "x" * 9000 for i in range(250)}
    run = store.get(start(store, tags={"yaml": "y" * 9000}, params=long))
    assert len(run.params) == 250
    assert run.params["name 3"].endswith("…")


def test_find_gives_the_newest_finished_run(store):
    first, second, unfinished, failed = (start(store) for _ in range(4))
    for run_id, status in [(first, "FINISHED"), (second, "FINISHED"), (failed, "FAILED")]:
        store.finish(run_id, status)
    assert store.find("d").run_id == second
    assert store.find("d", kind="pretrain") is None
    assert store.get(unfinished).status == "RUNNING"


def test_table_has_every_finished_run_over_many_pages(store, monkeypatch):
    monkeypatch.setattr(runs, "_PAGE", 2)
    for number in range(5):
        run_id = start(store, f"d{number}", tags={"seed": str(number)}, params={"a": {"b": number}})
        store.log_rows(run_id, rows(1, metric="test/mauc", value=number / 10))
        store.finish(run_id)
    table = store.table()
    assert list(table["tags.seed"]) == ["4", "3", "2", "1", "0"]
    assert list(table["metrics.test/mauc"]) == [0.4, 0.3, 0.2, 0.1, 0.0]
    assert set(table["params.a.b"]) == set("01234")
    assert len(store.table("chest")) == 5
    assert len(store.table("no such experiment")) == len(store.table(kind="pretrain")) == 0


# ---- metrics


def test_steps_told_again_after_a_resume_count_once(store):
    run_id = start(store)
    store.log_rows(run_id, rows(1, 2, 3))
    store.log_rows(run_id, rows(2, 3, 4, time=1000))
    assert steps(store, run_id) == [1, 2, 3, 4]
    assert store.last_step(run_id, "loss") == 4
    assert store.last_step(run_id, "other") is None


def test_a_metric_that_comes_later_is_not_held_back_by_another(store):
    run_id = start(store)
    store.log_rows(run_id, rows(1, 2, 3))
    store.log_rows(run_id, rows(2, metric="val/mauc"))
    assert steps(store, run_id, "val/mauc") == [2]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=6))
def test_any_replay_of_any_stretch_leaves_each_step_once(store, stretches):
    run_id, told = start(store), 0
    for time, (first, length) in enumerate(stretches):
        first = min(first, told + 1)  # a resume goes back, never ahead
        store.log_rows(run_id, rows(*range(first, first + length), time=1000 * time))
        told = max(told, first + length - 1)
    assert steps(store, run_id) == list(range(1, told + 1))


def test_thousands_of_values_go_in_batches(store):
    run_id = start(store)
    store.log_rows(run_id, rows(*range(2500)))
    assert len(steps(store, run_id)) == 2500


def test_nan_is_left_out_and_named(store):
    run_id = start(store)
    store.log_rows(run_id, rows(1) + rows(2, value=math.nan) + rows(3, metric="Spleen (left)", value=math.inf))
    store.log_rows(run_id, rows(3, value=math.nan))
    assert steps(store, run_id) == [1]
    assert json.loads(store.get(run_id).tags["premed.nonfinite"]) == {"loss": 2, "Spleen _left_": 3}


# ---- tables, files, data sets, models


def test_scores_come_back_to_the_last_digit_and_once(store):
    run_id = start(store)
    table = [
        {"case": "001", "patient": "01", "dice": 0.1 + 0.2, "n": 3},
        {"case": "002", "patient": "02", "dice": 1e-12, "n": 4},
    ]
    store.log_scores(run_id, table)
    store.log_scores(run_id, table)
    assert store.scores(run_id) == table


def test_scores_show_as_a_table_and_keep_undefined_ones(store, tmp_path):
    run_id = start(store)
    store.log_scores(run_id, [{"case": "a", "hd95": math.nan}, {"case": "b", "hd95": np.float32(2.5)}])
    assert json.loads(store.get(run_id).tags["mlflow.loggedArtifacts"]) == [{"path": "scores.json", "type": "table"}]
    assert math.isnan(store.scores(run_id)[0]["hd95"])
    assert store.download(run_id, "scores.csv", tmp_path).read_text() == "case,hd95\na,\nb,2.5\n"


def test_files_and_folders_come_back(store, tmp_path):
    run_id, folder = start(store), tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("a")
    store.log_files(run_id, folder, "pictures")
    store.log_files(run_id, folder / "deep" / "a.txt")
    assert (store.download(run_id, "pictures", tmp_path / "to") / "deep" / "a.txt").read_text() == "a"
    assert store.download(run_id, "a.txt", tmp_path / "to").read_text() == "a"


def test_data_sets_are_inputs_of_the_run_once(store):
    entry = {"name": "chestxray14", "digest": "f" * 64, "source": "${PREMED_DATA}/chestxray14", "num_cases": 7}
    entries = [{**entry, "context": "training"}, {**entry, "context": "testing", "digest": "e" * 64}]
    run_id = start(store)
    store.log_datasets(run_id, entries)
    store.log_datasets(run_id, entries)
    inputs = store.client.get_run(run_id).inputs.dataset_inputs
    assert {(each.dataset.name, each.tags[0].value) for each in inputs} == {
        ("chestxray14", "training"),
        ("chestxray14", "testing"),
    }
    assert len(inputs) == 2


@pytest.fixture
def module():
    import torch

    torch.manual_seed(0)  # weights of a test's network, not a draw of premed's
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)
    return torch.nn.Sequential(*layers, torch.nn.Dropout(0.5))


def test_the_best_model_loads_without_pickle_for_any_batch_size(store, module, monkeypatch):
    import mlflow
    import torch

    example = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    run_id, other = start(store, "abc"), torch.nn.Flatten()
    versions = [
        store.register(run_id, "chest", each, example, score, {"grid": [1, 2]})
        for each, score in ((other, 0.6), (module, 0.7), (other, 0.65), (other, math.nan))
    ]
    assert versions == ["1", "2", "3", "4"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    loaded = mlflow.pytorch.load_model("models:/chest@best")
    for batch in (1, 2, 5):
        image = torch.from_numpy(np.random.default_rng(batch).random((batch, 1, 8, 8), dtype=np.float32))
        torch.testing.assert_close(loaded(image), module(image), rtol=0, atol=0)


def test_a_version_says_where_it_comes_from(store, module):
    run_id = start(store, "abc")
    version = store.register(run_id, "chest", module, np.zeros((2, 1, 8, 8), np.float32), 0.5, {})
    found = store.client.get_model_version("chest", version)
    assert found.run_id == run_id
    assert found.tags == {"premed.run": run_id, "premed.score": "0.5", "premed.digest": "abc"}


def test_a_model_that_would_not_load_everywhere_is_refused(store, module):
    with pytest.raises(ValueError, match="float32 on the CPU, not torch.float64 on cpu"):
        store.register(start(store), "chest", module.double(), np.zeros((2, 1, 8, 8), np.float32), 0.5, {})
    with pytest.raises(ValueError, match="batch of 2"):
        store.register(start(store), "chest", module.float(), np.zeros((1, 1, 8, 8), np.float32), 0.5, {})


# ---- leases


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
    barrier, wins, rounds = spawn.Barrier(2), spawn.Queue(), 6
    both = [spawn.Process(target=race, args=(f"sqlite:///{tmp_path}/new.db", rounds, barrier, wins)) for _ in range(2)]
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
    mine, theirs = spawn.Pipe()
    child = spawn.Process(target=hold, args=(store.uri, theirs))
    child.start()
    assert mine.poll(60)
    run_id = mine.recv()
    assert not Lease(store).acquire("d", "second")
    os.kill(child.pid, signal.SIGKILL)
    multiprocessing.connection.wait([child.sentinel])  # dead, and not yet reaped
    lease = Lease(store)
    assert lease.acquire("d", "second")
    assert store.get(run_id).status == "KILLED"
    assert lease.heartbeat()
    child.join()


def test_sweep_marks_what_an_ended_process_left_running(store):
    left, alive, claim = start(store), start(store), Lease(store)
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert claim.acquire("d", "ended")
    for run_id in (left, claim.mine):
        store.client.set_tag(run_id, "premed.pid", ended.pid)
    assert sweep_dead(store) == [left]
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


def test_a_holder_elsewhere_that_beats_keeps_its_lease(store, far):
    clock = Clock()
    assert not polls(Lease(store, stale_after=60, clock=clock), clock, 20, 12, between=far.heartbeat)


def test_an_outage_between_two_looks_takes_no_lease_away(store, far):
    clock = Clock()
    assert not polls(Lease(store, stale_after=60, clock=clock), clock, 3600, 3)
    far.store = unreachable()
    assert far.heartbeat()


def test_claims_do_not_show_among_the_runs(store):
    Lease(store).acquire("d", "a")
    assert list(store.search({"premed.digest": "d"})) == []


# ---- the spool


def test_what_is_spooled_arrives_in_order_and_leaves_nothing(store, tmp_path):
    run_id, spool = start(store), Spool(store, tmp_path / "spool")
    for step in range(5):
        spool.call("log_rows", run_id, [{"step": step, "time": step, "metrics": {"loss": np.float32(0.5)}}])
    spool.call("log_scores", run_id, [{"case": "a", "dice": math.nan}])
    spool.call("finish", run_id, "FINISHED", end_time=77)
    assert spool.close(60) == 0
    assert steps(store, run_id) == [0, 1, 2, 3, 4]
    assert store.client.get_run(run_id).info.end_time == 77
    assert not list((tmp_path / "spool").iterdir())


def test_an_outage_loses_nothing(store, tmp_path):
    run_id, spool = start(store), Spool(unreachable(), tmp_path)
    spool.call("log_rows", run_id, rows(1, 2))
    spool.call("finish", run_id)
    assert spool.close(0.1) == 2
    spool._writer.join(60)  # as if its process had ended
    later = Spool(store, tmp_path)
    assert later.replay() == 2
    assert later.close(60) == 0
    assert steps(store, run_id) == [1, 2]
    assert store.get(run_id).status == "FINISHED"


def spool_and_wait(run_id, folder, pipe):
    spool = Spool(unreachable(), folder)
    for step in range(100):
        spool.call("log_rows", run_id, rows(step))
    pipe.send("written")
    signal.pause()


def test_a_kill_loses_nothing_that_was_spooled(store, tmp_path):
    run_id, (mine, theirs) = start(store), spawn.Pipe()
    child = spawn.Process(target=spool_and_wait, args=(run_id, tmp_path / "spool", theirs))
    child.start()
    assert mine.poll(60)
    spool = Spool(store, tmp_path / "spool")
    assert spool.replay() == 0  # its process lives
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    (tmp_path / "spool" / f"{run_id}.jsonl").open("a").write('{"call": "log_')  # and it was in the middle of a line
    assert spool.replay() == 101
    assert spool.close(60) == 0
    assert steps(store, run_id) == list(range(100))


def test_records_told_twice_count_once(store, tmp_path):
    run_id, spool = start(store), Spool(unreachable(), tmp_path)
    spool.call("log_rows", run_id, rows(1, 2))
    spool.close(0)
    spool._writer.join(60)
    store.log_rows(run_id, rows(1, 2))  # delivered, but the process ended before it noted so
    later = Spool(store, tmp_path)
    later.replay()
    assert later.close(60) == 0
    assert steps(store, run_id) == [1, 2]


def test_what_mlflow_refuses_is_put_aside_and_the_rest_goes_on(store, tmp_path, caplog):
    run_id, spool = start(store), Spool(store, tmp_path)
    spool.call("log_files", run_id, tmp_path / "nowhere")
    spool.call("log_rows", run_id, [{"no": "step"}])
    spool.call("log_rows", "0" * 32, rows(1))
    spool.call("log_rows", run_id, rows(1))
    assert spool.close(60) == 0
    assert steps(store, run_id) == [1]
    refused = [json.loads(line)["record"] for line in (tmp_path / f"{run_id}.rejected.jsonl").open()]
    assert ["nowhere" in refused[0], "step" in refused[1], len(refused)] == [True, True, 2]
    assert caplog.text.count("MLflow refuses") == 3


def test_a_call_that_cannot_be_told_twice_is_not_spooled(store, tmp_path):
    with pytest.raises(ValueError, match="register cannot be spooled"):
        Spool(store, tmp_path).call("register", "r")


def serve(folder, port):
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", f"{folder}/files"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return server
        except OSError:
            try:
                server.wait(0.5)
                raise RuntimeError("the server ended")
            except subprocess.TimeoutExpired:
                continue
    raise TimeoutError("the server did not come up")


def stop(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.slow
def test_a_server_that_goes_and_comes_back_has_every_metric_once(tmp_path, module):
    port = free_port()
    server = serve(tmp_path, port)
    try:
        store = RunStore(f"http://127.0.0.1:{port}")
        run_id, spool = start(store), Spool(store, tmp_path / "spool")
        assert Lease(store).acquire("d", "a") and not Lease(store).acquire("d", "b")
        assert store.register(run_id, "chest", module, np.zeros((2, 1, 8, 8), np.float32), 0.5, {}) == "1"
        for step in range(30):
            if step == 10:
                stop(server)
            if step == 20:
                server = serve(tmp_path, port)
            spool.call("log_rows", run_id, rows(step))
        spool.call("log_scores", run_id, [{"case": "a", "dice": 0.5}])
        spool.call("finish", run_id)
        assert spool.close(120) == 0
        assert steps(store, run_id) == list(range(30))
        assert store.scores(run_id) == [{"case": "a", "dice": 0.5}]
        assert store.find("d").run_id == run_id
    finally:
        stop(server)
