"""Whole experiments: what is reused, what survives a kill, what MLflow holds in the end. One test starts a real Ray."""

import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from support.experiments import (
    SCRATCH,
    beside,
    command,
    curve,
    experiment,
    last,
    outcome,
    results,
    run,
    runs_of,
    settle_in,
    store_of,
    until,
)

from premed.config.plugins import plugin
from premed.errors import StageFailed, UserError
from premed.events import CheckpointSaved, MetricsLogged
from premed.execution import runner
from premed.models.network import Network
from premed.tasks import chestxray14
from premed.tracking.run_store import LEASES

pytest_plugins = ["support.experiment_fixtures"]

KINDS = ["pretrain", "finetune", "test"]


@pytest.fixture
def finished(mae_home):
    """A home in which MAE has run to its end, and the outcome."""
    return mae_home


@pytest.fixture
def used(finished, monkeypatch):
    """That home, in use."""
    settle_in(monkeypatch, finished[0])
    return finished


@pytest.fixture
def copied(finished, monkeypatch, tmp_path):
    """A copy of that home, in use; its MLflow finds files where they were."""
    home, before = finished
    shutil.copytree(home, tmp_path / "home")
    settle_in(monkeypatch, tmp_path / "home")
    return tmp_path / "home", before


def everything(home):
    """All that MLflow holds of the runs of a home, and when each ended."""
    store = store_of(home)
    ended = {run.run_id: store.client.get_run(run.run_id).info.end_time for run in store.search({})}
    return {run.run_id: (run.status, run.tags, run.metrics, ended[run.run_id]) for run in store.search({})}


# ---- reused stages


def test_a_second_run_reuses_every_stage_and_adds_nothing_to_mlflow(used, chest):
    home, before = used
    held = everything(home)
    assert not list((home / "outbox").iterdir())  # MLflow has read all that waited for it there
    again = run(chest)
    assert results(again) == results(before) and again["run_id"] == before["run_id"]
    assert all(stage["reused"] for stage in again["stages"]) and not any(s["reused"] for s in before["stages"])
    assert everything(home) == held and len(held) == 4


def test_another_fine_tuning_reuses_the_pre_training(copied, chest):
    home, before = copied
    other = run(chest, {"finetune": {"lr": 2e-3}, "test": False})
    assert [stage["reused"] for stage in other["stages"]] == [True, False]
    assert other["stages"][0]["run_id"] == before["stages"][0]["run_id"]
    assert other["run_id"] != before["run_id"] and len(runs_of(home, "pretrain")) == 1


@pytest.mark.parametrize("policy", ["head", "last_n", {"name": "lora", "rank": 4}, "warmup_then_full"], ids=str)
def test_every_policy_fine_tunes_a_pre_trained_encoder(policy, copied, chest):
    other = run(chest, {"finetune": {"policy": policy}, "test": False})
    assert [stage["reused"] for stage in other["stages"]] == [True, False]


def test_cleaned_storage_is_fetched_from_mlflow(copied, chest):
    home, before = copied
    for folder in (home / "checkpoints").iterdir():
        shutil.rmtree(folder)
    again = run(chest)
    assert results(again) == results(before) and all(stage["reused"] for stage in again["stages"])
    old = json.loads(store_of(home).download(before["stages"][2]["run_id"], "scores.json", home / "x").read_text())
    new = json.loads((home / "checkpoints" / os.path.basename(again["stages"][2]["where"]) / "scores.json").read_text())
    assert [list(row.values()) for row in new] == old["data"]


@pytest.mark.slow
def test_a_finished_stage_is_recorded_anew_where_mlflow_was_removed(copied, finished, chest):
    (home, before), (original, _) = copied, finished
    (home / "mlflow.db").unlink()
    again = run(chest)
    assert results(again) == results(before) and all(stage["reused"] for stage in again["stages"])
    for old, new in zip(before["stages"], again["stages"], strict=True):
        assert curve(home, new["run_id"]) == curve(original, old["run_id"])


@pytest.mark.slow
def test_files_that_mlflow_lost_are_trained_again(copied, chest, monkeypatch):
    home, before = copied
    shutil.rmtree(home / "checkpoints")
    monkeypatch.setattr(
        "premed.tracking.run_store.RunStore.download", lambda *args: (_ for _ in ()).throw(OSError("gone"))
    )
    again = run(chest, {"test": False})
    assert not any(stage["reused"] for stage in again["stages"])
    assert results(again) == results(before)[:2]


