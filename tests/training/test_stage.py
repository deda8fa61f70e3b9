"""Stages as users run them: killed and gone on with, on one rank and on several; what is loaded."""

import hashlib
import threading
from functools import partial

import numpy as np
import pytest
from safetensors.torch import load
from support.stages import jobs, outcome, run, train_names

from premed.data import datamodule
from premed.data.phantoms.writers import write_chestxray14
from premed.errors import UserError
from premed.events import CheckpointSaved, MetricsLogged, TrainingStarted, WarningIssued
from premed.pretext.mae import MAE
from premed.tasks.chestxray14 import ChestXray14
from premed.training import artifacts, stage
from premed.training.checkpoint import CheckpointManager, best_file
from premed.training.schedule import planned
from premed.training.setup import StageJob, make_objective
from premed.training.stage import run_stage
from premed.training.storage import StageStorage

KILLED, FINE = -9, 0


@pytest.fixture(scope="session")
def chest(shared):
    write = partial(write_chestxray14, num_patients=16, seed=1, size=32, prevalence=0.6)
    return shared("x-rays to train on", lambda folder: write(folder / "chest")) / "chest"


@pytest.fixture(scope="session")
def undisturbed(chest, shared):
    """What a stage leaves that nobody killed, by kind and number of ranks; each is run once."""

    def find(kind, world=1, **changes):
        def fill(folder):
            assert run(jobs(chest, folder, **changes)[kind], world) == [FINE] * world

        name = hashlib.sha256(f"{kind} {world} {changes}".encode()).hexdigest()[:8]
        return outcome(jobs(chest, shared(f"undisturbed {kind} {name}", fill), **changes)[kind])

    return find


SCRATCH = {"pretext": {"name": "none"}}


def test_what_goes_before_the_first_step_is_not_watched(chest, tmp_path, monkeypatch):
    """DDP's constructor imports for seconds; `train.hang_timeout` may be shorter."""
    alive = []

    def distributed(objective):
        alive.append([thread.name for thread in threading.enumerate()])
        return objective

    monkeypatch.setattr(stage, "distributed", distributed)
    job = jobs(chest, tmp_path, train={"workers": 1, "hang_timeout": 60})["pretrain"]
    run_stage(job, lambda event: None, lambda numbers: alive.append([thread.name for thread in threading.enumerate()]))
    assert "premed watchdog" not in alive[0] and "premed watchdog" in alive[1]


# ---- exact resume


@pytest.mark.parametrize(
    "kills",
    [
        # before the first checkpoint, between two, right after one
        pytest.param(["row 2", "row 3", "saved 6"], marks=pytest.mark.slow),
        ["during checkpoints/000000004.pt", "before checkpoints/000000006.json", "during checkpoints/000000008.json"],
        # all steps are done, the result is not
        pytest.param(["row 10", "before parts/card.json", "before result.json"], marks=pytest.mark.slow),
    ],
)
def test_a_killed_pretraining_goes_on_as_if_nothing_had_been(kills, chest, tmp_path, undisturbed):
    job = jobs(chest, tmp_path)["pretrain"]
    assert [run(job, kill=kill) for kill in kills] == [[KILLED]] * 3
    assert run(job) == [FINE]
    assert outcome(job) == undisturbed("pretrain")
    assert not [name for name in job.stage_storage.names() if name.startswith(("checkpoints/", "best/"))]


