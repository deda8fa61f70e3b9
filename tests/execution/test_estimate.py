"""premed run --estimate: what a fan-out takes, and what is refused before anything runs."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from support.experiments import SCRATCH, experiment, runs_of, tree

from premed.config.compose import merge
from premed.config.expand import fan_out
from premed.errors import UserError
from premed.execution import estimate as estimating
from premed.execution import networks, runner
from premed.execution.estimate import estimate
from premed.reporting.console import show_estimate
from premed.training.cost import Speed

pytest_plugins = ["support.experiment_fixtures"]
SPEED = Speed(step=2.0, val=0.5, memory_mb=900.0, checkpoint_bytes=3 * 10**6, parts_bytes=10**6, prepared_bytes=500.0)


def measured(found, speed=SPEED, events=None):
    """The estimate of experiments whose stages all have that speed, and the kinds of stages that were measured."""
    kinds = []

    def measure(job, at_once):
        kinds.append(job.stage.kind)
        return speed

    return estimate(found, (events if events is not None else []).append, measure), kinds


def experiments(chest, **more):
    """MAE and none, three seeds: one pre-training, six fine-tunings, six tests."""
    changes = {"seeds": [0, 1, 2], **more}
    return [*fan_out(merge(tree(chest, SCRATCH), changes)), *fan_out(merge(tree(chest), changes))]


def test_a_shared_pre_training_is_counted_once_and_equal_stages_are_measured_once(chest, home, capsys):
    found, kinds = measured(experiments(chest))
    assert sorted(kinds) == ["finetune", "pretrain", "test"]
    assert [(row.kind, row.number) for row in found.stages] == [("pretrain", 1), ("finetune", 6), ("test", 6)]
    pretrain, finetune, test = found.stages
    assert pretrain.images_per_second == 8.0  # 16 in two seconds
    total = pretrain.seconds + 6 * (finetune.seconds + test.seconds)
    assert found.device_seconds == pytest.approx(total) and found.seconds == pytest.approx(total)  # workers: 0
    assert found.at_once == 1 and found.memory_gb == pytest.approx(0.944, abs=0.001)
    # three checkpoints of a stage at a time, and the weights of all 13 stages in storage and in MLflow
    assert found.checkpoints_gb == pytest.approx(3 * 0.003 + 13 * 2 * 0.001)
    assert found.prepare_images == 90 and found.cache_gb == pytest.approx(90 * 500 / 1e9)
    show_estimate(found)
    out = capsys.readouterr().out
    assert "mae, none" in out and "one stage at a time" in out and "90 images are prepared" in out


def test_a_warm_up_of_less_than_a_step_is_told_before_anything_trains(chest, home):
    warmup = {"pretrain": {"steps": 8, "epochs": 400, "warmup_epochs": 20, "batch": 4}}
    said = "pretrain.warmup_epochs: 20 of 400 epochs is less than one of these 8 steps, so that there is no warm-up"
    assert any(note.startswith(said) for note in measured(experiments(chest, **warmup))[0].notes)
    assert not any("warmup" in note for note in measured(experiments(chest))[0].notes)


@pytest.mark.parametrize(("load", "told"), [(9.0, True), (0.1, False)])
def test_that_others_kept_the_machine_busy_is_told(chest, home, monkeypatch, load, told):
    monkeypatch.setattr("premed.execution.estimate.load", lambda: load)
    monkeypatch.setattr("premed.execution.estimate.num_cpus", lambda: 2.0)
    notes = measured(experiments(chest))[0].notes
    assert [note for note in notes if "others keep it busy now (load 9.0 on 2 CPUs), and idle" in note] == notes[:told]


def test_stages_run_at_once_as_far_as_there_are_cpus(chest, home, monkeypatch):
    monkeypatch.setattr(estimating, "num_cpus", lambda: 8.0)
    one, _ = measured(experiments(chest))
    four, _ = measured(experiments(chest, train={"workers": 2, "cpus": 1}))
    assert (one.at_once, four.at_once) == (1, 4)
    assert four.memory_gb == pytest.approx(8 * one.memory_gb)
    assert four.device_seconds / 4 <= four.seconds < four.device_seconds


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        ({"memory_mb": 1e9}, "^train.workers: 1 worker each need .* GB of memory, and this machine has"),
        ({"checkpoint_bytes": 10**18}, "^train.storage: .*checkpoints.* free on its disk, and checkpoints and weights"),
        ({"prepared_bytes": 1e17}, "^PREMED_HOME: .*cache.* free on its disk, and prepared images need"),
    ],
)
def test_what_cannot_fit_is_refused(chest, home, speed, words):
    with pytest.raises(UserError, match=words):
        measured([experiment(chest, SCRATCH)], Speed(**{**vars(SPEED), **speed}))


def test_workers_and_stages_that_train_at_once_are_measured_at_once(chest, home, monkeypatch):
    calls, jobs = [], []

    def run_processes(what, function, job, **how):
        calls.append((what, *how.values()))
        jobs.append(job)
        return [SPEED, replace(SPEED, step=4.0, start=0.1, memory_mb=1100.0, prepare=1.0)]

    monkeypatch.setattr(estimating, "num_cpus", lambda: 8.0)
    monkeypatch.setattr(estimating, "run_processes", run_processes)
    found = estimate(experiments(chest, train={"workers": 2, "cpus": 1}), lambda line: None)
    # the three experiments of `none` run beside the pre-training, for which those of `mae` wait
    assert {kind: how for kind, *how in calls} == {
        "pretrain": [2, 4, False],
        "finetune": [2, 4, False],
        "test": [2, 4, False],
    }
    assert found.stages[0].images_per_second == 16 / 3 and found.stages[0].memory_mb == 1100
    assert not any("workers" in note for note in found.notes)
    assert estimating.measure_apart(jobs[0], 1).start == 0.1  # of the slowest: the first rank alone solves
    calls.clear()
    estimate(experiments(chest, train={"workers": 2, "cpus": 1})[3:], lambda line: None)
    assert {kind: how[1] for kind, *how in calls} == {"pretrain": 1, "finetune": 3, "test": 3}
    monkeypatch.setattr(estimating, "num_cpus", lambda: 1.0)
    calls.clear()
    found = estimate(experiments(chest, train={"workers": 2, "cpus": 1}), lambda line: None)
    assert calls[0][1:] == (1, 1, False) and found.notes[0].startswith("of 2 workers 1, for which this machine")


def test_a_run_is_refused_where_the_disk_has_no_room_for_its_checkpoints(chest, home, monkeypatch):
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000, total=usage(path).total))
    with pytest.raises(UserError, match=r"^train.storage: .*has 0 MB free on its disk, and checkpoints need"):
        runner.run(experiment(chest), lambda event: None)
    assert networks.CHECKPOINTS == 3


@pytest.mark.slow
def test_the_command_measures_and_trains_nothing(premed, chest, home, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree(chest)))
    code, out, _ = premed("run", tmp_path / "tiny.yaml", "--estimate", "--json")
    found = json.loads(out)
    assert code == 0 and [row["kind"] for row in found["stages"]] == ["pretrain", "finetune", "test"]
    assert all(row["seconds"] > 0 for row in found["stages"]) and runs_of(home, "pretrain") == []
