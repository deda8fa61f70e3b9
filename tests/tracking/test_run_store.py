"""The run store, on real SQLite stores."""

import json
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.stores import free_port, registered, rows, start, steps
from support.suite import examples

from premed.errors import UserError
from premed.tracking import client, run_store
from premed.tracking.artifacts import ArtifactMissing, local_folder
from premed.tracking.references import find_run
from premed.tracking.run_store import RunStore

pytest_plugins = ["support.store_fixtures"]


def test_a_store_is_made_where_the_uri_says(empty_database, store, tmp_path):
    assert empty_database.is_file()
    assert store.get(start(store)).artifact_uri.startswith(f"file://{tmp_path}/home/artifacts/chest/")


def test_a_store_travels_to_another_process_as_two_strings(store):
    run_id = start(store)
    assert len(pickle.dumps(store)) < 500
    assert pickle.loads(pickle.dumps(store)).get(run_id).name == "a run"


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("http://127.0.0.1:{port}", "does not answer: start it or unset the variable"),
        ("http://user:secret@127.0.0.1:{port}", r"user:\*\*\*@127"),
        ("mlruns", "write sqlite:////.*/mlruns/mlflow.db$"),
        ("file:///tmp/mlruns", "write sqlite:////tmp/mlruns/mlflow.db$"),
        ("sqlite://", "write sqlite:///path"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_with_a_remedy(uri, remedy):
    with pytest.raises(UserError, match=remedy) as caught:
        RunStore(uri.format(port=free_port()))
    assert "MLFLOW_TRACKING_URI=" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_postgresql_takes_the_driver_that_is_there(monkeypatch, driver):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == driver or None)
    assert client.resolve_uri("postgresql://me@db/runs")[0] == f"postgresql+{driver}://me@db/runs"


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


def test_what_a_run_is_about_comes_before_what_premed_keeps_for_itself(store):
    about = {"task": "chest", "strategy": "mae", "compute": "2 CPU"}
    tags = list(store.get(start(store, parent=start(store, "p"), tags=about)).tags)
    assert tags[:3] == list(about)


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


def test_a_search_finds_every_run_over_many_pages_newest_first(store, monkeypatch):
    monkeypatch.setattr(run_store, "_PAGE", 2)
    for number in range(5):
        run_id = start(store, f"d{number}", tags={"seed": str(number)}, params={"a": {"b": number}})
        store.log_rows(run_id, rows(1, metric="test/mauc", value=number / 10))
        store.finish(run_id)
    kind = {"premed.kind": "test"}
    runs_found = list(store.search(kind, status="FINISHED"))
    assert [run.tags["seed"] for run in runs_found] == ["4", "3", "2", "1", "0"]
    assert [run.metrics["test/mauc"] for run in runs_found] == [0.4, 0.3, 0.2, 0.1, 0.0]
    assert {run.params["a.b"] for run in runs_found} == set("01234")
    assert list(store.search(kind, experiment="chest")) == runs_found and len(list(store.search(kind, limit=3))) == 3
    assert list(store.search(kind, experiment="no such experiment")) == []
    assert list(store.search({"premed.kind": "pretrain"})) == []


# ---- metrics


def test_steps_logged_again_after_a_resume_count_once(store):
    run_id = start(store)
    store.log_rows(run_id, rows(1, 2, 3))
    store.log_rows(run_id, rows(2, 3, 4, time=1000))
    assert steps(store, run_id) == [1, 2, 3, 4]


def test_a_metric_that_comes_later_is_not_held_back_by_another(store):
    run_id = start(store)
    store.log_rows(run_id, rows(1, 2, 3))
    store.log_rows(run_id, rows(2, metric="val/mauc"))
    assert steps(store, run_id, "val/mauc") == [2]


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=6))
def test_any_replay_of_any_stretch_leaves_each_step_once(store, stretches):
    run_id, last = start(store), 0
    for time, (first, length) in enumerate(stretches):
        first = min(first, last + 1)  # a resume goes back, never ahead
        store.log_rows(run_id, rows(*range(first, first + length), time=1000 * time))
        last = max(last, first + length - 1)
    assert steps(store, run_id) == list(range(1, last + 1))


