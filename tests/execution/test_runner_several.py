"""Several experiments of one command: what they share, what a failing one costs, and how many run at once."""

import json
import os
import signal
import sys
import threading

import pytest
import yaml
from support.experiments import forked, results, runs_of, store_of, tree, until

from premed.cli import app
from premed.config.expand import fan_out
from premed.errors import CalledOff, Stopped
from premed.events import ExperimentEnded, ImagesPrepared, MetricsLogged, TrainingStarted, WarningIssued
from premed.execution import runner
from premed.execution.preflight import resolve
from premed.execution.session import open_session
from premed.execution.single_flight import SingleFlight
from premed.tracking.run_store import LEASES

pytest_plugins = ["support.experiment_fixtures"]

SHORT = {"epochs": 1, "validations": 1}
QUICK = {"pretrain": SHORT, "finetune": SHORT, "test": False}
NOT_A_NUMBER = 1e30  # as a learning rate


def both(chest, *changes):
    """`none` and `mae`, each fanned out."""
    whole = tree(chest, QUICK, *changes)
    scratch = {name: value for name, value in whole.items() if name != "pretrain"} | {"pretext": "none"}
    return [*fan_out(scratch), *fan_out(whole)]


def tags_of(home, kind, *names):
    return sorted(tuple(run.tags.get(name) for name in names) for run in runs_of(home, kind))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_seeds_two_fractions_and_two_strategies_cost_one_pre_training(home, chest):
    events = []
    experiments = both(chest, {"seeds": [0, 1], "finetune": {"label_fraction": [0.3, 1.0]}})
    found = runner.run_all(experiments, events.append)
    expected = [(s, f, seed) for s in ("none", "mae") for f in (0.3, 1.0) for seed in (0, 1)]
    assert [(each["strategy"], each["label_fraction"], each["seed"]) for each in found] == expected
    assert len(list((home / "checkpoints").glob("pretrain-*"))) == 1
    (pretrain,) = runs_of(home, "pretrain")
    assert {each["stages"][0]["run_id"] for each in found[4:]} == {pretrain.run_id}
    assert sorted(each["stages"][0]["reused"] for each in found[4:]) == [False, True, True, True]

    shares = {each["stages"][-1]["num_cases"] for each in found[::2]}
    assert len(shares) == 2 and len({each["stages"][-1]["digest"] for each in found}) == 8
    for kind in ("experiment", "finetune"):
        rows = tags_of(home, kind, "strategy", "label_fraction", "seed")
        assert rows == sorted((s, f"{f:g}", str(seed)) for s, f, seed in expected)
        assert {run.tags.get("pretrain_run") for run in runs_of(home, kind)} == {None, pretrain.run_id}
    names = {run.name for run in runs_of(home, "finetune")}
    assert "mae 30 % seed 1 fine-tuning" in names and len(names) == 8
    assert [event.done for event in events if isinstance(event, ExperimentEnded)] == list(range(1, 9))
    looks = [event for event in events if isinstance(event, ImagesPrepared) and event.done == event.total]
    assert len(looks) == 2  # the pre-training's images and the fine-tuning's, however many experiments look at them

    again = runner.run_all(experiments, lambda event: None)
    assert list(map(results, again)) == list(map(results, found))
    assert all(stage["reused"] for each in again for stage in each["stages"])


def test_a_pre_training_that_fails_is_tried_once_and_fails_only_what_stands_on_it(home, chest):
    events = []
    changes = {"seeds": [0, 1], "pretrain": {"lr": NOT_A_NUMBER}}
    found = runner.run_all(both(chest, changes), events.append)
    assert ["failure" in each for each in found] == [False, False, True, True]
    assert len([event for event in events if isinstance(event, TrainingStarted)]) == 3
    for each in found[2:]:
        assert each["failure"].startswith("pretrain: the loss is not finite at step") and each["stages"] == []
        run = store_of(home).get(each["run_id"])
        assert run.status == "FAILED" and run.tags["premed.failure"] == each["failure"]
    assert list(store_of(home).search({}, experiment=LEASES)) == []


