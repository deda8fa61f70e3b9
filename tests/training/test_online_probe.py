"""The online probe: what it measures, that it changes nothing, and how it ends a pre-training."""

import math
import shutil
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from support.hssl import SMALL as HSSL
from support.mit import NUMBERS
from support.stages import jobs, outcome, run
from support.unimiss import SMALL as UNIMISS

from premed.config.settings import OnlineProbe
from premed.contracts import Case
from premed.data import views
from premed.data.cache import Cache
from premed.data.datamodule import Tasks, stage_content, stage_data_sets
from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.errors import UserError
from premed.events import TrainingEndedEarly, TrainingStarted, WarningIssued
from premed.models.embeddings import rank_me, spread
from premed.models.heads import probe
from premed.tasks.common import metrics
from premed.training import online_probe
from premed.training.artifacts import load_encoder
from premed.training.checkpoint import CheckpointManager
from premed.training.online_probe import make_probe, spread_over_classes
from premed.training.setup import set_up
from premed.training.stage import run_stage

FINE = 0
IMAGES = 24  # of 30 or so: a choice


@pytest.fixture(scope="session")
def chest(shared):
    write = partial(write_chestxray14, num_patients=16, seed=1, size=32, prevalence=0.6)
    return shared("x-rays to train on", lambda folder: write(folder / "chest")) / "chest"


def probed(**more):
    return {"pretrain": {"probe": {"images": IMAGES}, **more}, "train": {"log_steps": 1}}


def staged(job):
    """Runs a stage in this process; returns its events."""
    events = []
    run_stage(job, events.append, lambda numbers: None)
    return events


def without_measures(curve):
    return [(step, {name: v for name, v in metrics.items() if "probe" not in name}) for step, metrics in curve]


def scores(job, name="mauc"):
    name = f"val/probe_{name}"
    return {step: metrics[name] for step, metrics in outcome(job)["curve"] if name in metrics}


# ---- it changes nothing


def test_a_training_is_the_same_with_and_without_it(chest, tmp_path):
    with_it = jobs(chest, tmp_path / "with", **probed())["pretrain"]
    without = jobs(chest, tmp_path / "without", **probed() | {"pretrain": {"probe": None}})["pretrain"]
    assert with_it.stage.digest() == without.stage.digest()
    generators = []
    for job in (with_it, without):
        torch.manual_seed(0)
        staged(job)
        generators.append(torch.get_rng_state())
    assert torch.equal(*generators)
    one, other = outcome(with_it), outcome(without)
    assert len(scores(with_it)) == 4 and not scores(without)
    assert without_measures(one["curve"]) == other["curve"]
    one["summary"].pop("val/probe_mauc")
    assert {**one, "curve": ()} == {**other, "curve": ()}  # the weights, to the last bit


def test_a_killed_training_has_the_same_probe(chest, tmp_path):
    job, other = (jobs(chest, tmp_path / name, **probed())["pretrain"] for name in ("killed", "undisturbed"))
    assert run(job, kill="saved 6") == [-9]
    assert run(job) == run(other) == [FINE]
    assert outcome(job) == outcome(other)


def test_two_ranks_measure_what_one_does(chest, tmp_path):
    one, two = (jobs(chest, tmp_path / name, **probed())["pretrain"] for name in ("one", "two"))
    assert run(one) == [FINE] and run(two, world=2) == [FINE, FINE]
    assert scores(two) == pytest.approx(scores(one), abs=0.02)  # the weights differ in the last bits
    assert len(scores(two)) == 4


# ---- what it measures


def test_it_is_logistic_regression_on_the_frozen_encoder_s_features(chest, tmp_path):
    job, tasks = jobs(chest, tmp_path, **probed())["pretrain"], Tasks()
    staged(job)
    setup = set_up(job, tasks)
    encoder = setup.objective.parts["encoder"]
    load_encoder(encoder, job.stage_storage)  # type: ignore[arg-type]
    made = make_probe(job, setup, tasks, job.stage.training.probe)
    task = setup.task
    assert len(made.train) == IMAGES and {s.case.name for s in made.train} <= {c.name for c in task.split("train")}
    assert {s.case.name for s in made.val} <= {c.name for c in task.split("val")} and 0 < len(made.val) <= IMAGES

    def features(samples):
        with torch.no_grad():
            image = torch.from_numpy(np.stack([task.tiles(sample)[0] for sample in samples]))
            return encoder.eval()(image).tokens.mean(dim=1).double().numpy()

    scaler = StandardScaler().fit(features(made.train))
    x, seen = scaler.transform(features(made.train)), scaler.transform(features(made.val))
    y, truth = (np.array([s.case.label for s in some]) for some in (made.train, made.val))
    aucs = [
        roc_auc_score(truth[:, k], LogisticRegression(C=0.1, max_iter=1000).fit(x, y[:, k]).decision_function(seen))
        for k in range(len(task.classes))
        if 0 < y[:, k].sum() < len(y) and 0 < truth[:, k].sum() < len(truth)
    ]
    constant = [0.5 for k in range(len(task.classes)) if 0 < truth[:, k].sum() < len(truth)]
    assert len(aucs) > 3
    expected = np.mean(aucs + [0.5] * (len(constant) - len(aucs)))
    assert made.measure()["probe_mauc"] == pytest.approx(expected, abs=1e-6)
    assert scores(job)[10] == pytest.approx(expected, abs=1e-6)


