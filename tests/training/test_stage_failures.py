"""What stops a stage: numbers that are not finite, ranks that fail, parts without images; none waits for ever."""

import socket
from functools import partial

import pytest
from support.stages import jobs, on_ranks, run, train_names

from premed.contracts import Case
from premed.data.phantoms.writers import write_chestxray14
from premed.distributed import raise_on_all_ranks, rank_and_world
from premed.errors import UserError
from premed.tasks.chestxray14 import ChestXray14
from premed.training.checkpoint import CheckpointManager
from premed.training.schedule import planned
from premed.training.stage import run_stage

FINE = 0
SCRATCH = {"pretext": {"name": "none"}}


@pytest.fixture(scope="session")
def chest(shared):
    write = partial(write_chestxray14, num_patients=16, seed=1, size=32, prevalence=0.6)
    return shared("x-rays to train on", lambda folder: write(folder / "chest")) / "chest"


@pytest.mark.parametrize("world", [1, 2])
def test_a_loss_that_is_no_number_stops_the_run_and_names_step_samples_and_checkpoint(world, chest, tmp_path):
    job = jobs(chest, tmp_path, finetune={"lr": 1e32, "warmup_epochs": 0.5}, **SCRATCH)["finetune"]
    assert run(job, world) == [FINE] * world
    failure = job.stage_storage.get_json("failure.json")
    plan, _ = planned(job.stage, [len(train_names(job))])
    assert failure["kind"] == "NotFinite"
    assert failure["samples"] == [train_names(job)[i] for i in plan.at(failure["step"] - 1).samples]
    assert f"at step {failure['step']} (samples {', '.join(failure['samples'])})" in failure["message"]
    assert "no checkpoint yet" in failure["message"]
    assert "\n" not in failure["message"]
    assert job.stage_storage.get("result.json") is None


def test_a_poisoned_image_stops_the_run_at_its_step_and_leaves_the_last_good_checkpoint(chest, tmp_path):
    job = jobs(chest, tmp_path)["pretrain"]
    plan, _ = planned(job.stage, [len(train_names(job))])
    victim = train_names(job)[plan.at(2).samples[0]]
    assert run(job, poison=victim) == [FINE]
    failure = job.stage_storage.get_json("failure.json")
    assert (failure["step"], victim in failure["samples"]) == (3, True)
    assert "the last good checkpoint is that of step 2" in failure["message"]
    assert CheckpointManager(job.stage_storage).newest()[0] == 2


def test_weights_that_are_no_numbers_never_become_a_checkpoint(chest, tmp_path):
    job = jobs(chest, tmp_path, finetune={"lr": 1e38, "warmup_epochs": 0}, **SCRATCH, train={"log_steps": 1})[
        "finetune"
    ]
    assert run(job) == [FINE]
    failure = job.stage_storage.get_json("failure.json")
    assert failure["message"].startswith("the weights are not finite at step 1 ")
    assert CheckpointManager(job.stage_storage).steps() == []


def give_up_on_one_rank():
    message = rf"^chest: is not here \(on node {socket.gethostname()}\)$"
    with pytest.raises(UserError, match=message), raise_on_all_ranks():
        if rank_and_world()[0] == 1:
            raise UserError("chest: is not here")
    with pytest.raises(UserError, match="^chest: is nowhere$"), raise_on_all_ranks():
        raise UserError("chest: is nowhere")


def test_a_rank_that_cannot_start_takes_the_others_along():
    assert on_ranks(3, give_up_on_one_rank) == [FINE] * 3


def lose_an_image_on_one_rank(job):
    from premed.data.loader import Views

    if rank_and_world()[0] == 1:

        def gone(self, indices):
            raise UserError("cache/ab: is gone")

        Views.__getitem__ = gone
    run_stage(job, lambda event: None, lambda numbers: None)


def test_an_error_on_one_rank_in_mid_training_is_reported_and_does_not_hang_the_others(chest, tmp_path):
    job = jobs(chest, tmp_path, **SCRATCH)["finetune"]
    assert on_ranks(2, lose_an_image_on_one_rank, job)[1] == 1  # this ends the others, which wait
    assert job.stage_storage.get_json("failure.json") == {"kind": "UserError", "message": "cache/ab: is gone"}
    assert run(job, 2) == [FINE] * 2  # restarted because of it: nothing is tried again
    assert job.stage_storage.get_json("result.json") is None


def test_a_part_without_images_is_refused_by_name(chest, tmp_path, monkeypatch):
    monkeypatch.setattr(ChestXray14, "split", lambda self, part: [])
    job = jobs(chest, tmp_path)["pretrain"]
    monkeypatch.setattr(ChestXray14, "images", lambda self: [Case("a", "p", (chest / "images" / "nothing.png",))][:0])
    run_stage(job, print, print)
    assert job.stage_storage.get_json("failure.json") == {
        "kind": "UserError",
        "message": "task: chestxray14 has no train images for this stage; fix its split",
    }
