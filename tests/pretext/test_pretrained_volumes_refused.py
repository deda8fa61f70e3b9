"""Public encoders of volumes: what is refused, and what is said of licences and of another preparation."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.volume_checkpoints import (
    RESENC,
    adaptation_plan,
    nnssl,
    residual_encoder,
    suprem,
    swin_unetr,
    swinvit,
    voco,
    write,
)
from support.volume_encoders import CT, PRIMUS_M, ROI, brought, on_meta, refused, small, task_of

from premed.config.image_processing import Preprocessing
from premed.config.plugins import plugin_names
from premed.errors import UserError
from premed.models.encoders import resenc, swin, timm, vit
from premed.models.public_volumes import PUBLIC_VOLUME_ENCODERS
from premed.pretext import pretrained

# Refused in one line -------------------------------------------------------------------------------------------------


def test_another_size_is_refused_with_the_three_names_that_differ_most_and_the_entrys_encoder(tmp_path):
    worst = (
        r"encoder10\.layer\.conv1\.conv\.weight is 192x192x3x3x3, not 384x384x3x3x3, encoder10\S+ is .*, swinViT\S+ .*"
    )
    words = (
        rf"^pretext\.weights: .*: is not of voco-b: \d+ of \d+ tensors differ \({worst}\); take another file, or name "
    )
    words += r"the model that it is of .*; this one's is encoder: \{name: swin, width: 48, v2: true\}$"
    refused(words, "voco-b", write(voco(swin_unetr(True)), tmp_path), swin.Config(width=24, v2=True))


def without(content, *names):
    state = {name: value for name, value in content["network_weights"].items() if not name.endswith(names)}
    return content | {"network_weights": state}


MISFITS = {
    "the first version": (
        voco(swin_unetr()),
        "voco-b",
        r"is not of voco-b: .*layers4c\.0\.layer\.conv1\.conv\.weight is miss",
    ),
    "the second version": (
        voco(swin_unetr(True)),
        "suprem-swinunetr",
        r"layers4c\.0\.layer\.conv1\.conv\.weight is not the",
    ),
    "no skips": (swinvit(swin_unetr()), "suprem-swinunetr", r"encoder10\.layer\.conv1\.conv\.weight is missing"),
    "another project": (nnssl(residual_encoder()), "suprem-swinunetr", "is not of suprem-swinunetr"),
    "an unknown tensor": (
        voco(swin_unetr(True)) | {"novel": torch.zeros(7)},
        "voco-b",
        r"\(novel is not the network's\)",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_the_file_of_another_swin_is_refused_by_name(what, tmp_path):
    content, model, words = MISFITS[what]
    refused(words, model, write(content, tmp_path), small(v2=model == "voco-b"))


NNSSL_MISFITS = {
    "Primus": (nnssl(residual_encoder(), kind="PrimusM"), "its adaptation plan says PrimusM, and ResEncL is needed"),
    "a missing norm": (
        without(
            nnssl(residual_encoder()), "stages.0.blocks.0.conv1.norm.bias", "stages.0.blocks.0.conv1.all_modules.1.bias"
        ),
        r"1 of \d+ tensors differ \(stages\.0\.blocks\.0\.conv1\.norm\.bias is missing\)",
    ),
    "no order of axes": (nnssl(residual_encoder(), transpose=(0, 0, 2)), r"transpose_forward is \[0, 0, 2\]"),
    "no axes": (nnssl(residual_encoder(), transpose=([0], 1, 2)), r"transpose_forward is \[\[0\], 1, 2\]"),
    "Swin UNETR": (swinvit(swin_unetr()), "is not of openmind-resenc-l"),
    "a plan that is none": (nnssl(residual_encoder()) | {"nnssl_adaptation_plan": [1]}, None),
}


@pytest.mark.parametrize("what", NNSSL_MISFITS)
def test_a_file_that_is_not_nnssls_residual_encoder_is_refused_by_name(what, tmp_path):
    content, words = NNSSL_MISFITS[what]
    file, config = write(content, tmp_path), resenc.Config(**RESENC)
    if words is None:
        assert brought("openmind-resenc-l", file, config, module=resenc)[1]["missing"] == []
    else:
        refused(words, "openmind-resenc-l", file, config, module=resenc)


def test_two_names_of_one_tensor_that_hold_different_values_are_refused(tmp_path):
    content = nnssl(residual_encoder())
    content["network_weights"]["encoder.stem.convs.0.all_modules.0.weight"] = torch.zeros(8, 1, 3, 3, 3)
    words = r"stem\.convs\.0\.all_modules\.0\.weight is not what its other name holds"
    refused(words, "openmind-resenc-l", write(content, tmp_path), resenc.Config(**RESENC), module=resenc)


def test_other_channels_are_refused(tmp_path):
    file = write(suprem(swin_unetr(channels=2)), tmp_path)
    refused("has 2 input channels and organs has 1; use weights with 1", "suprem-swinunetr", file, small())


@pytest.mark.parametrize("model", PUBLIC_VOLUME_ENCODERS)
def test_a_pickled_network_is_never_unpickled(model, tmp_path):
    entry = PUBLIC_VOLUME_ENCODERS[model]
    kind: Any = {"resenc": resenc, "swin": swin, "vit": vit}[entry.encoder["name"]]
    config = {resenc: resenc.Config(**RESENC), swin: small(), vit: PRIMUS_M}[kind]
    torch.save(residual_encoder(), tmp_path / "whole.pth")
    words = "neither safetensors nor a torch checkpoint of weights only; save the network's state_dict as safetensors$"
    refused(words, model, tmp_path / "whole.pth", config, module=kind)


def test_another_encoder_is_refused_with_the_right_one(tmp_path):
    file = write(voco(swin_unetr(True)), tmp_path)
    words = r"^encoder: voco-b has another network; set encoder: \{name: swin, width: 48, v2: true\}$"
    refused(words, "voco-b", file, resenc.Config(**RESENC), module=resenc)
    refused(words, "voco-b", file, vit.Config(width=24, depth=2, heads=2, patch=16), module=vit)
    words = r"^encoder: openmind-resenc-l has another network; set encoder: \{name: resenc, size: large\}$"
    refused(words, "openmind-resenc-l", file, small())


@pytest.mark.parametrize("change", [{"norm": "group"}, {"strides": ((2, 2, 1), (2, 2, 2))}])
def test_a_residual_encoder_that_computes_otherwise_is_refused(change, tmp_path):
    file = write(nnssl(residual_encoder()), tmp_path)
    words = "^encoder: openmind-resenc-l halves all axes at each stage and has instance norms; set encoder: "
    refused(words, "openmind-resenc-l", file, resenc.Config(**(RESENC | change)), module=resenc)


def test_pictures_are_refused_and_so_are_mean_and_std(tmp_path):
    file = write(voco(swin_unetr(True)), tmp_path)
    refused("^pretext.model: voco-b is for volumes, and organs has pictures", "voco-b", file, small(True), roi=ROI[:2])
    settings = pretrained.Config(model="voco-b", weights=file, mean=(0, 0, 0))
    with pytest.raises(UserError, match="^pretext: mean and std are for pictures"):
        pretrained.weights(settings, swin.build(small(True), 1, ROI), task_of())


def test_timms_encoder_says_which_one_a_name_of_volumes_needs():
    with pytest.raises(
        UserError, match=r"^encoder\.model: voco-b is for volumes; set encoder: \{name: swin, width: 48"
    ):
        timm.build(timm.Config(model="voco-b"), 1, (64, 64))


def test_weights_that_are_on_no_hub_need_a_file():
    with pytest.raises(UserError, match=r"^pretext\.model: swinunetr-ssl is not on the hub; give a file: pretext\.w"):
        pretrained.content(pretrained.Config(model="swinunetr-ssl"))


# The preparation -----------------------------------------------------------------------------------------------------


def noted(model, preprocessing, channels=1) -> dict[str, str]:
    task = task_of(channels, preprocessing=preprocessing)
    return {note.where: note.what for note in pretrained.preparation_notes(pretrained.Config(model=model), task)}


def test_a_task_that_prepares_images_alike_gets_no_note():
    assert noted("voco-b", CT) == {}
    mri = Preprocessing(dims=3, normalise="zscore", spacing=(1, 1, 1))
    assert noted("openmind-resenc-l", mri) == {}


def test_each_difference_of_the_preparation_is_noted_with_both_values():
    notes = noted("swinunetr-ssl", CT, channels=2)
    assert list(notes) == ["task.spacing", "task.window", "task organs"]
    words = "and the weights of swinunetr-ssl were trained with"
    assert notes["task.window"] == f"is [-175,250], {words} [-1000,1000]: task.window=[-1000,1000] is alike"
    assert notes["task organs"] == f"has 2 channels, {words} 1: they share it"
    notes = noted("openmind-resenc-l", CT.model_copy(update={"window": None, "percentiles": (1, 99), "spacing": None}))
    words = "and the weights of openmind-resenc-l were trained with"
    assert notes == {
        "task.spacing": f"is null, {words} [1,1,1]: task.spacing=[1,1,1] is alike",
        "task.normalise": f"is window, {words} zscore: task.normalise=zscore is alike",
        "task.percentiles": f"is [1,99], {words} null: task.percentiles=null is alike",
    }
    assert noted("dinov2-s", CT) == {}  # of pictures: folded into the stem


@pytest.mark.parametrize(("model", "dims", "overlapping"), [("voco-b", 3, "btcv"), ("medical-mae-b", 2, "chestxray14")])
def test_a_task_whose_images_the_weights_may_have_been_trained_on_is_noted(model, dims, overlapping):
    def notes(name):
        task = SimpleNamespace(name=name, dims=dims, channels=1, preprocessing=CT)
        return [note.what for note in pretrained.preparation_notes(pretrained.Config(model=model), task)]

    assert notes(overlapping) == [
        f"{model} was trained on images of {overlapping}, maybe those of test: scores may be too good"
    ]
    assert notes("other") == []
    assert overlapping in plugin_names("tasks")


@pytest.mark.parametrize("model", PUBLIC_VOLUME_ENCODERS)
def test_every_entry_has_a_licence_a_preparation_a_source_and_a_network(model):
    entry = PUBLIC_VOLUME_ENCODERS[model]
    assert entry.licence and entry.data and entry.source.startswith("https://")
    fields = entry.preparation._asdict()
    roi = fields.pop("roi")
    Preprocessing(dims=3, **fields)
    module: Any = {"resenc": resenc, "swin": swin, "vit": vit}[entry.encoder["name"]]
    assert on_meta(module, module.Config.model_validate(dict(entry.encoder)), 1, roi).grid


def test_a_plan_is_nnssls(tmp_path):
    """What the tests write has the fields of nnssl's `AdaptationPlan.serialize`."""
    fields = {"architecture_plans", "pretrain_plan", "pretrain_num_input_channels", "recommended_downstream_patchsize"}
    fields |= {"key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe"}
    assert adaptation_plan().keys() == fields