def test_few_images_show_the_classes_as_evenly_as_they_can():
    rare = {f"{i:02}": (float(i % 30 == 0), float(i % 2 == 1), math.nan) for i in range(60)}
    cases = [Case(name, name, (), label) for name, label in rare.items()]
    first = [rare[case.name] for case in spread_over_classes(cases, "train")[:6]]
    assert sum(label[0] for label in first) == 2  # both that there are
    assert sum(not any(value > 0 for value in label) for label in first) == 2
    assert spread_over_classes(reversed(cases), "train") == spread_over_classes(cases, "train")
    unknown = [Case("none", "none", (), (math.nan,) * 3), Case("image", "image", ())]
    assert spread_over_classes(unknown, "train") == []


# ---- label maps


@pytest.fixture(scope="module")
def brains(shared):
    write = partial(write_msd, num_cases=8, seed=0, shape=(24, 30, 16))
    return shared("few volumes", lambda folder: write(folder / "hippocampus")) / "hippocampus"


def volumes(brains, roi=(24, 24, 16)):
    task = {"name": "msd", "root": str(brains), "roi": list(roi)}
    augment = {"flip": 0.0, "scale": None, "crops": 1}
    changes = {"task": task, "pretrain": {"probe": {"images": 2, "strength": 10}, "augment": augment}, "finetune": None}
    return changes | {"pretext": {"decoder_width": 24}}


def test_of_label_maps_it_is_the_dice_of_the_fixed_views(brains, tmp_path):
    job, tasks = jobs(brains, tmp_path, **volumes(brains))["pretrain"], Tasks()
    staged(job)
    setup = set_up(job, tasks)
    load_encoder(setup.objective.parts["encoder"], job.stage_storage)  # type: ignore[arg-type]
    made, task = make_probe(job, setup, tasks, OnlineProbe(images=4, strength=10)), setup.task
    score, network = made.measure()["probe_dice"], made.objective.network
    dice = []
    for sample in made.val:
        starts = views.tile_starts(sample.prepared.shape, task.roi)
        with torch.no_grad():
            answers = [network(torch.from_numpy(tile)[None])[0].argmax(dim=0) for tile in task.tiles(sample)]
        found = np.stack([answer.numpy() for answer in answers])
        truth = np.stack([sample.prepared.label(start, task.roi) for start in starts])
        dice.append([metrics.dice(found == label, truth == label) for label in (1, 2)])
    assert score == pytest.approx(np.nanmean(np.nanmean(dice, axis=0)), abs=1e-9) and score > 0
    assert sum(len(task.tiles(sample)) for sample in made.train) <= 4
    assert 0 < scores(job, "dice")[10] < 1


