"""Whole sweeps on a real Ray: what comes of them, what they share, and that nothing of them is left behind."""

import shutil

import pytest
from support.experiments import runs_of, store_of
from support.sweeps import NOT_A_NUMBER, write_sweep

from premed.config.compose import load
from premed.errors import UserError
from premed.events import LookTaken, WarningIssued
from premed.execution import runner
from premed.tracking.run_store import LEASES
from premed.tuning import sweep
from premed.tuning.context import SweepContext, refuse_other_val, train_settings
from premed.tuning.sweep_file import load_sweep

pytest_plugins = ["support.experiment_fixtures"]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine takes minutes to start Ray
@pytest.mark.whole
def test_a_grid_shares_its_pre_trainings_never_opens_the_test_part_and_outlives_a_trial_that_fails(
    home, chest, tmp_path
):
    sealed = shutil.copytree(chest, tmp_path / "chestxray14")
    for name in (sealed / "test_list.txt").read_text().split():
        (sealed / "images" / name).write_bytes(b"sealed")
    space = {"pretext.mask_ratio": [0.5, 0.75], "finetune.lr": [1e-3, NOT_A_NUMBER]}
    file, events = write_sweep(tmp_path, sealed, {"space": space, "retries": 1}), []
    result = sweep.run(load_sweep(file), events.append)

    assert [each.state for each in result.trials] == ["done", "failed", "done", "failed"]
    assert "at step 1 (samples " in (result.trials[1].failure or "") and result.best in (0, 2)
    assert len([event for event in events if isinstance(event, WarningIssued) and "trying again" in event.text]) == 2
    assert len(runs_of(home, "pretrain")) == 2 and runs_of(home, "test") == []
    (parent,) = runs_of(home, "sweep")
    below = runs_of(home, "trial")
    assert {run.parent for run in below} == {parent.run_id} and len(below) == 4
    assert sorted(run.status for run in below) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert {run.params["finetune.lr"] for run in below} == {"0.001", "1e+30"}
    for each in result.trials:
        run = store_of(home).get(each.run_id)
        assert run.metrics.get("val/mauc") == (each.values or [None])[0]
        assert run.tags["state"] == each.state and run.tags.get("premed.failure") == each.failure
    assert list(store_of(home).search({}, experiment=LEASES)) == []

    best = load([f"{result.where}/best.yaml"])
    assert best.test and best.finetune.lr == 1e-3 and list(result.trials[0].by_seed) == ["0"]
    assert sweep.report(load_sweep(file)) == result

    models = store_of(home).client.search_model_versions
    assert models() == []  # a sweep makes no versions; who takes its best makes one
    for _ in range(2):
        taken = runner.run(load([f"{result.where}/best.yaml"], ["test=false", "train.workers=0"]), events.append)
        assert [stage["reused"] for stage in taken["stages"]] == [True, True]
        assert [version.run_id for version in models()] == [taken["stages"][1]["run_id"]]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_with_seeds_auto_a_trial_that_cannot_be_better_by_the_margin_gets_no_more(home, chest, tmp_path):
    """No area is better than another by 2, so that the second trial is over at its first look."""
    search = {"space": {"finetune.lr": [1e-3, 2e-3]}, "seeds": "auto", "concurrency": 1}
    search["decide"] = {"max_seeds": 5, "looks": [4, 5], "margin": 2.0}
    file, events = write_sweep(tmp_path, chest, search, {"pretext": "none", "pretrain": None}), []
    result = sweep.run(load_sweep(file), events.append)
    assert [(each.state, len(each.by_seed)) for each in result.trials] == [("done", 5), ("stopped", 4)]
    assert result.best == 0 and len(runs_of(home, "finetune")) == 9
    (shown,) = [event.words for event in events if isinstance(event, LookTaken)]
    assert shown.startswith("trial 1 gets no more seeds, no better than trial 0: val/mauc ")
    tags = [run.tags for run in runs_of(home, "trial")]
    assert sorted(each["state"] for each in tags) == ["done", "stopped"]
    assert shown.endswith(next(each["premed.behind"] for each in tags if each["state"] == "stopped"))
    assert sweep.run(load_sweep(file), events.append) == result


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_can_never_be_placed_is_refused_at_once(home, chest, tmp_path):
    space = {"train.cpus": [1.0, 1e6]}
    with pytest.raises(UserError, match="workers need 1e[+]06 CPUs and the cluster has"):
        sweep.run(load_sweep(write_sweep(tmp_path, chest, {"space": space})), lambda event: None)


def test_the_train_settings_of_all_trials_are_checked_together(home, chest, tmp_path):
    """2 workers fit on 2 CPUs, and so does 1 that wants both, but not 2 of these."""
    space = {"train.workers": [1, 2], "finetune.lr": [0.1, 0.2], "train.cpus": [1.0, 2.0]}
    trains = train_settings(load_sweep(write_sweep(tmp_path, chest, {"space": space})))
    assert {(train.workers, train.cpus) for train in trains} == {(1, 1.0), (1, 2.0), (2, 1.0), (2, 2.0)}
    with pytest.raises(UserError, match="train.workers: a sweep runs on Ray; set 1 or more"):
        sweep.run(load_sweep(write_sweep(tmp_path, chest, {"space": {"train.workers": [1, 0]}})), lambda event: None)


def test_trials_that_would_be_scored_on_other_images_of_val_are_refused(home, chest, tmp_path):
    other = shutil.copytree(chest, tmp_path / "other")
    listed = (other / "train_val_list.txt").read_text().splitlines()
    (other / "train_val_list.txt").write_text("\n".join(listed[:-20]))
    for name, values in (("task.split_seed", [0, 1]), ("task.root", [str(chest), str(other)])):
        file = write_sweep(tmp_path, chest, {"space": {name: values, "finetune.lr": [1e-3]}})
        with pytest.raises(UserError, match=f"^space.{name}: .* other images of val"):
            refuse_other_val(SweepContext(load_sweep(file)))
    same = {"task.root": [str(chest), str(shutil.copytree(chest, tmp_path / "same"))]}
    refuse_other_val(SweepContext(load_sweep(write_sweep(tmp_path, chest, {"space": same}))))