def test_a_curve_logged_again_fills_the_holes_of_an_outage(store):
    run_id = start(store)
    store.log_rows(run_id, rows(1, 2, 8, 9, value=0.5))
    store.log_rows(run_id, rows(*range(1, 12), value=0.25))
    history = store.client.get_metric_history(run_id, "loss")
    assert sorted(each.step for each in history) == list(range(1, 12))
    assert {each.step for each in history if each.value == 0.5} == {1, 2, 8, 9}


def test_thousands_of_values_go_in_batches(store):
    run_id = start(store)
    store.log_rows(run_id, rows(*range(2500)))
    assert len(steps(store, run_id)) == 2500


def test_names_longer_than_a_database_takes_are_cut_and_stay_apart(store):
    """PostgreSQL refuses what is over 250 characters; SQLite does not care."""
    run_id = store.start("chest", "r" * 300, digest="d", kind="test")
    long = "c" * 260
    store.log_rows(run_id, [{"step": 0, "time": 0, "metrics": {f"{long}1": 1.0, f"{long}2": 2.0}}])
    run = store.get(run_id)
    assert len(run.name) == 250 and {len(name) for name in run.metrics} == {250}
    assert sorted(run.metrics.values()) == [1.0, 2.0]


def test_names_that_mlflow_would_have_alike_stay_apart(store):
    run_id = start(store)
    store.log_rows(run_id, [{"step": 0, "time": 0, "metrics": {"dice/a (b)": 1.0, "dice/a [b]": 2.0, "dice/c": 3.0}}])
    metrics = store.get(run_id).metrics
    assert metrics["dice/a _b_"] == 1.0 and metrics["dice/c"] == 3.0 and sorted(metrics.values()) == [1.0, 2.0, 3.0]


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


@pytest.mark.parametrize("change", [(b"0.25", b"0.75"), (b'"case"', b'"cbse"'), (b'"a"', b'"b"')])
def test_a_table_of_scores_that_was_changed_is_refused(store, change):
    run_id = start(store)
    store.log_scores(run_id, [{"case": "a", "patient": "p", "dice": 0.25}])
    (file,) = Path(local_folder(store.get(run_id).artifact_uri, None)).glob("scores.json")
    file.write_bytes(file.read_bytes().replace(*change))
    with pytest.raises(ArtifactMissing, match="its scores cannot be read [(]they are not those that were recorded[)]"):
        store.scores(run_id)


def test_scores_show_as_a_table_and_keep_undefined_ones(store, tmp_path):
    run_id = start(store)
    store.log_scores(run_id, [{"case": "a", "hd95": math.nan}, {"case": "b", "hd95": np.float32(2.5)}])
    assert json.loads(store.get(run_id).tags["mlflow.loggedArtifacts"]) == [{"path": "scores.json", "type": "table"}]
    assert math.isnan(store.scores(run_id)[0]["hd95"])
    assert store.download(run_id, "scores.csv", tmp_path).read_text() == "case,hd95\na,\nb,2.5\n"
    store.log_scores(run_id, [{"case": "a\rb", "p/=x": 0.1 + 0.2}])
    assert store.download(run_id, "scores.csv", tmp_path).read_bytes() == b'case,p/=x\n"a\rb",0.30000000000000004\n'


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


def test_the_best_model_loads_without_pickle_for_any_batch_size(store, module, monkeypatch):
    import torch
    from mlflow import pytorch

    example = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    run_id, other = start(store, "abc"), torch.nn.Flatten()
    versions = [
        registered(store, run_id, "chest", each, example, score, {"grid": [1, 2]})
        for each, score in ((other, 0.6), (module, 0.7), (other, 0.65), (other, math.nan))
    ]
    assert versions == ["1", "2", "3", "4"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    loaded = pytorch.load_model("models:/chest@best")
    for batch in (1, 2, 5):
        image = torch.from_numpy(np.random.default_rng(batch).random((batch, 1, 8, 8), dtype=np.float32))
        torch.testing.assert_close(loaded(image), module(image), rtol=0, atol=0)


def test_a_version_and_its_run_name_each_other(store, module):
    run_id = start(store, "abc")
    version = registered(store, run_id, "chest", module, np.zeros((2, 1, 8, 8), np.float32), 0.5, {})
    made = store.client.get_model_version("chest", version)
    assert made.run_id == run_id and made.description == "a run"
    (output,) = store.client.get_run(run_id).outputs.model_outputs
    versions = json.loads(store.client.get_logged_model(output.model_id).tags["mlflow.modelVersions"])
    assert versions == [{"name": "chest", "version": int(version)}]
    assert made.tags == {"premed.run": run_id, "premed.score": "0.5", "premed.digest": "abc", "premed.val": ""}


def test_a_model_that_would_not_load_everywhere_is_refused(store, module):
    with pytest.raises(ValueError, match="float32 on the CPU, not torch.float64 on cpu"):
        registered(store, start(store), "chest", module.double(), np.zeros((2, 1, 8, 8), np.float32), 0.5, {})
    with pytest.raises(ValueError, match="batch of 2"):
        registered(store, start(store), "chest", module.float(), np.zeros((1, 1, 8, 8), np.float32), 0.5, {})


@pytest.mark.slow
def test_the_command_that_restores_a_deleted_experiment_does(store):
    start(store)
    experiment = store.client.get_experiment_by_name("chest")
    store.client.delete_experiment(experiment.experiment_id)
    with pytest.raises(UserError, match="was deleted in MLflow") as refused:
        store.experiment("chest")
    (command,) = re.findall(r"restore it \((.*)\) or", str(refused.value))
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env=environment | {"PATH": path})
    assert store.experiment("chest") == experiment.experiment_id