def test_most_patches_are_left_out_and_the_rest_are_a_fixed_choice(brains, tmp_path, monkeypatch):
    job, tasks = jobs(brains, tmp_path, **volumes(brains))["pretrain"], Tasks()
    made = make_probe(job, set_up(job, tasks), tasks, OnlineProbe(images=4))
    seen = []
    monkeypatch.setattr(made.objective.network.head, "solve", lambda rows, shares: seen.append(rows) or iter([0]))
    monkeypatch.setattr(online_probe, "MOST_ROWS", 12)
    made.measure()
    made.measure()
    views_of_train = sum(len(made.objective.task.tiles(sample)) for sample in made.train)
    assert len(seen[0]) == views_of_train * (12 // views_of_train) and torch.equal(*seen)


# ---- where there is none, and collapse


BRIEF = {"steps": 2, "validations": 1}


def words(job) -> Any:
    return next(event.probe for event in staged(job) if isinstance(event, TrainingStarted))


def test_what_the_probe_is_or_why_there_is_none_is_said_at_the_start(chest, tmp_path):
    job = jobs(chest, tmp_path / "with", **probed(**BRIEF))["pretrain"]
    line = f"a linear model on the frozen features of {IMAGES} labelled images of chestxray14, on "
    assert words(job).startswith(line)
    assert words(jobs(chest, tmp_path / "without", pretrain={"probe": None, **BRIEF})["pretrain"]) is None
    task = {"name": "unlabelled", "root": str(chest / "images"), "roi": [32, 32]}
    job = jobs(chest, tmp_path / "unlabelled", task=task, finetune=None, **probed(**BRIEF))["pretrain"]
    assert words(job) == "none: no image of images has a label" and not scores(job)


def test_labels_that_cannot_be_read_cost_the_probe_and_not_the_training(brains, tmp_path):
    folder = tmp_path / "brains"
    shutil.copytree(brains, folder)
    for file in (folder / "labelsTr").iterdir():
        file.write_bytes(b"no image")
    job = jobs(folder, tmp_path, **volumes(folder))["pretrain"]
    assert words(job).startswith("none: ") and job.stage_storage.get("result.json")


def test_features_that_are_not_finite_cost_its_score_and_not_the_training(chest, tmp_path, monkeypatch):
    without = jobs(chest, tmp_path / "without", **probed() | {"pretrain": {"probe": None}})["pretrain"]
    staged(without)
    job, rows = jobs(chest, tmp_path / "with", **probed())["pretrain"], probe.Probe.rows
    monkeypatch.setattr(probe.Probe, "rows", lambda self, features: rows(self, features) * math.inf)
    warnings = [event.text for event in staged(job) if isinstance(event, WarningIssued)]
    (line,) = [text for text in warnings if "probe" in text]
    assert "its features are not finite" in line and line.endswith("pretrain.probe=null leaves it out")
    assert without_measures(outcome(job)["curve"]) == outcome(without)["curve"] and not scores(job)


PICTURES = {"name": "chestxray14", "size": 32, "stored": 32}
SEVERAL = {"finetune": None, "train": {"log_steps": 1}}


def test_a_strategy_that_sees_slices_has_none_of_volumes(chest, brains, tmp_path):
    task = volumes(brains, (32, 32, 1))["task"]
    hssl = {"encoder": {"name": "unet", "widths": [8, 16, 24], "dims": 2}, "pretext": {"name": "hssl", **HSSL}}
    pretrain = {**BRIEF, "probe": {}, "sources": [{"task": task}, {"task": {**PICTURES, "root": str(chest)}}]}
    pretrain["augment"] = {"flip": 0.0, "scale": None}
    job = jobs(chest, tmp_path / "both", pretrain=pretrain, **hssl, **SEVERAL)["pretrain"]
    assert "labelled images of chestxray14, on" in words(job)  # the first that can
    (last,) = [metrics for _, metrics in outcome(job)["curve"] if "val/rankme" in metrics]
    assert 1 <= last["val/rankme"] <= 24 and 0 < last["val/spread"] < 1
    pretrain["sources"] = pretrain["sources"][:1]
    job = jobs(chest, tmp_path / "one", pretrain=pretrain, task=task, **hssl, **SEVERAL)["pretrain"]
    assert words(job).startswith("none: the strategy sees other images than hippocampus")


def test_rank_me_and_spread_are_those_of_the_encoder_s_features_of_val(chest, brains, tmp_path):
    sources = [{"task": {**PICTURES, "root": str(chest)}}, {"task": volumes(brains)["task"] | {"roi": [32, 32, 16]}}]
    pretrain = {**BRIEF, "probe": None, "sources": sources, "augment": {"crops": 2, "flip": 0.0, "scale": None}}
    unimiss = {"encoder": {"name": "mit", "size": "tiny", **NUMBERS}, "pretext": {"name": "unimiss", **UNIMISS}}
    job, tasks = jobs(chest, tmp_path, pretrain=pretrain, **unimiss, **SEVERAL)["pretrain"], Tasks()
    staged(job)
    setup = set_up(job, tasks)
    encoder = setup.objective.parts["encoder"]
    load_encoder(encoder, job.stage_storage)  # type: ignore[arg-type]
    found = []
    for number, data_set in enumerate(setup.data_sets):
        images = [data_set.task.tiles(sample)[0] for sample in setup.val if sample.data_set == number]
        with torch.no_grad():
            features = encoder.eval()(torch.from_numpy(np.stack(images))).summary
        if len(images) > 1:  # one has no rank
            found.append((float(rank_me(features)), float(spread(features))))
    last = outcome(job)["curve"][-1][1]
    assert last["val/rankme"] == pytest.approx(min(rank for rank, _ in found), rel=1e-4)
    assert last["val/spread"] == pytest.approx(min(each for _, each in found), rel=1e-4)


# ---- a stop


def test_labels_that_change_meanwhile_are_noticed_where_they_decide(brains, tmp_path):
    folder = tmp_path / "brains"
    shutil.copytree(brains, folder)

    def content(**more):
        changes = volumes(folder)
        changes["pretrain"] |= more
        job = jobs(folder, tmp_path / "job", **changes)["pretrain"]
        return stage_content(job.stage, stage_data_sets(job.stage, Tasks()), Cache(job.cache), {})

    stop = {"stop": {"probe_patience": 2}}
    before = content(), content(**stop)
    label = sorted((folder / "labelsTr").iterdir())[0]
    label.write_bytes(sorted((folder / "labelsTr").iterdir())[1].read_bytes())
    assert content() == before[0] and content(**stop) != before[1]


def without_stop(chest, folder, **more):
    return jobs(chest, folder, **probed(**LONG, **more))["pretrain"]


def with_stop(chest, folder, patience=2, **more):
    return jobs(chest, folder, **probed(**LONG, stop={"probe_patience": patience}, **more))["pretrain"]


LONG = {"steps": 20, "validations": 20}


def by_hand(found, patience):
    """The step at which a person would stop who looks at the scores, and that of the best so far."""
    best, worse = 0, 0
    for step, score in found.items():
        best, worse = (step, 0) if score > found.get(best, -1) else (best, worse + 1)
        if worse == patience:
            break
    return step, best


def test_it_ends_where_a_person_would_and_keeps_the_best_weights(chest, tmp_path):
    whole, job = without_stop(chest, tmp_path / "whole"), with_stop(chest, tmp_path / "stopped")
    staged(whole)
    events = staged(job)
    at, best = by_hand(scores(whole), 2)
    assert best < at < 20
    curve = outcome(job)["curve"]
    assert curve == [(step, metrics) for step, metrics in outcome(whole)["curve"] if step <= at]
    result = job.stage_storage.get_json("result.json")
    assert (result["num_steps"], result["best_step"]) == (at, best)
    assert result["stopped"] == {"step": at, "of": 20, "by": "probe_mauc"}
    (event,) = [event for event in events if isinstance(event, TrainingEndedEarly)]
    assert (event.step, event.num_steps, event.best_step, event.best) == (at, 20, best, scores(whole)[best])
    assert job.stage.digest() != whole.stage.digest()  # it is another training
    short = without_stop(chest, tmp_path / "short")
    assert run(short, kill=f"row {best + 1}") == [-9]
    checkpoint = CheckpointManager(short.stage_storage).read(best).state["objective"]
    kept = load(job.stage_storage.get("parts/encoder.safetensors"))
    assert all(torch.equal(checkpoint[f"encoder.{name}"], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("kill", ["before result.json", "saved {at}", "row {at}"])
def test_a_training_that_was_ended_and_killed_ends_at_the_same_step(chest, tmp_path, kill):
    job, other = (with_stop(chest, tmp_path / name) for name in ("killed", "undisturbed"))
    assert run(other) == [FINE]
    at = other.stage_storage.get_json("result.json")["num_steps"]
    assert run(job, kill=kill.format(at=at)) == [-9]
    assert run(job) == [FINE]
    assert outcome(job) == outcome(other)
    assert job.stage_storage.get_json("result.json")["stopped"]["step"] == at


def test_two_ranks_end_together(chest, tmp_path):
    job = with_stop(chest, tmp_path, patience=1)
    assert run(job, world=2) == [FINE, FINE]
    result = job.stage_storage.get_json("result.json")
    assert result["stopped"]["step"] == result["num_steps"] < 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"probe": None}, "stop.probe_patience: there is no probe"),
        ({"trunk": [1, 3], "epochs": 3, "steps": None, "warmup_epochs": 0}, "stop: a trunk's lengths"),
        ({"stop": {"probe_patience": 0}}, "probe_patience"),
    ],
)
def test_a_stop_that_makes_no_sense_is_refused(chest, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        jobs(chest, tmp_path, **probed(**{"stop": {"probe_patience": 2}, **changes}))


def test_a_stop_without_labels_is_refused_before_the_first_step(chest, tmp_path, monkeypatch):
    job = with_stop(chest, tmp_path)
    monkeypatch.setattr(online_probe, "is_unlabelled", lambda task: True)
    assert not [event for event in staged(job) if isinstance(event, TrainingStarted)]
    message = job.stage_storage.get_json("failure.json")["message"]
    assert message == "pretrain.stop: there is no probe to stop by: no image of chestxray14 has a label"
