"""Experiments from public encoders of volumes, in small: cards, notes of the check, and going on where they stopped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.stages import jobs, outcome
from support.stages import run as run_stage
from support.volume_checkpoints import WIDTH, nnssl, residual_encoder, swin_unetr, swinvit, write

from premed.cli.messages import import_words
from premed.config.compose import merge, validate_experiment
from premed.data.phantoms.writers import write_msd
from premed.errors import UserError
from premed.events import WarningIssued, WeightsImported
from premed.execution import runner
from premed.inference.export import export_card
from premed.inference.load import open_trained
from premed.inference.model_card import render

pytest_plugins = ["support.experiment_fixtures"]

SWIN = {"name": "swin", "width": WIDTH}
RESENC = {"name": "resenc", "widths": [8, 16, 24], "blocks": [1, 2, 1]}


@pytest.fixture(scope="module")
def volumes(shared):
    """Ten made-up volumes, and a file of each project."""

    def work(folder):
        write_msd(folder / "Task04_Hippocampus", 10, 0, shape=(30, 36, 30))
        write(swinvit(swin_unetr()), folder, "model_swinvit.pt")
        write(nnssl(residual_encoder()), folder, "checkpoint_final.pth")

    return shared("volumes", work)


def tree(volumes: Path, encoder: dict, model: str, file: str, *changes: dict) -> dict:
    steps = {"steps": 2, "epochs": 2, "batch": 2, "lr": 1e-3, "validations": 1}
    whole = {
        "task": {"name": "msd", "root": str(volumes / "Task04_Hippocampus"), "roi": [64, 32, 32]},
        "encoder": encoder,
        "pretext": {"name": "pretrained", "model": model, "weights": str(volumes / file)},
        "finetune": steps | {"head": {"name": "conv"}},
        "train": {"workers": 0, "log_steps": 2, "precision": "fp32"},
    }
    for change in changes:
        whole = merge(whole, change)
    return whole


@pytest.mark.slow
def test_fine_tuning_starts_from_the_weights_and_their_preparation_is_in_the_cards(home, volumes):
    events = []
    whole = tree(volumes, SWIN, "swinunetr-ssl", "model_swinvit.pt")
    result = runner.run(validate_experiment(whole), events.append)
    imported, finetune, _ = result["stages"]
    assert [stage["kind"] for stage in result["stages"]] == ["import", "finetune", "test"]
    saved = load_file(f"{imported['where']}/parts/encoder.safetensors")
    theirs = torch.load(volumes / "model_swinvit.pt")["state_dict"]
    name = "layers3.0.blocks.1.mlp"
    assert torch.equal(saved[f"swinViT.{name}.linear2.weight"], theirs[f"module.{name}.fc2.weight"])
    assert finetune["loaded"]["encoder"] == {"loaded": len(saved), "missing": [], "resized": [], "dropped": []}
    (event,) = [event for event in events if isinstance(event, WeightsImported)]
    assert event.missing == sorted(each for each in saved if each.startswith("encoder"))
    assert import_words(event).startswith("model_swinvit.pt: 126 tensors unchanged; left out: contrastive_head.bias, ")
    assert "; not in the file, and at initial values: encoder1.layer.conv1.conv.weight, " in import_words(event)
    told = [event.text for event in events if isinstance(event, WarningIssued)]
    assert "task.window is null, and the weights of swinunetr-ssl were" in str(told)
    card = json.loads(Path(imported["where"], "parts/card.json").read_text())
    assert card["weights"][0]["trained_on"]["window"] == "[-1000,1000]"
    with open_trained(finetune["run_id"]) as trained:
        text = render(export_card(trained, "safetensors"))
    assert "Trained on 5,050 CT volumes of " in text
    assert "prepared with normalise window, window [-1000,1000], roi [96,96,96]." in text
    again = runner.run(validate_experiment(whole), events.append)
    assert all(stage["reused"] for stage in again["stages"])


@pytest.mark.slow
def test_mae_goes_on_from_openminds_weights(home, volumes):
    init = {"model": "openmind-resenc-l", "weights": str(volumes / "checkpoint_final.pth")}
    changes = {
        "task": {"roi": [32, 32, 32]},
        "pretext": {"name": "mae", "init": init, "mask_ratio": 0.6, "decoder_width": 16},
        "pretrain": {"steps": 2, "epochs": 2, "batch": 2, "lr": 1e-12, "validations": 1, "probe": None},
    }
    whole = tree(volumes, RESENC, "", "", changes)
    whole["pretext"] = changes["pretext"]
    events = []
    result = runner.run(validate_experiment(whole), events.append)
    assert [stage["kind"] for stage in result["stages"]] == ["import", "pretrain", "finetune", "test"]
    first, second = (load_file(f"{stage['where']}/parts/encoder.safetensors") for stage in result["stages"][:2])
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)
    (event,) = [event for event in events if isinstance(event, WeightsImported)]
    assert import_words(event) == (
        "checkpoint_final.pth: 33 tensors unchanged; stem.convs.0.conv.weight, stages.0.blocks.0.conv1.conv.weight, "
        "stages.0.blocks.0.conv2.conv.weight, stages.1.blocks.0.conv1.conv.weight, "
        "stages.1.blocks.0.conv2.conv.weight, stages.1.blocks.1.conv1.conv.weight, "
        "stages.1.blocks.1.conv2.conv.weight, stages.2.blocks.0.conv1.conv.weight, "
        "stages.2.blocks.0.conv2.conv.weight: axes exchanged; left out: decoder.seg_layers.0.weight, "
        "decoder.stages.0.convs.0.all_modules.0.weight, decoder.stages.0.convs.0.conv.weight, "
        "decoder.transpconvs.0.weight"
    )


def notes(whole: dict) -> list[str]:
    result = runner.check(validate_experiment(whole), lambda event: None)
    assert result["num_errors"] == 0
    return [f"{each['where']}: {each['what']}" for each in result["findings"] if "the weights of" in each["what"]]


def test_the_check_of_the_data_notes_where_the_preparation_differs(home, volumes):
    whole = tree(volumes, SWIN, "swinunetr-ssl", "model_swinvit.pt")
    words = "and the weights of swinunetr-ssl were trained with"
    assert notes(whole) == [
        f"task.normalise: is zscore, {words} window: task.normalise=window is alike",
        f"task.window: is null, {words} [-1000,1000]: task.window=[-1000,1000] is alike",
        f"task.percentiles: is [0.5,99.5], {words} null: task.percentiles=null is alike",
    ]
    alike = {"window": [-1000, 1000], "normalise": "window", "percentiles": None}
    assert notes(merge(whole, {"task": alike})) == []
    init = {"model": "openmind-resenc-l", "weights": "/none"}
    later = whole | {"encoder": RESENC, "pretext": {"name": "mae", "init": init}}
    later |= {"pretrain": {"epochs": 1, "batch": 1, "lr": 1}}
    assert [note.partition(":")[0] for note in notes(later)] == ["task.spacing", "task.percentiles"]
    assert notes(whole | {"pretext": {"name": "none"}}) == []


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_nothing_had_been(chest, tmp_path):
    changes = {
        "encoder": SWIN | {"depths": [1, 1, 1, 1], "skips": False},
        "pretext": {"name": "none"},
        "pretrain": None,
    }
    killed, whole = (jobs(chest, tmp_path / each, **changes)["finetune"] for each in ("killed", "whole"))
    assert run_stage(killed, kill="saved 4") == [-9] and run_stage(killed) == [0]
    assert run_stage(whole) == [0]
    assert outcome(killed) == outcome(whole)


@pytest.mark.slow
def test_the_wrong_file_ends_before_any_stage_starts(home, volumes):
    whole = tree(volumes, SWIN, "swinunetr-ssl", "checkpoint_final.pth")
    with pytest.raises(UserError, match=r"^pretext\.weights: .*checkpoint_final\.pth: is not of swinunetr-ssl: "):
        runner.run(validate_experiment(whole), lambda event: None)
    assert not list(Path(home).glob("**/encoder.safetensors"))