# ---- what a user may call a run


@pytest.fixture
def named(store):
    """Runs of a fine-tuning and its test, finished."""
    ids = {}
    for kind, digest in (("finetune", "ab12cd" * 10), ("test", "ab99ef" * 10)):
        ids[kind] = start(store, digest, kind)
        store.finish(ids[kind])
    return ids


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.run_id,
        lambda run: run.run_id[:8],
        lambda run: run.tags["premed.digest"],
        lambda run: run.tags["premed.digest"][:12],
        lambda run: f"{run.tags['premed.kind']}-{run.tags['premed.digest'][:16]}",
        lambda run: f"/data/checkpoints/{run.tags['premed.kind']}-{run.tags['premed.digest'][:16]}/",
    ],
)
def test_a_run_is_found_by_its_id_its_digest_how_they_begin_and_its_folder(store, named, write):
    for run_id in named.values():
        assert find_run(store, write(store.get(run_id))).run_id == run_id


@pytest.mark.parametrize("reference", ["0" * 32, "0123456789", "best model", "/nowhere/finetune-0123456789abcdef"])
def test_a_run_that_is_not_there_is_told_with_those_that_are(store, named, reference):
    with pytest.raises(
        UserError, match=f"^{reference}: no such run in .*; there are {named['test'][:8]} .chest a run"
    ) as caught:
        find_run(store, reference)
    assert named["finetune"][:8] in str(caught.value)


def test_a_beginning_that_several_have_is_not_guessed(store):
    for digest in ("abcdef00", "abcdef11"):
        start(store, digest * 8, "finetune")
    with pytest.raises(UserError, match="^abcdef: 2 runs begin like that"):
        find_run(store, "abcdef")


def test_a_store_without_runs_says_so(store):
    with pytest.raises(UserError, match="it holds no finished run: set PREMED_HOME or MLFLOW_TRACKING_URI"):
        find_run(store, "0" * 32)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (
            "models:/chest@bset",
            "no such model or version; did you mean models:/chest@best? There are models:",
        ),
        ("models:/chest@newest", "; did you mean models:/chest@best?"),
        ("models:/chest/7", "; did you mean models:/chest/2?"),
        ("models:/chets@best", "; did you mean models:/chest@best?"),
        ("models:/hippocampus@best", "; there are models:/chest@best, models:/chest/2, models:/knees@best"),
        (
            "models:/chest",
            "names no model; write models:/NAME@best or models:/NAME/VERSION; did you mean ",
        ),
        ("chest", "^chest: no such run; did you mean models:/chest@best?"),
        ("chest@best", "^chest@best: no such run; did you mean models:/chest@best?"),
        ("model:/knees@best", ": no such run; did you mean models:/knees@best?"),
    ],
)
def test_a_model_that_is_not_there_is_told_with_the_nearest_that_is(store, reference, words):
    run_id = start(store, "abc")
    for name, number in (("chest", 2), ("knees", 1)):
        store.client.create_registered_model(name)
        for _ in range(number):
            store.client.create_model_version(name, store.get(run_id).artifact_uri, run_id)
        store.client.set_registered_model_alias(name, "best", "1")
    with pytest.raises(UserError, match=words.replace("?", "[?]")) as caught:
        find_run(store, reference)
    assert "\n" not in str(caught.value)
