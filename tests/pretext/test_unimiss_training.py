"""UniMiSS from several data sets to several tasks, killed and gone on with, on one rank and on two."""

import json
from typing import Any

import pytest
import torch
from support.experiments import runs_of
from support.mit import NUMBERS
from support.stages import outcome, run
from support.unimiss import SMALL

from premed.config.compose import validate_experiment
from premed.data import datamodule
from premed.data.phantoms.thorax import write_images
from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.execution import runner
from premed.reporting.comparison.compare import compare
from premed.tracking.run_store import open_store
from premed.training import stage as worker
from premed.training.checkpoint import CheckpointManager
from premed.training.storage import StageStorage

pytest_plugins = ["support.experiment_fixtures"]


# From several data sets to several tasks ------------------------------------------------------------------------------


STEPS = {"steps": 6, "epochs": 2, "warmup_epochs": 0, "batch": 4, "lr": 0.03, "validations": 2, "augment": {"crops": 2}}
TRAINING = {"steps": 3, "epochs": 1, "batch": 4, "lr": 0.03, "validations": 1, "layer_decay": 1.0, "drop_path": 0.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("data")
    return {
        "chest": write_chestxray14(root / "chest", 20, 0, size=32),
        "brain": write_msd(root / "brain", 10, 0, shape=(24, 30, 16)),
        "ct": write_images(root / "ct", 14, 0, kind="nifti", size=32),
    }


def tasks(folders) -> dict[str, dict[str, Any]]:
    msd = {"name": "msd", "root": str(folders["brain"]), "roi": [32, 32, 16]}
    images = {"name": "images", "root": str(folders["ct"]), "labels": ["pneumonia"], "dims": 3, "roi": [32, 32, 16]}
    return {
        "chest": {"name": "chestxray14", "root": str(folders["chest"]), "size": 32, "stored": 32},
        "brain": msd | {"percentiles": [0.5, 99.5], "normalise": "zscore"},
        "ct": images,
    }


def tree(folders, which="chest", strategy="unimiss", *, names=("chest", "brain"), **pretext) -> dict[str, Any]:
    head = {"name": "conv"} if which == "brain" else {"name": "linear", "pool": "cls"}
    sources = [{"task": tasks(folders)[name]} for name in names]
    small = {"name": strategy, **SMALL, "interval": 1, **pretext} if strategy == "unimiss" else {"name": strategy}
    return {
        "task": tasks(folders)[which],
        "encoder": {"name": "mit", "size": "tiny", **NUMBERS},
        "pretext": small,
        "pretrain": STEPS | {"sources": sources},
        "finetune": TRAINING | {"head": head},
        "train": {"workers": 0, "log_steps": 1, "save_minutes": 0, "precision": "fp32"},
    }


@pytest.mark.slow
@pytest.mark.whole
def test_one_pre_training_on_both_serves_pictures_and_segmentation_beside_none(folders, home):
    found = {
        which: runner.run(validate_experiment(tree(folders, which)), lambda event: None) for which in ("chest", "brain")
    }
    runner.run(validate_experiment(tree(folders, "chest", "none")), lambda event: None)
    assert len(runs_of(home, "pretrain")) == 1 and found["brain"]["stages"][0]["reused"]
    for which, other in (("chest", "3d"), ("brain", "2d")):
        loaded = found[which]["stages"][1]["loaded"]
        assert loaded.keys() == {"encoder"} and loaded["encoder"]["missing"] == []  # the projection stays behind
        dropped = loaded["encoder"]["dropped"]
        assert dropped and all(other in name.split(".") for name in dropped)
    summary = found["chest"]["stages"][0]["summary"]
    assert {"val/loss", "val/entropy", "val/same", "val/centre_spread"} <= summary.keys()
    (task,) = compare(open_store(), task="chestxray14").tasks
    (block,) = task.blocks
    assert {arm.label: arm.same_architecture for arm in block.rows} == {"none": True, "unimiss": True}
    card = json.loads(next((home / "checkpoints").glob("pretrain-*/parts/card.json")).read_text())
    assert [source["task"] for source in card["sources"]] == ["chestxray14", "brain"]
    assert card["sources"][1]["preprocessing"]["orientation"] == "RAS" and card["sources"][1]["roi"] == [32, 32, 16]


@pytest.mark.parametrize(("which", "other"), [("chest", "3d"), ("brain", "2d"), ("ct", "2d")])
def test_classification_of_pictures_and_of_volumes_and_segmentation_load_all_but_the_other_branch(
    folders, tmp_path, which, other
):
    experiment = validate_experiment(tree(folders, which))
    pretrain, finetune, _ = experiment.stages(lambda kind: "data")
    where = experiment.train, str(tmp_path), tmp_path
    before, after = worker.StageJob(pretrain, None, *where), worker.StageJob(finetune, pretrain, *where)
    encoder = worker.make_objective(before, datamodule.stage_data_sets(pretrain))[0].parts["encoder"]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1)
    before.stage_storage.put_weights("parts/encoder.safetensors", encoder.state_dict())
    before.stage_storage.put_json("parts/card.json", {"grid": encoder.grid})
    objective, loaded = worker.make_objective(after, datamodule.stage_data_sets(finetune))
    state, saved = objective.parts["encoder"].state_dict(), encoder.state_dict()
    assert loaded["encoder"]["missing"] == [] and loaded["encoder"]["dropped"] == sorted(saved.keys() - state.keys())
    assert all(other in name.split(".") for name in loaded["encoder"]["dropped"])
    assert all(torch.equal(state[name], saved[name]) for name in state.keys() - {*loaded["encoder"]["resized"]})