def test_a_command_of_which_something_failed_ends_with_1_and_prints_all(home, chest, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree(chest, QUICK)))
    monkeypatch.setattr(app.stopping, "install", lambda: None)
    arguments = ["run", str(tmp_path / "a.yaml"), "pretext=[none,mae]", f"pretrain.lr={NOT_A_NUMBER}", "--json"]
    monkeypatch.setattr(sys, "argv", ["premed", *arguments])
    with pytest.raises(SystemExit) as end:
        app.main()
    out, err = capsys.readouterr()
    none, mae = json.loads(out)["outcomes"]
    assert end.value.code == 1 and none["stages"] and "failure" not in none and "not finite" in mae["failure"]
    lines = err.splitlines()
    assert any(line.startswith("[mae] FAILED: pretrain: the loss is not finite") for line in lines)
    assert any(line.startswith("[none] val mean AUC ") and line.endswith("(2/2 experiments done)") for line in lines)


def test_a_bug_in_one_experiment_stops_no_other(home, chest, monkeypatch):
    from premed.execution.recorder import ExperimentRecorder

    close = ExperimentRecorder.close
    broken = lambda self, stages: 1 / 0 if self.experiment.finetune.seed == 0 else close(self, stages)  # noqa: E731
    monkeypatch.setattr(ExperimentRecorder, "close", broken)
    events = []
    scratch = tree(chest, QUICK, {"pretext": {"name": "none"}, "seeds": [0, 1]})
    found = runner.run_all(fan_out(scratch), events.append)
    assert [each.get("failure") for each in found] == ["ZeroDivisionError: division by zero", None]
    assert "Traceback" in next(event.text for event in events if isinstance(event, WarningIssued))


def test_ctrl_c_ends_all(home, chest):
    def interrupt(event):
        if isinstance(event, MetricsLogged):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_all(both(chest), interrupt)
    assert {run.status for kind in ("experiment", "pretrain") for run in runs_of(home, kind)} == {"KILLED"}
    assert runs_of(home, "finetune") == [] and list(store_of(home).search({}, experiment=LEASES)) == []


# ---- what several need is computed once