@pytest.mark.whole
def test_a_removed_model_is_made_again_while_its_weights_are_there(copied, chest):
    home, before = copied
    client, where = store_of(home).client, os.path.basename(before["stages"][1]["where"])
    for made in [before["stages"][1]["run_id"]], []:
        client.delete_registered_model("chestxray14")
        assert all(stage["reused"] for stage in run(chest)["stages"])
        assert [version.run_id for version in client.search_model_versions()] == made
        shutil.rmtree(home / "checkpoints" / where / "parts", ignore_errors=True)


@pytest.mark.slow
def test_a_command_builds_each_task_once(home, chest, monkeypatch):
    build, built = chestxray14.build, []
    monkeypatch.setattr(chestxray14, "build", lambda config: built.append(config) or build(config))
    runner.run_all([experiment(chest, SCRATCH, {"finetune": {"seed": seed}}) for seed in (0, 1)], lambda event: None)
    assert len(built) == 1


def test_the_test_part_is_opened_by_the_test_stage_alone(home, chest, tmp_path):
    root = shutil.copytree(chest, tmp_path / "chest")
    for name in (root / "test_list.txt").read_text().split():
        (root / "images" / name).unlink()
        (root / "images" / name).mkdir()  # no image, whoever tries
    validated = run(root, SCRATCH, {"test": False})
    assert [stage["kind"] for stage in validated["stages"]] == ["finetune"]
    with pytest.raises(UserError, match="holds 0 DICOM slice"):
        run(root, SCRATCH)
    shutil.rmtree(root)
    shutil.copytree(chest, root)
    tested = run(root, SCRATCH)
    assert [(stage["kind"], stage["reused"]) for stage in tested["stages"]] == [("finetune", True), ("test", False)]
    assert tested["run_id"] == validated["run_id"]
    parent = store_of(home).get(tested["run_id"])
    assert parent.status == "FINISHED" and "test/mauc" in parent.metrics and "val/mauc" in parent.metrics


# ---- what MLflow holds


def test_an_experiment_is_a_run_above_its_stages_and_names_the_pre_training_that_others_may_share(used):
    home, before = used
    parent, *stages = (store_of(home).get(stage["run_id"]) for stage in [before, *before["stages"]])
    assert [run.parent for run in (parent, *stages)] == [None, None, parent.run_id, parent.run_id]
    names = ["", " fine-tuning", " test"]
    assert stages[0].name == "mae pre-training seed 0"
    assert [run.name for run in (parent, *stages[1:])] == [f"mae 100 % seed 0{name}" for name in names]
    assert {run.tags["pretrain_run"] for run in (parent, *stages[1:])} == {stages[0].run_id}
    assert {run.tags["encoder"] for run in (parent, *stages)} == {"vit"}
    assert [run.tags.get("head") for run in (parent, *stages)] == ["linear", None, "linear", "linear"]
    assert [stage.tags["stage"] for stage in stages] == KINDS and parent.tags["stage"] == "experiment"
    assert {run.status for run in (parent, *stages)} == {"FINISHED"}
    for run_ in (parent, *stages):
        result = {"task": "chestxray14", "strategy": "mae", "seed": "0"}
        assert result.items() <= run_.tags.items() and run_.tags["version.torch"]
    assert parent.tags["label_fraction"] == stages[1].tags["label_fraction"] == "1"
    assert parent.params["mask_ratio"] == stages[0].params["stage.pretext.mask_ratio"] == "0.75"


def test_an_experiment_s_own_run_has_few_parameters_and_all_scores_and_costs(used):
    run, stages = store_of(used[0]).get(used[1]["run_id"]), used[1]["stages"]
    wanted = {"arm": "mae 100 %", "strategy": "mae", "encoder": "vit", "head": "linear", "mask_ratio": "0.75"}
    wanted |= {
        "policy": "full",
        "label_fraction": "1.0",
        "layer_decay": "1.0",
        "pretrain_epochs": "4",
        "finetune_epochs": "4",
    }
    assert run.params == wanted | {"seed": "0", "pretrain_seed": "0"}
    scores = {name: v for each in stages[1:] for name, v in each["summary"].items() if name.count("/") == 1}
    assert scores.items() <= run.metrics.items() and len(scores) > 1
    assert run.metrics["below_gate"] == pytest.approx(1 - stages[0]["gate"]["loss"] / stages[0]["gate"]["gate"])
    assert run.metrics["seconds"] == pytest.approx(sum(each["seconds"] for each in stages))


