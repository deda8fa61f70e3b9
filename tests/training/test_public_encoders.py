"""Experiments from public encoders' weights, in small: what their cards say, and that they go on where they stopped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.experiments import run
from support.public_checkpoints import NARROW, publish, random_network
from support.stages import jobs, outcome
from support.stages import run as run_stage

from premed.inference.export import export_card
from premed.inference.load import open_trained
from premed.inference.model_card import render

pytest_plugins = ["support.experiment_fixtures"]

NAME = "eva-x-ti"
ENCODER = {"name": "timm", "model": NAME, "args": {**NARROW, "patch_size": 8}}


@pytest.fixture(scope="module")
def file(shared):
    def work(folder):
        publish(NAME, random_network(NAME), folder)

    return shared("public", work) / f"{NAME}.pth"


def using(file, **more):
    pretext = {"name": "pretrained", "model": NAME, "weights": str(file)}
    return {"encoder": ENCODER, "pretext": pretext, "pretrain": None, **more}


@pytest.mark.slow
def test_fine_tuning_starts_from_the_weights_and_their_licence_stays_in_the_cards(home, chest, file):
    result = run(chest, using(file))
    imported, finetune, _ = result["stages"]
    assert [stage["kind"] for stage in result["stages"]] == ["import", "finetune", "test"]
    saved, theirs = load_file(f"{imported['where']}/parts/encoder.safetensors"), torch.load(file)["module"]
    assert torch.equal(saved["blocks.1.norm2.weight"], theirs["blocks.1.norm2.weight"])
    assert torch.equal(saved["fc_norm.bias"], theirs["norm.bias"])
    assert finetune["loaded"]["encoder"] == {"loaded": len(saved), "missing": [], "resized": [], "dropped": []}
    report = imported["loaded"]["encoder"]
    assert report["changed"]["pos_embed"] == "4x4 to 2x2" and "mask_token" in report["dropped"]
    cards = [json.loads(Path(stage["where"], "parts/card.json").read_text()) for stage in (imported, finetune)]
    (first,) = cards[0]["weights"]
    assert (first["model"], first["licence"], first["file"]) == (NAME, "MIT, by its README", f"{NAME}.pth")
    assert first["trained_on"] == {"mean": [0.49185243] * 3, "std": [0.28509309] * 3, "size": 224}
    own = {"kind": "finetune", "task": "chestxray14", "digest": finetune["digest"]}
    assert cards[1]["weights"] == [first, own]
    with open_trained(finetune["run_id"]) as trained:
        text = render(export_card(trained, "safetensors"))
    assert f"1. {NAME}: {NAME}.pth, SHA-256 {first['sha256']}" in text and "licence: MIT, by its README" in text
    assert f"2. finetune on chestxray14, stage {finetune['digest'][:16]}" in text
    again = run(chest, using(file))
    assert all(stage["reused"] for stage in again["stages"])


@pytest.mark.slow
def test_cards_of_random_weights_say_nothing_of_others(home, chest):
    result = run(chest, {"encoder": ENCODER, "pretext": {"name": "none"}, "pretrain": None}, {"test": False})
    assert "weights" not in json.loads(Path(result["stages"][0]["where"], "parts/card.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_killed_training_goes_on_as_if_nothing_had_been(kind, chest, tmp_path):
    changes = {"encoder": {"name": "timm", "model": "dinov3-s", "args": {**NARROW, "patch_size": 8}}}
    changes |= {"pretext": {"name": "none"}, "pretrain": None} if kind == "finetune" else {}
    killed, whole = (jobs(chest, tmp_path / each, **changes)[kind] for each in ("killed", "whole"))
    assert run_stage(killed, kill="saved 4") == [-9] and run_stage(killed) == [0]
    assert run_stage(whole) == [0]
    assert outcome(killed) == outcome(whole)