def test_the_first_to_ask_does_it_and_the_others_wait_for_it():
    once, going, waiting, got = SingleFlight(), threading.Event(), threading.Semaphore(0), []
    work = lambda: going.wait(10) and "done"  # noqa: E731
    threads = [threading.Thread(target=lambda: got.append(once("a", work, waiting.release))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert waiting.acquire(timeout=10) and waiting.acquire(timeout=10) and got == []
    going.set()
    for thread in threads:
        thread.join(10)
    assert sorted(got) == [("done", False), ("done", False), ("done", True)]


def test_what_failed_for_the_first_has_failed_for_all_and_is_not_tried_again():
    once, tried = SingleFlight(), []

    def fails():
        tried.append(1)
        raise RuntimeError("no")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            once("a", fails)
    assert tried == [1] and once("b", lambda: 2) == (2, True)
    once.forget_failures()
    with pytest.raises(RuntimeError, match="no"):
        once("a", fails)
    assert tried == [1, 1] and once("b", fails) == (2, False)


def test_where_the_first_is_cancelled_one_of_the_waiting_takes_over():
    once, holding, waiting, got = SingleFlight(), threading.Event(), threading.Semaphore(0), []

    def called_off():
        assert holding.wait(10)
        raise CalledOff

    def first():
        with pytest.raises(CalledOff):
            once("a", called_off)

    threads = [threading.Thread(target=first)]
    threads[0].start()
    while "a" not in once.results:
        continue
    ask = lambda: got.append(once("a", lambda: "done", waiting.release))  # noqa: E731
    threads += [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads[1:]:
        thread.start()
    assert waiting.acquire(timeout=10) and waiting.acquire(timeout=10) and got == []
    holding.set()
    for thread in threads:
        thread.join(10)
    assert sorted(got) == [("done", False), ("done", True)]


def test_a_waiting_thread_can_be_cancelled_alone():
    once, going = SingleFlight(), threading.Event()
    worker = threading.Thread(target=lambda: once("a", lambda: going.wait(10)))
    worker.start()
    while "a" not in once.results:
        continue

    def pause(seconds):
        raise CalledOff

    with pytest.raises(CalledOff):
        once("a", lambda: None, pause=pause)
    going.set()
    worker.join(10)
    assert once("a", lambda: None) == (True, False)


# ---- Ray


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine takes minutes to start Ray
def test_on_ray_two_run_at_once_one_fails_alone_and_nothing_is_held_in_the_end(home, chest):
    import ray
    from ray.util import placement_group_table

    one = {"train": {"workers": 1, "cpus": 1}}
    experiments = both(chest, one, {"seeds": [0, 1], "test": True})
    experiments += fan_out(tree(chest, QUICK, one, {"pretext": {"name": "none"}, "finetune": {"lr": NOT_A_NUMBER}}))
    schedulers, at_once = [], []

    def show(event):
        at_once.extend(len(scheduler.busy) for scheduler in schedulers)

    resolved = resolve(experiments)
    with open_session([each.train for each in experiments], resolved[0].tasks, show) as here:
        schedulers.append(here.scheduler)
        found = runner.ExperimentBatch(resolved, here).at_once()
        here.scheduler.close()
        total = ray.cluster_resources()["CPU"]
        while ray.available_resources().get("CPU") != total:  # it is told a moment later
            continue
        assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    assert ["failure" in each for each in found] == [False, False, False, False, True]
    assert max(at_once) == min(2, total) and len(runs_of(home, "pretrain")) == 1
    kinds = [["finetune", "test"]] * 2 + [["pretrain", "finetune", "test"]] * 2
    assert [[stage["kind"] for stage in each["stages"]] for each in found[:4]] == kinds
    assert list(store_of(home).search({}, experiment=LEASES)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("error", "raised"), [(KeyboardInterrupt, Stopped), (ValueError, ValueError)])
def test_a_command_that_ends_early_has_no_thread_in_ray_s_library_when_ray_is_shut_down(
    home, chest, monkeypatch, error, raised
):
    """Also where the workers are idle at that moment: the process could crash."""
    import ray

    def groups():
        return [each for each in threading.enumerate() if each.name == "premed worker group"]

    left, shutdown = [], ray.shutdown
    monkeypatch.setattr(ray, "shutdown", lambda: (left.append(groups()), shutdown()))
    experiments = fan_out(tree(chest, QUICK, {"train": {"workers": 1}, "test": False, "pretext": {"name": "none"}}))
    resolved = resolve(experiments)
    with pytest.raises(raised), open_session([experiments[0].train], resolved[0].tasks, lambda event: None) as here:
        (outcome,) = runner.ExperimentBatch(resolved, here).at_once()
        assert "failure" not in outcome and len(groups()) == 1
        raise error
    assert left == [[]]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ctrl_c_on_ray_ends_all_that_is_under_way_and_the_same_experiments_go_on(home, chest, tmp_path):
    long = {"epochs": 40}
    changes = QUICK, {"pretrain": long, "finetune": long, "train": {"log_steps": 1}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree(chest, *changes)))
    process, output = forked(home, "run", tmp_path / "a.yaml", "pretext=[none,mae]", "train.workers=1")
    until(output, "[none] step 1: checkpoint saved")  # the pre-training was before it in line
    os.kill(process.pid, signal.SIGINT)
    rest = output.read().splitlines()
    process.join()
    assert process.exitcode == 130 and rest[-1].startswith("premed: stopped") and "Traceback" not in str(rest)
    begun = [*runs_of(home, "experiment"), *runs_of(home, "pretrain"), *runs_of(home, "finetune")]
    assert len(begun) == 4 and {run.status for run in begun} <= {"KILLED", "FINISHED"}
    assert begun[0].status == "KILLED" and list(store_of(home).search({}, experiment=LEASES)) == []
    found = runner.run_all(both(chest, *changes), lambda event: None)
    ours = {run.run_id for run in begun}
    assert {each["run_id"] for each in found} <= ours
    assert {each["stages"][0]["run_id"] for each in found} <= ours
