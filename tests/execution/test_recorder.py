"""recorder.py: what a run says of its training, and how long its end waits for MLflow."""

from types import SimpleNamespace

import pytest
from support.experiments import curve, experiment, run, runs_of

from premed.execution.recorder import ExperimentRecorder
from premed.models.encoders import vit
from premed.reporting.outcomes import show_outcomes

pytest_plugins = ["support.experiment_fixtures"]


@pytest.mark.parametrize(("status", "longest"), [("FINISHED", 10), ("FAILED", 10), ("KILLED", 1)])
def test_a_stopped_command_waits_a_second_for_each_run_since_closing_delivers_all(status, longest):
    """Schedulers kill after 30 seconds: a stage's run and its experiment's may not take 20 of them without MLflow."""
    waited = []
    tracker = SimpleNamespace(
        finish=lambda run_id, status: None,
        wait_delivered=lambda run_id, timeout=10.0: waited.append(timeout),
    )
    recorder = ExperimentRecorder(experiment("chest"), None, tracker, lambda event: None)
    recorder.copies["run"] = ["folder"]
    recorder.end("run", status)
    assert waited == [longest] and recorder.copies == {"run": ["folder"]}  # MLflow has not read them yet


def test_a_pre_training_that_the_probe_ended_says_so_in_mlflow_and_at_the_end(chest, home, capsys, monkeypatch):
    monkeypatch.setattr(vit.Config, "version", 2)  # the same fields, and other results: comparisons have to see it
    short = {"steps": 30, "validations": 15, "probe": {"images": 8}, "stop": {"probe_patience": 1}}
    outcome = run(chest, {"pretrain": short, "finetune": None})
    ended = outcome["stages"][0]["stopped"]
    assert ended["step"] < ended["of"] == 30
    (found,) = runs_of(home, "pretrain")
    assert found.tags["premed.stopped"] == f"at step {ended['step']} of 30"
    assert {name for name in found.params if name.endswith("version")} == {"stage.encoder.version"}
    points = curve(home, found.run_id)["val/probe_mauc"]
    assert points[-1][0] == ended["step"] and points[-1][1] <= points[-2][1]
    show_outcomes([outcome])
    assert f"length:  {ended['step']} of 30 steps, ended by the probe" in capsys.readouterr().out


@pytest.mark.parametrize("num_folds", [None, 5])
def test_an_experiment_says_of_how_many_folds_its_test_part_is_one(num_folds):
    """`premed compare` tells by it which patients a cross-validation lacks."""
    task = SimpleNamespace(name="brats", score="dice", num_folds=num_folds)
    recorder = ExperimentRecorder(experiment("chest"), task, None, lambda event: None)
    assert recorder.tags("experiment").get("folds") == (num_folds and str(num_folds))
    assert "folds" not in recorder.tags("pretrain")