def tamper(name, flip=None, cut=None, remove=False):
    """Damages a file of a stage: one byte changed, the end gone, or all of it."""

    def damage(storage):
        content = bytearray(storage.get(name))
        if flip is not None:
            content[flip] ^= 1
        storage.remove(name)
        if not remove:
            storage.put(name, bytes(content[:cut]))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        tamper("checkpoints/000000006.pt", cut=-100),
        pytest.param(tamper("checkpoints/000000006.pt", flip=5000), marks=pytest.mark.slow),
        pytest.param(tamper("checkpoints/000000006.pt", remove=True), marks=pytest.mark.slow),
        tamper("checkpoints/000000006.json", flip=0),
        pytest.param(tamper("checkpoints/000000006.json", cut=40), marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(damage, stopped_at_6, tmp_path, undisturbed):
    job = stopped_at_6(tmp_path)
    damage(job.stage_storage)
    assert CheckpointManager(job.stage_storage).newest()[0] == 4
    assert run(job) == [FINE]
    assert outcome(job) == undisturbed("finetune", **SCRATCH)


@pytest.mark.parametrize("how", [{"flip": -1}, {"cut": 40}, {"remove": True}])
def test_the_best_weights_until_a_checkpoint_are_those_that_were_saved_or_the_checkpoint_is_of_no_use(
    how, stopped_at_6, tmp_path, undisturbed
):
    """Else a network that nobody trained would be tested, under the score of another."""
    job = stopped_at_6(tmp_path)
    checkpoints = CheckpointManager(job.stage_storage)
    tamper(best_file(checkpoints.newest().notes["best"]["step"], "head"), **how)(job.stage_storage)
    found = checkpoints.newest()
    assert found is None or found.step < 6
    assert "the best weights until then, best/" in checkpoints.unusable[6]
    assert run(job) == [FINE]
    assert outcome(job) == undisturbed("finetune", **SCRATCH)


def test_best_weights_that_are_damaged_while_it_trains_end_it_with_a_word(stopped_at_6, tmp_path):
    job = stopped_at_6(tmp_path)
    checkpoints = CheckpointManager(job.stage_storage)
    best = checkpoints.newest().notes["best"]
    assert {*checkpoints.best_weights(best, "head")} == {*load(job.stage_storage.get(best_file(best["step"], "head")))}
    tamper(best_file(best["step"], "head"), flip=-1)(job.stage_storage)
    with pytest.raises(UserError, match="head.safetensors is damaged or missing: run the same command again"):
        checkpoints.best_weights(best, "head")


@pytest.fixture(scope="session")
def stopped_at_6(chest, shared):
    """Copies of a fine-tuning that was killed right after its checkpoint of step 6."""

    def fill(folder):
        assert run(jobs(chest, folder, **SCRATCH)["finetune"], kill="saved 6") == [KILLED]

    job = jobs(chest, shared("stopped at 6", fill), **SCRATCH)["finetune"]

    def copy(to):
        copied = jobs(chest, to, **SCRATCH)["finetune"]
        for name in job.stage_storage.names():
            copied.stage_storage.put(name, job.stage_storage.get(name))
        return copied

    return copy


def test_a_killed_finetuning_keeps_the_best_weights_of_its_own_past(stopped_at_6, tmp_path, undisturbed):
    job = stopped_at_6(tmp_path)
    job.stage_storage.put("best/000000008/encoder.safetensors", b"of a future that another machine saw")
    assert run(job) == [FINE]
    assert outcome(job) == undisturbed("finetune", **SCRATCH)


@pytest.mark.slow
@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_stopped_after_any_step_it_goes_on_exactly_though_checkpoints_are_saved_every_few_minutes(
    world, chest, tmp_path, undisturbed
):
    job = jobs(chest, tmp_path, train={"save_minutes": 5})["pretrain"]  # points are logged every 2 steps
    for stop, step in ((1, 1), (2, 3), (1, 4), (2, 5)):  # the validation of step 3 is left to the next start
        assert run(job, world, stop=stop) == [FINE] * world
        assert CheckpointManager(job.stage_storage).steps()[-1] == step and not job.stage_storage.get("result.json")
    assert run(job, world) == [FINE] * world
    assert outcome(job) == undisturbed("pretrain", world)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_ranks_go_on_exactly_too(world, chest, tmp_path, undisturbed):
    job = jobs(chest, tmp_path)["pretrain"]
    assert run(job, world, kill="row 5")[0] == KILLED
    assert run(job, world, kill="during checkpoints/000000008.pt")[0] == KILLED
    assert run(job, world) == [FINE] * world
    assert outcome(job) == undisturbed("pretrain", world)


# ---- any number of ranks


@pytest.mark.parametrize(
    ("kind", "batch", "accumulate"),
    [
        pytest.param("pretrain", 5, 1, marks=pytest.mark.slow),
        ("pretrain", 8, 3),
        pytest.param("finetune", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_the_number_of_workers_changes_rounding_only(kind, batch, accumulate, undisturbed):
    few = {"batch": batch, "steps": 4, "validations": 1, "lr": 0.01}
    base = {"pretrain": few, "finetune": few} | ({} if kind == "pretrain" else SCRATCH)
    alone = undisturbed(kind, **base)
    for world in (2, 3):
        other = undisturbed(kind, world, **base, train={"accumulate": accumulate})
        for (step, ours), (step_there, theirs) in zip(alone["curve"], other["curve"], strict=True):
            assert (step, ours) == (step_there, pytest.approx(theirs, rel=1e-4))
        for name in [name for name in alone if name.startswith("parts/")]:
            assert difference(alone[name], other[name]) < 1e-4


def difference(ours, theirs):
    ours, theirs = load(ours), load(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


# ---- what a stage does


def test_a_training_never_asks_for_the_test_part(chest, tmp_path, monkeypatch):
    parts, split = [], ChestXray14.split
    monkeypatch.setattr(ChestXray14, "split", lambda self, part: parts.append(part) or split(self, part))
    for kind in ("pretrain", "finetune"):
        run_stage(jobs(chest, tmp_path, **short())[kind], lambda event: None, lambda numbers: None)
    assert set(parts) == {"train", "val"}


def short():
    return {"pretrain": {"steps": 1}, "finetune": {"steps": 1}}


def test_more_validations_than_steps_validate_after_each(chest, tmp_path):
    many = {"steps": 2, "validations": 50}
    job, events = jobs(chest, tmp_path, pretrain=many)["pretrain"], []
    run_stage(job, events.append, lambda numbers: None)
    rows = [event for event in events if isinstance(event, MetricsLogged) and "val/loss" in event.metrics]
    assert [row.step for row in rows] == [1, 2]
    assert job.stage_storage.get_json("result.json")["num_steps"] == 2


def test_a_resumed_pretraining_does_not_look_at_all_images_again(chest, tmp_path, monkeypatch):
    job, begun, begin = jobs(chest, tmp_path, pretrain={"steps": 3})["pretrain"], [], MAE.on_start
    monkeypatch.setattr(MAE, "on_start", lambda self, train: begun.append(len(train)) or begin(self, train))

    def interrupt(event):
        if isinstance(event, CheckpointSaved):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(job, interrupt, print)
    run_stage(job, lambda event: None, lambda numbers: None)
    assert begun == [len(train_names(job))]
    assert 0.3 < job.stage_storage.get_json("result.json")["gate"]["gate"] < 1


@pytest.mark.whole
def test_an_interrupted_pretraining_has_the_same_progress_pictures_and_keeps_no_snapshot(chest, tmp_path):
    def progress_picture(home, interruptions):
        job, left = jobs(chest, home)["pretrain"], list(interruptions)

        def interrupt(event):
            if left and event == CheckpointSaved(left[0]):
                raise KeyboardInterrupt(left.pop(0))

        while left:
            with pytest.raises(KeyboardInterrupt):
                run_stage(job, interrupt, print)
        run_stage(job, interrupt, print)
        assert not [name for name in job.stage_storage.names() if name.startswith("snapshots/")]
        return job.stage_storage.get("pictures/progress.png")

    uninterrupted = progress_picture(tmp_path / "whole", [])
    assert uninterrupted.startswith(b"\x89PNG")
    assert progress_picture(tmp_path / "cut", [4, 6]) == uninterrupted


def test_a_gradient_beyond_clip_is_scaled_down(chest, tmp_path):
    job, events = jobs(chest, tmp_path, pretrain={"steps": 2, "clip": 1e-3})["pretrain"], []
    run_stage(job, events.append, lambda numbers: None)
    norms = [event.metrics.get("train/gradient_norm") for event in events if isinstance(event, MetricsLogged)]
    assert norms[0] > 1e-3  # as it was before


# ---- what is loaded


def test_each_stage_starts_from_the_parts_of_the_one_before(chest, tmp_path):
    chain = jobs(chest, tmp_path, **short())
    for job in chain.values():
        run_stage(job, lambda event: None, lambda numbers: None)
    results = {kind: job.stage_storage.get_json("result.json") for kind, job in chain.items()}
    encoder = load(chain["pretrain"].stage_storage.get("parts/encoder.safetensors"))
    assert results["finetune"]["loaded"] == {
        "encoder": {"loaded": len(encoder), "missing": [], "resized": [], "dropped": []}
    }
    assert set(results["test"]["loaded"]) == {"encoder", "head"}
    assert results["test"]["constant"] == 0.5
    rows = chain["test"].stage_storage.get_json("scores.json")
    assert len(rows) == results["test"]["num_cases"]
    labels = {name[2:]: {row[name] for row in rows} for name in rows[0] if name.startswith("y/")}
    assert results["test"]["undefined"] == [name for name, known in labels.items() if len(known) == 1]  # have no AUC


def test_an_encoder_of_another_grid_is_resized_and_that_is_reported(chest, tmp_path):
    before = jobs(chest, tmp_path, **short())["pretrain"]
    run_stage(before, lambda event: None, lambda numbers: None)
    after = jobs(chest, tmp_path, **short(), task={"size": 16})["finetune"]
    job = StageJob(after.stage, before.stage, after.train, after.storage, after.cache)
    _, loaded = make_objective(job, datamodule.stage_data_sets(after.stage))
    assert loaded["encoder"]["resized"] == ["pos_embed"]


def test_weights_that_were_removed_are_asked_for(tmp_path):
    with pytest.raises(UserError, match="parts/encoder.safetensors is missing"):
        artifacts.part_weights(StageStorage(str(tmp_path), "pretrain-0"), "encoder")


# ---- its schedule


def test_the_learning_rate_grows_with_the_batch_and_steps_replace_the_epochs(chest, tmp_path):
    stage = jobs(chest, tmp_path, pretrain={"lr": 1.0, "batch": 64, "epochs": 10, "steps": 50})["pretrain"].stage
    plan, schedule = planned(stage, [640])
    assert (plan.num_steps, schedule.num_steps, schedule.warmup_steps) == (50, 50, 5)
    assert schedule.lr == 0.25
    assert sorted(np.concatenate([plan.at(step).samples for step in range(10)])) == list(range(640))


@pytest.mark.parametrize(
    ("epochs", "warmup", "wrong"),
    [
        (400, 0.05, "0.05 of 400 epochs is less than one of these 4 steps, so that there is no warm-up"),
        (1, 10, "10 of 1 epochs is all of these 4 steps, so that the learning rate is at its highest in none"),
        (1, 0.25, None),
        (1, 0, None),
    ],
)
def test_a_warm_up_of_no_step_or_of_all_is_a_warning(epochs, warmup, wrong, chest, tmp_path):
    """As where one file states the epochs, and the next one `steps` with a warm-up that was meant as a share."""
    steps = {"epochs": epochs, "warmup_epochs": warmup, "steps": 4, "validations": 1}
    events = []
    run_stage(jobs(chest, tmp_path, pretrain=steps)["pretrain"], events.append, lambda numbers: None)
    warnings = [event.text for event in events if isinstance(event, WarningIssued) and "warmup" in event.text]
    share = "; with pretrain.steps it is a share: set pretrain.epochs=1 and a share"
    assert warnings == ([] if wrong is None else [f"pretrain.warmup_epochs: {wrong}{share}"])
    (begun,) = [event for event in events if isinstance(event, TrainingStarted)]
    assert begun.warmup == 4 * min(warmup / epochs, 1)
