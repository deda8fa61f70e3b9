"""`pretext.init`: MAE goes on from given weights; what each stage started from stays in the cards."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from support.experiments import experiment, run, store_of, tree
from support.public_checkpoints import NARROW, publish, random_network
from support.stages import jobs, outcome
from support.stages import run as run_stage

from premed.config.spec import canonical
from premed.pretext import mae

pytest_plugins = ["support.experiment_fixtures"]

NAME = "dinov2-s"
ENCODER = {"name": "timm", "model": NAME, "args": {**NARROW, "patch_size": 8}}


@pytest.fixture(scope="module")
def file(shared):
    return shared("init", lambda folder: publish(NAME, random_network(NAME), folder)) / f"{NAME}.pth"


def continued(file, **pretext):
    """MAE on the task's own images, from the file."""
    return {"encoder": ENCODER, "pretext": {"init": {"model": NAME, "weights": str(file)}, **pretext}}


def test_without_it_digests_are_what_they_were(chest):
    assert "init" not in canonical(mae.Config())
    with_none = experiment(chest, {"pretext": {"init": None}})
    assert with_none.digest() == experiment(chest).digest()


def test_its_name_may_be_left_out_and_what_imports_no_weights_is_refused(file):
    parsed = mae.Config.model_validate({"init": {"model": NAME, "weights": file}})
    assert parsed.init == mae.Config.model_validate({"init": {"name": "pretrained", "model": NAME}}).init.model_copy(
        update={"weights": Path(file)}
    )
    with pytest.raises(ValidationError, match="hssl imports no weights; use one of imagenet, pretrained"):
        mae.Config.model_validate({"init": "hssl"})
    with pytest.raises(ValidationError, match="none imports no weights"):
        mae.Config.model_validate({"init": {"name": "none"}})


def test_stages_are_import_pretraining_fine_tuning_each_the_next_ones_parent(chest, file):
    given, pretrain, finetune, test = experiment(chest, continued(file)).stages(lambda kind: "")
    assert [stage.kind for stage in (given, pretrain, finetune, test)] == ["import", "pretrain", "finetune", "test"]
    assert given.pretext.name == "pretrained" and pretrain.pretext.name == "mae" and pretrain.pretext.init is None
    assert (pretrain.parent, finetune.parent) == (given.digest(), pretrain.digest())
    plain = next(experiment(chest, {"encoder": ENCODER}).stages(lambda kind: ""))
    assert plain.model_copy(update={"parent": given.digest()}).digest() == pretrain.digest()


@pytest.mark.slow
def test_mae_starts_from_the_weights_and_the_cards_keep_the_chain(home, chest, file, premed):
    rate = {"pretrain": {"lr": 1e-12}}  # so that the end is near the start
    result = run(chest, continued(file), rate)
    given, pretrain, finetune, _ = result["stages"]
    weights = [load_file(f"{stage['where']}/parts/encoder.safetensors") for stage in (given, pretrain)]
    assert pretrain["loaded"]["encoder"]["loaded"] == len(weights[0])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)
    cards = [json.loads(Path(each["where"], "parts/card.json").read_text()) for each in (given, pretrain, finetune)]
    first, second, third = cards[2]["weights"]
    assert cards[0]["weights"] == [first] and cards[1]["weights"] == [first, second]
    assert (first["model"], first["licence"]) == (NAME, "apache-2.0")
    assert (second["strategy"], second["kind"], second["digest"]) == ("mae", "pretrain", pretrain["digest"])
    assert third == {"kind": "finetune", "task": "chestxray14", "digest": finetune["digest"]}
    store = store_of(home)
    runs = [store.get(stage["run_id"]) for stage in result["stages"]]
    assert store.get(result["run_id"]).tags["pretrain_seed"] == "0"
    assert [each.name for each in runs[:2]] == ["pretrained weights", "mae pre-training seed 0"]
    assert not any(param.startswith("stage.pretext.init") for param in runs[1].params)
    written = yaml.safe_load(store.download(result["run_id"], "experiment.yaml", home / "x").read_text())
    assert written["pretext"]["init"]["model"] == NAME and str(file.parent) not in str(written)
    alone = run(chest, {"encoder": ENCODER, "pretext": {"name": "pretrained", "model": NAME, "weights": str(file)}})
    assert alone["stages"][0]["reused"] and alone["stages"][0]["run_id"] == given["run_id"]
    code, out, err = premed("compare", "--json")
    assert code == 0, err
    ((block,),) = ([task["blocks"] for task in json.loads(out)["tasks"]],)
    assert {row["strategy"] for row in block[0]["rows"]} == {"mae", "pretrained"}


@pytest.mark.slow
def test_the_segments_of_a_trunk_start_from_it_too(home, chest, file):
    result = run(chest, continued(file), {"pretrain": {"trunk": [2, 4], "lr": 1e-12}, "test": False})
    assert [stage["kind"] for stage in result["stages"]] == ["import", "trunk", "trunk", "cooldown", "finetune"]
    card = json.loads(Path(result["stages"][-1]["where"], "parts/card.json").read_text())
    assert [each["kind"] for each in card["weights"]] == ["import", "trunk", "trunk", "cooldown", "finetune"]
    first, last = (load_file(f"{result['stages'][i]['where']}/parts/encoder.safetensors") for i in (0, 3))
    torch.testing.assert_close(last["blocks.1.mlp.fc1.weight"], first["blocks.1.mlp.fc1.weight"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_killed_continuation_goes_on_as_if_nothing_had_been(chest, tmp_path, file):
    changes = continued(file)
    killed, whole = (jobs(chest, tmp_path / each, **changes) for each in ("killed", "whole"))
    for found in (killed, whole):
        assert run_stage(found["import"]) == [0]
    assert run_stage(killed["pretrain"], kill="saved 4") == [-9]
    assert run_stage(killed["pretrain"]) == [0] and run_stage(whole["pretrain"]) == [0]
    assert outcome(killed["pretrain"]) == outcome(whole["pretrain"])


@pytest.mark.slow
def test_imagenets_weights_in_premed_s_own_vit_are_a_start_too(home, chest, tmp_path):
    network = random_network("imagenet-vit-s")
    file = publish("imagenet-vit-s", network, tmp_path)
    init = {"name": "imagenet", "model": "vit_small_patch16_224.augreg_in1k", "weights": str(file)}
    result = run(chest, {"pretext": {"init": init}, "pretrain": {"lr": 1e-12}, "test": False})
    saved = load_file(f"{result['stages'][1]['where']}/parts/encoder.safetensors")
    torch.testing.assert_close(saved["norm.weight"], network.norm.weight.detach(), rtol=1e-4, atol=1e-5)


def test_a_file_that_does_not_fit_is_refused_before_anything_starts(home, chest, tmp_path, premed):
    file = publish(NAME, random_network(NAME), tmp_path, lambda state: {**state, "novel": torch.zeros(3)})
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(tree(chest, continued(file))))
    code, _, err = premed("run", tmp_path / "x.yaml")
    assert code == 2 and "novel is not the network's" in "".join(err) and not (home / "cache").exists()
