"""HSSL from folders to test scores, killed and gone on with, on one rank and on two."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
from support.hssl import SMALL
from support.stages import jobs, outcome, run

from premed.config.compose import validate_experiment
from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.errors import UserError
from premed.execution import runner
from premed.pretext.hssl import HSSL

pytest_plugins = ["support.experiment_fixtures"]


# From folders to test scores, in this process -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(shared):
    chests = shared("few chests", lambda folder: write_chestxray14(folder / "chest", 20, 0, size=32)) / "chest"
    write = partial(write_msd, num_cases=8, seed=0, shape=(24, 30, 16))
    return {"chest": chests, "hippocampus": shared("few volumes", lambda it: write(it / "hippocampus")) / "hippocampus"}


def sections(folders, name: str) -> dict[str, Any]:
    """An experiment on one of two data sets, which a joint pre-training sees both of."""
    chest = {"name": "chestxray14", "root": str(folders["chest"]), "size": 32, "stored": 32}
    volumes = {"name": "msd", "root": str(folders["hippocampus"]), "roi": [32, 32, 4]}
    own, head = {"chest": (chest, {"name": "linear", "pool": "cls"}), "hippocampus": (volumes, {"name": "conv"})}[name]
    steps = {"epochs": 1, "warmup_epochs": 0.1, "batch": 6, "lr": 0.03, "validations": 2}
    sources = [{"task": chest, "group": "X-ray"}, {"task": {**volumes, "roi": [32, 32, 1]}, "group": "MRI"}]
    return {
        "task": own,
        "encoder": {"name": "unet", "widths": [8, 16, 24], "dims": 2},
        "pretext": {"name": "hssl", **SMALL},
        "pretrain": {**steps, "steps": 6, "sources": sources},
        "finetune": {**steps, "steps": 4, "head": head},
        "train": {"workers": 0, "log_steps": 2, "save_minutes": 0, "precision": "fp32"},
    }


@pytest.mark.slow
@pytest.mark.whole
def test_one_pre_training_on_pictures_and_volumes_serves_both_tasks_and_sees_no_label(folders, home, monkeypatch):
    seen, forward = Counter(), HSSL.forward

    def watched(self, batch, progress):
        assert batch.label is None and batch.image.shape[1:] == (1, 32, 32)
        seen.update(batch.data_set.tolist())
        return forward(self, batch, progress)

    monkeypatch.setattr(HSSL, "forward", watched)
    first, second = (runner.run(validate_experiment(sections(folders, name)), lambda event: None) for name in folders)
    assert seen == {0: 18, 1: 18}
    kinds = [stage["kind"] for stage in first["stages"]]
    assert kinds == ["pretrain", "finetune", "test"] == [stage["kind"] for stage in second["stages"]]
    assert first["stages"][0]["digest"] == second["stages"][0]["digest"]
    levels = {"image", "task", "group", "decoder", "task_accuracy", "group_accuracy", "image_spread", "loss"}
    levels |= {"rankme", "spread"}  # of the encoder's features
    assert {f"val/{name}" for name in levels} == set(first["stages"][0]["summary"])
    for each in (first, second):
        loaded = each["stages"][1]["loaded"]["encoder"]
        assert (loaded["missing"], loaded["dropped"], loaded["resized"]) == ([], [], [])


def test_it_pre_trains_on_the_task_s_own_images_too(folders, home):
    tree = sections(folders, "hippocampus")
    del tree["pretrain"]["sources"]
    stage = runner.run(validate_experiment(tree | {"test": False}), lambda event: None)["stages"][0]
    assert stage["summary"]["val/task"] == 0 == stage["summary"]["val/group"]


def test_micro_batches_are_refused_by_name_for_they_would_be_another_loss(folders, home):
    tree = sections(folders, "chest")
    tree["train"]["accumulate"] = 2
    with pytest.raises(UserError, match=r"train\.accumulate: the loss couples the images of a step; set it to 1"):
        runner.run(validate_experiment(tree), lambda event: None)


# Again, and on several ranks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(folders, shared):
    def fill(folder):
        assert run(pretraining(folders, folder), world=2) == [0, 0]

    return outcome(pretraining(folders, shared("undisturbed hssl", fill)))


def pretraining(folders, home) -> Any:
    tree = sections(folders, "chest")
    tree["pretrain"]["steps"] = 10
    return jobs(folders["chest"], home, **tree)["pretrain"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["row 5", "saved 4"])
def test_killed_on_two_ranks_it_goes_on_exactly(kill, folders, tmp_path, undisturbed):
    job = pretraining(folders, tmp_path)
    assert run(job, world=2, kill=kill) != [0, 0]
    assert run(job, world=2) == [0, 0]
    assert outcome(job) == undisturbed


@pytest.mark.slow
def test_on_one_rank_it_draws_the_same_curve_as_on_two(folders, tmp_path, undisturbed):
    job = pretraining(folders, tmp_path)
    assert run(job) == [0]
    for (step, alone), (other, shared) in zip(outcome(job)["curve"], undisturbed["curve"], strict=True):
        assert step == other and alone == pytest.approx(shared, rel=0.02, abs=1e-3)