def test_parameters_are_what_a_yaml_can_say(used):
    for stage in used[1]["stages"]:
        run = store_of(used[0]).get(stage["run_id"])
        assert not {"stage.kind", "stage.parent", "stage.data"} & run.params.keys()
        assert run.tags["premed.kind"] == stage["kind"] and run.tags["premed.data"]


def test_a_run_says_which_commit_it_comes_from(used):
    tags = store_of(used[0]).get(used[1]["run_id"]).tags
    folder = os.path.dirname(runner.__file__)
    if subprocess.run(["git", "ls-files", "--error-unmatch", "runner.py"], cwd=folder, capture_output=True).returncode:
        pytest.skip("premed is not run from its own checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()
    assert tags["mlflow.source.git.commit"].removesuffix("-dirty") == head


def test_curves_scores_and_numbers_are_those_of_the_stage(used):
    home, before = used
    for stage in before["stages"]:
        rows = json.loads(Path(stage["where"], "scores.json").read_text())
        assert store_of(home).scores(stage["run_id"]) == rows and len(rows) > 5
        metrics = store_of(home).get(stage["run_id"]).metrics
        assert metrics["seconds"] == stage["seconds"] and metrics["peak_memory_mb"] > 0
    lines = Path(before["stages"][0]["where"], "curve.jsonl").read_text().splitlines()
    written = list(map(json.loads, lines))
    result = curve(home, before["stages"][0]["run_id"])
    for name in ("train/loss", "val/loss", "val/gate"):
        assert result[name] == [(row["step"], row["metrics"][name]) for row in written if name in row["metrics"]]
    assert metrics["test/mauc"] == before["stages"][2]["value"] and metrics["test/low"] < metrics["test/high"]


def test_data_sets_pictures_and_parts_are_with_the_run(used):
    home, before = used
    client = store_of(home).client
    seen = []
    for stage in before["stages"]:
        inputs = client.get_run(stage["run_id"]).inputs.dataset_inputs
        seen.append(sorted(each.dataset.name for each in inputs))
        assert client.list_artifacts(stage["run_id"], "pictures")
    assert seen == [
        ["chestxray14 images", "chestxray14 val"],
        ["chestxray14 train", "chestxray14 val"],
        ["chestxray14 test"],
    ]
    parts = {file.path for file in client.list_artifacts(before["stages"][0]["run_id"], "parts")}
    assert {"parts/card.json", "parts/encoder.safetensors", "parts/decoder.safetensors"} <= parts


def test_the_registered_model_is_the_fine_tuned_network(used, chest):
    import mlflow

    home, before = used
    client = store_of(home).client
    version = client.get_model_version_by_alias("chestxray14", "best")
    assert version.run_id == before["stages"][1]["run_id"]
    model = mlflow.pytorch.load_model(client.get_model_version_download_uri("chestxray14", version.version))
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 1, 16, 16)).astype(np.float32))
    torch.testing.assert_close(model(image), network_of(chest, before)(image))


def network_of(chest, outcome):
    """The network, put together from the saved parts."""
    from safetensors.torch import load_file

    config = experiment(chest)
    task = plugin("tasks", config.task).build(config.task)
    encoder = plugin("encoders", config.encoder).build(config.encoder, task.channels, task.roi)
    head = plugin("heads", config.finetune.head).build(config.finetune.head, encoder, task)
    for name, part in (("encoder", encoder), ("head", head)):
        part.load_state_dict(load_file(f"{outcome['stages'][1]['where']}/parts/{name}.safetensors"))
    return Network(encoder, head).eval()


# ---- stopped, and gone on


def test_a_killed_command_goes_on_in_the_same_run_with_the_same_curve(finished, home, chest):
    process, events = beside(home, chest, {"test": False})
    event = None
    while not (isinstance(event, CheckpointSaved) and (event.kind, event.step) == ("pretrain", 6)):
        event = events.recv()
    process.kill()
    process.join()
    (begun,) = runs_of(home, "pretrain")
    again = run(chest, {"test": False})
    assert again["stages"][0]["run_id"] == begun.run_id
    assert store_of(home).get(begun.run_id).status == "FINISHED"
    assert results(again) == results(finished[1])[:2]
    assert curve(home, begun.run_id) == curve(finished[0], finished[1]["stages"][0]["run_id"])