def made(folders, tmp_path, **changes):
    """The joint pre-training as a job."""
    from premed.config.compose import merge

    experiment = validate_experiment(merge(tree(folders), changes))
    stage = next(experiment.stages(lambda kind: "data"))
    return worker.StageJob(
        stage, None, experiment.train, str(tmp_path / "checkpoints"), folders["chest"].parent / "cache"
    )


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_exactly_teacher_and_centre_too(folders, tmp_path):
    whole, killed = made(folders, tmp_path / "a"), made(folders, tmp_path / "b")
    assert run(whole) == [0]
    assert run(killed, kill="row 4") == [-9] and CheckpointManager(killed.stage_storage).steps()
    state = CheckpointManager(killed.stage_storage).newest()[1]["objective"]
    assert state["centre"].any() and any(name.startswith("teacher.") for name in state)
    assert run(killed) == [0]
    assert outcome(killed) == outcome(whole)


@pytest.mark.slow
def test_two_ranks_differ_from_one_by_rounding_alone_and_go_on_exactly(folders, tmp_path):
    slow = {"pretrain": {"lr": 0.003}}
    alone, both, killed = (made(folders, tmp_path / name, **slow) for name in "abc")
    assert run(alone) == [0] and run(both, 2) == [0, 0]
    assert run(killed, 2, kill="row 4")[0] == -9 and run(killed, 2) == [0, 0]
    assert outcome(killed) == outcome(both)
    for (step, ours), (step_there, theirs) in zip(*(outcome(job)["curve"] for job in (alone, both)), strict=True):
        losses = {name: pytest.approx(value, rel=1e-3) for name, value in ours.items() if name.endswith("/loss")}
        assert step == step_there and theirs == theirs | losses


@pytest.mark.slow
def test_the_teacher_s_encoder_is_saved_if_asked_for(folders, tmp_path):
    student, teacher = made(folders, tmp_path / "a"), made(folders, tmp_path / "b", pretext={"saves": "teacher"})
    assert run(student) == run(teacher) == [0]
    ours, theirs = (job.stage_storage.get_weights("parts/encoder.safetensors") for job in (student, teacher))
    assert ours.keys() == theirs.keys()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert StageStorage.names(student.stage_storage) and student.stage.digest() != teacher.stage.digest()
