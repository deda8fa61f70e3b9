"""Which validations a scheduler gets of a trial, and that a training waits only where the scheduler will decide."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from premed.errors import StageFailed, UserError
from premed.events import MetricsLogged
from premed.execution.session import Session
from premed.tuning import trial as trials
from premed.tuning.sweep import EventRouter
from premed.tuning.trial import Trial, Validations, metric_value


def reported(rows, known=(), mode="max"):
    """The calls for a fine-tuning of 60 steps with 6 validations: (number, best so far, step); (step,) if skipped."""
    calls = []
    take = lambda *call: calls.append(call)  # noqa: E731
    validations = Validations("val/dice", mode, 6, dict(known), take, take)
    for step, metrics in rows:
        validations(MetricsLogged(step, 60, 0, metrics))
    return calls


def test_the_best_so_far_is_reported_at_each_validation_and_other_points_of_the_curve_are_ignored():
    rows = [(5, {"train/loss": 1.0}), (10, {"val/dice": 0.3}), (20, {"val/dice": 0.2}), (30, {"val/dice": 0.4})]
    assert reported(rows) == [(1, 0.3, 10), (2, 0.3, 20), (3, 0.4, 30)]
    assert reported(rows, mode="min") == [(1, 0.3, 10), (2, 0.2, 20), (3, 0.2, 30)]


@pytest.mark.parametrize("metrics", [{"val/dice": math.nan}, {"val/mauc": 0.5}])
def test_training_continues_from_a_validation_without_the_metric(metrics):
    """Else its workers would wait for ever, and the trial never fail."""
    assert reported([(10, metrics), (20, {"val/dice": 0.2})]) == [(10,), (2, 0.2, 20)]


def test_training_continues_from_a_validation_that_an_earlier_start_reported():
    """Its checkpoint was older: the validation comes again, and the scheduler has already decided."""
    rows = [(10, {"val/dice": 0.3}), (20, {"val/dice": 0.2}), (30, {"val/dice": 0.1})]
    assert reported(rows, known={1: 0.3, 2: 0.3}.items()) == [(10,), (20,), (3, 0.3, 30)]


def test_only_the_first_seed_s_fine_tuning_counts_as_validations_of_a_trial():
    shown, validations = [], []
    router = EventRouter(shown.append)
    router.validations["trial 1 seed 0"] = validations.append
    mine = MetricsLogged(1, 2, 0, {"val/loss": 1.0}, kind="finetune", experiment="trial 1 seed 0")
    other = {"experiment": ""}, {"experiment": "trial 1 seed 1"}, {"kind": "pretrain"}
    events = [*(replace(mine, **change) for change in other), mine]
    for event in events:
        router(event)
    assert shown == events and validations == [mine]


def test_costs_are_sums_over_stages():
    stages = [
        {"kind": "trunk", "seconds": 5.0, "peak_memory_mb": 10.0},
        {"kind": "cooldown", "seconds": 2.0, "peak_memory_mb": 30.0},
        {"kind": "finetune", "seconds": 3.0, "peak_memory_mb": 20.0, "summary": {"val/dice": 0.4}},
    ]
    metrics = "seconds", "pretrain_seconds", "finetune_seconds", "peak_memory_mb", "val/dice"
    assert [metric_value(metric, stages) for metric in metrics] == [10.0, 7.0, 3.0, 30.0, 0.4]


# ---- a stopped command


def trial_of(session, experiments):
    return Trial(0, [0], experiments, session, ["val/dice"], lambda event: None, None)


@pytest.mark.parametrize("error", [ValueError("the outbox is closed"), StageFailed("no"), UserError("no")])
def test_in_a_stopped_command_no_trial_fails_and_none_is_tried_again(error):
    """What closing causes is not the trial's own: its end is not recorded, and the next start goes on with it."""
    session, tries = Session(None, None, map, lambda event: None), []

    def fails():
        tries.append(1)
        session.stopped.set()
        raise error

    trial = trial_of(session, fails)
    with pytest.raises(KeyboardInterrupt):
        trial.run(retries=2)
    assert tries == [1] and trial.queued.is_set()


@pytest.mark.parametrize("line", ["", '{"step": 20, "ti', '{"step": 20, "time": 0, "metrics": null}', "[" * 100_000])
def test_of_a_finished_fine_tuning_s_damaged_curve_the_validations_before_the_damage_count(monkeypatch, tmp_path, line):
    """Else the trial fails of it at each try, and the sweep at each start, though its scores are there."""
    (tmp_path / "finetune-0").mkdir()
    points = '{"step": 10, "time": 0, "metrics": {"val/dice": 0.3}}\n' + line
    (tmp_path / "finetune-0" / "curve.jsonl").write_text(points)
    last = {"kind": "finetune", "reused": True, "where": f"{tmp_path}/finetune-0", "num_steps": 60}
    stages = [last | {"summary": {"val/dice": 0.4}}]
    pipeline = SimpleNamespace(run=lambda: {"stages": stages}, storage=str(tmp_path), stages=stages)
    monkeypatch.setattr(trials, "StagePipeline", lambda *arguments, **more: pipeline)
    monkeypatch.setattr(trials, "replace", lambda experiment, **more: experiment)
    calls = []
    trial = trial_of(Session(None, None, map, lambda event: None), lambda: [None])
    trial.validations = Validations("val/dice", "max", 6, {}, lambda *call: calls.append(call), calls.append)
    assert trial.run(retries=0) == [0.4] and calls == [(1, 0.3, 10)]


def test_a_trial_s_own_failure_is_told_and_tried_again():
    session, tries = Session(None, None, map, lambda event: None), []

    def fails():
        tries.append(1)
        raise UserError("no")

    trial = trial_of(session, fails)
    with pytest.raises(UserError, match="no"):
        trial.run(retries=1)
    assert tries == [1, 1] and trial.notes["tries"] == 2