@pytest.mark.slow
def test_ctrl_c_leaves_a_killed_run_and_no_lease_and_the_same_command_goes_on(finished, home, chest):
    def interrupt(event):
        if isinstance(event, MetricsLogged) and event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(chest, {"test": False, "train": {"log_steps": 1}}, show=interrupt)
    store = store_of(home)
    (begun,), (parent,) = runs_of(home, "pretrain"), runs_of(home, "experiment")
    assert begun.status == parent.status == "KILLED"
    assert list(store.search({}, experiment=LEASES)) == []
    again = run(chest, {"test": False})
    assert again["run_id"] == parent.run_id and again["stages"][0]["run_id"] == begun.run_id
    assert results(again) == results(finished[1])[:2] and store.get(parent.run_id).status == "FINISHED"


@pytest.mark.slow
def test_two_identical_commands_together_train_once(home, chest):
    pair = [beside(home, chest, SCRATCH) for _ in range(2)]
    first, second = (last(events) for _, events in pair)
    assert results(first) == results(second) and first["run_id"] == second["run_id"]
    for one, other in zip(first["stages"], second["stages"], strict=True):
        assert one["reused"] != other["reused"] and one["run_id"] == other["run_id"]
    assert [len(runs_of(home, kind)) for kind in ("experiment", *KINDS)] == [1, 0, 1, 1]
    assert {run.status for kind in KINDS for run in runs_of(home, kind)} == {"FINISHED"}


def test_a_loss_that_is_not_finite_fails_the_stage_and_its_run(home, chest):
    with pytest.raises(StageFailed, match="^finetune: the loss is not finite at step"):
        run(chest, SCRATCH, {"finetune": {"lr": 1e30}})
    (failed,), (parent,) = runs_of(home, "finetune"), runs_of(home, "experiment")
    assert failed.status == parent.status == "FAILED" and "not finite" in failed.tags["premed.failure"]


def test_a_bug_fails_the_stage_and_its_traceback_is_kept(home, chest, monkeypatch):
    monkeypatch.setattr("premed.training.stage.make_optimizer", lambda *args: 1 / 0)
    with pytest.raises(StageFailed, match="division by zero .*traceback.txt"):
        run(chest, SCRATCH)
    (where,) = (home / "checkpoints").glob("finetune-*/traceback.txt")
    assert "ZeroDivisionError" in where.read_text() and runs_of(home, "finetune")[0].status == "FAILED"


# ---- preparing


def test_prepare_makes_every_part_ready_and_needs_no_mlflow(home, chest, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert runner.prepare(experiment(chest, {"test": False}), lambda event: None)["num_images"] == 71
    result = runner.prepare(experiment(chest), lambda event: None)
    assert result["num_images"] == 90 and result["megabytes"] > 0


# ---- Ray


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine takes minutes to start Ray
def test_a_killed_worker_on_ray_changes_nothing_and_no_process_stays(home, chest, tmp_path, new_home, monkeypatch):
    changes = SCRATCH, {"test": False, "finetune": {"epochs": 50}, "train": {"max_failures": 3, "log_steps": 10}}
    process = command(tmp_path, home, chest, *changes, arguments=["train.workers=2"])
    until(process.stderr, "checkpoint saved")
    children = psutil.Process(process.pid).children(recursive=True)
    worker = next(child for child in children if "RayTrainWorker" in " ".join(child.cmdline()))
    os.kill(worker.pid, signal.SIGKILL)
    on_ray = outcome(process)
    assert psutil.wait_procs(children, timeout=30)[1] == []
    settle_in(monkeypatch, other := new_home())
    alone = run(chest, *changes)
    a, b = on_ray["stages"][0], alone["stages"][0]
    assert a["digest"] == b["digest"] and a["best_step"] == b["best_step"]
    assert math.isclose(a["summary"]["val/mauc"], b["summary"]["val/mauc"], rel_tol=1e-4)
    for name, points in curve(home, a["run_id"]).items():
        others = curve(other, b["run_id"])[name]
        np.testing.assert_allclose(points, others, rtol=1e-4, atol=1e-6, err_msg=name)
