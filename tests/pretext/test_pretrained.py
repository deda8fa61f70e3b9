"""Public encoders' weights: equal to timm's forward from each project's own file, for any channels and sizes."""

import json
from types import SimpleNamespace

import pytest
import torch
from support.public_checkpoints import CLASSES, arguments, publish, random_network, side
from torch import nn

from premed.config.image_processing import Preprocessing
from premed.errors import UserError
from premed.models.encoders import timm, vit
from premed.models.heads.linear import Config as LinearConfig
from premed.models.heads.linear import Linear
from premed.models.public_encoders import PUBLIC_ENCODERS, origin
from premed.pretext import mae, pretrained

PIXELS = Preprocessing(dims=2, normalise="window", window=(0, 1))
GREY = Preprocessing(dims=2, normalise="grey")  # (pixel - .5) / .225
COLOURS = PIXELS.model_copy(update={"channels": 3})
FEW = ("dinov2-reg-s", "dinov3-s", "rad-dino", "eva-x-b", "imagenet-convnext-t")  # the others are like one of them
EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FEW)) for name in PUBLIC_ENCODERS]
)


def task_of(roi, preprocessing) -> SimpleNamespace:
    channels, dims = preprocessing.channels, len(roi)
    return SimpleNamespace(name="images", channels=channels, dims=dims, roi=roi, preprocessing=preprocessing)


def brought(name, file, preprocessing=COLOURS, roi=None, args=None, model=None, **pretext):
    """The encoder with the file's weights, in evaluation, and the report."""
    roi = roi or (side(name),) * 2
    config = timm.Config(model=name, args={**arguments(name), **(args or {})})
    encoder = timm.build(config, preprocessing.channels, roi)
    settings = pretrained.Config(model=model or name, weights=file, **pretext)
    state, report = pretrained.weights(settings, encoder, task_of(roi, preprocessing))
    encoder.load_state_dict(state)
    return encoder.eval(), report


def normalised(pixels, name):
    """As the public encoder's own preparation has them: three channels."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in origin(name)[2:4])
    return (pixels - mean) / std


def assert_same(encoder, image, network, timms):
    """Tokens and logits of an encoder are those of timm's forward."""
    features, expected = encoder(image), network.forward_features(timms)
    if expected.ndim == 4:
        expected = expected.flatten(2).transpose(1, 2)
    expected = expected[:, getattr(network, "num_prefix_tokens", 0) :]
    torch.testing.assert_close(features.tokens, expected, rtol=1e-4, atol=1e-4)
    head = Linear(LinearConfig(), encoder.width, CLASSES)
    theirs = network.head.fc if hasattr(network.head, "fc") else network.head
    head.fc.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(head(image, features), network(timms), rtol=1e-4, atol=1e-4)


# Equal to timm -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@EACH
def test_features_and_logits_are_timms_from_the_projects_own_file(name, tmp_path):
    network = random_network(name)
    encoder, report = brought(name, publish(name, network, tmp_path))
    pixels = torch.rand(2, 3, side(name), side(name))
    assert_same(encoder, pixels, network, normalised(pixels, name))
    assert report["loaded"] == len(encoder.state_dict()) and report["missing"] == []
    json.dumps(report)


@torch.no_grad()
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "eva-x-b")) for name in FEW])
def test_a_grey_image_gives_what_timm_gives_for_it_repeated_three_times(name, tmp_path):
    network = random_network(name)
    encoder, _ = brought(name, publish(name, network, tmp_path), GREY)
    pixels = torch.rand(2, 1, side(name), side(name))
    assert_same(encoder, (pixels - 0.5) / 0.225, network, normalised(pixels, name))


@torch.no_grad()
@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_get_red_green_blue_and_red_again_as_in_timm(channels, tmp_path):
    name = "dinov2-s"
    network, about = random_network(name), origin(name)
    encoder, report = brought(name, publish(name, network, tmp_path), PIXELS.model_copy(update={"channels": channels}))
    pixels, colours = torch.rand(2, channels, 56, 56), [c % 3 for c in range(channels)]
    mean, std = (torch.tensor([each[c] for c in colours]).view(1, -1, 1, 1) for each in about[2:4])
    stem = network.patch_embed.proj
    wide = nn.Conv2d(channels, 24, 14, 14)
    wide.weight.copy_(stem.weight[:, colours] * 3 / channels)
    wide.bias.copy_(stem.bias)
    network.patch_embed.proj = wide
    assert_same(encoder, pixels, network, (pixels - mean) / std)
    assert report["changed"]["patch_embed.proj.weight"] == f"normalisation folded in, 3 channels to {channels}"


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov2-s", "dinov2-reg-s", "dinov3-s", "eva-x-b"])
@pytest.mark.parametrize("grid", [pytest.param((6, 6), marks=pytest.mark.slow), (4, 7)])
def test_positions_are_resized_as_timm_resizes_a_network(name, grid, tmp_path):
    network = random_network(name)
    file, edge = publish(name, network, tmp_path), side(name) // 4
    roi = (grid[0] * edge, grid[1] * edge)
    encoder, report = brought(name, file, roi=roi)
    network.set_input_size(img_size=roi)
    pixels = torch.rand(2, 3, *roi)
    assert_same(encoder, pixels, network, normalised(pixels, name))
    assert report["changed"].get("pos_embed") == (None if name == "dinov3-s" else f"4x4 to {grid[0]}x{grid[1]}")


@torch.no_grad()
def test_another_patch_is_resampled_as_timm_does(tmp_path):
    network = random_network("imagenet-vit-s")
    encoder, report = brought("imagenet-vit-s", publish("imagenet-vit-s", network, tmp_path), args={"patch_size": 8})
    network.set_input_size(patch_size=(8, 8))
    pixels = torch.rand(2, 3, 64, 64)
    assert_same(encoder, pixels, network, normalised(pixels, "imagenet-vit-s"))
    assert report["changed"]["patch_embed.proj.weight"] == "16x16 to 8x8, normalisation folded in"


@torch.no_grad()
def test_mean_and_std_in_the_yaml_win_over_the_models(tmp_path):
    network = random_network("dinov2-s")
    encoder, report = brought("dinov2-s", publish("dinov2-s", network, tmp_path), mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    pixels, mean = torch.rand(2, 3, 56, 56), torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    assert_same(encoder, pixels, network, (pixels - mean) / torch.tensor([1, 2, 3]).view(1, 3, 1, 1))
    assert report["trained_on"] == {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "size": 518}


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("how", ["teacher", "chunks", "timm", "transformers", "o_proj"])
def test_files_of_other_formats_give_the_same(how, tmp_path):
    name = "dinov2-s"
    network = random_network(name)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("head")}
    if how in ("teacher", "chunks"):  # of DINOv2's own training
        chunk = {key.replace("blocks.", "blocks.0.") if how == "chunks" else key: w for key, w in state.items()}
        theirs = {f"backbone.{key}": w for key, w in chunk.items()} | {"dino_head.mlp.0.bias": torch.zeros(2)}
        torch.save({"teacher": theirs | {"backbone.mask_token": torch.zeros(1, 24)}}, file := tmp_path / "x.pth")
    elif how == "timm":
        torch.save({"state_dict": state}, file := tmp_path / "x.pth")
    else:
        new = {"attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj"}
        new |= {"attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj"}

        def renamed(theirs):
            for old, other in new.items() if how == "o_proj" else ():
                theirs = {key.replace(old, other): w for key, w in theirs.items()}
            return {f"dinov2.{key}": w for key, w in theirs.items()}

        file = publish("rad-dino", network, tmp_path, renamed)
    pixels = torch.rand(2, 3, 56, 56)
    assert_same(brought(name, file)[0], pixels, network, normalised(pixels, name))


@torch.no_grad()
def test_dinov3_of_hugging_face_gives_the_same(tmp_path):
    """Names of transformers' DINOv3ViTModel: no bias of keys, registers, positions without parameters."""
    network = random_network("dinov3-s")
    theirs = {"embeddings.mask_token": torch.zeros(1, 1, 24)}
    names = {"cls_token": "embeddings.cls_token", "reg_token": "embeddings.register_tokens"}
    names |= {f"patch_embed.proj.{kind}": f"embeddings.patch_embeddings.{kind}" for kind in ("weight", "bias")}
    for key, value in network.state_dict().items():
        if key.startswith("head"):
            continue
        key = names.get(key, key.replace("blocks.", "layer.").replace("attn.proj", "attention.o_proj"))
        key = key.replace("gamma_1", "layer_scale1.lambda1").replace("gamma_2", "layer_scale2.lambda1")
        key = key.replace("mlp.fc1", "mlp.up_proj").replace("mlp.fc2", "mlp.down_proj")
        if "attn.qkv" in key:
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                theirs[key.replace("attn.qkv", f"attention.{part}_proj")] = chunk
        else:
            key = key.replace("attn.q_bias", "attention.q_proj.bias").replace("attn.v_bias", "attention.v_proj.bias")
            theirs[key] = value
    torch.save(theirs, tmp_path / "x.pth")
    pixels = torch.rand(2, 3, 64, 64)
    encoder, _ = brought("dinov3-s", tmp_path / "x.pth")
    assert_same(encoder, pixels, network, normalised(pixels, "dinov3-s"))


@torch.no_grad()
@pytest.mark.parametrize("dims", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_plain_vit_s_weights_serve_the_encoder_vit_too(dims, tmp_path):
    """Medical MAE in premed's own ViT, for pictures and for volumes: as `imagenet` takes ImageNet's."""
    network = random_network("medical-mae-b")
    file, roi = publish("medical-mae-b", network, tmp_path), (64,) * 2 + (16,) * (dims - 2)
    preparation = PIXELS.model_copy(update={"dims": dims})
    encoder = vit.build(vit.Config(width=24, depth=2, heads=2, patch=16), 1, roi)
    settings = pretrained.Config(model="medical-mae-b", weights=file)
    state, report = pretrained.weights(settings, encoder, task_of(roi, preparation))
    encoder.load_state_dict(state)
    pixels = torch.rand(2, 1, 64, 64)
    image = pixels if dims == 2 else pixels[..., None].expand(-1, -1, -1, -1, 16)
    expected = network.forward_features((pixels.expand(-1, 3, -1, -1) - 0.5056) / 0.252)
    torch.testing.assert_close(encoder.eval()(image).tokens, expected[:, 1:], rtol=1e-4, atol=1e-4)
    assert "decoder_embed.weight" in report["dropped"] and report["licence"].startswith("none in its repository")


# The report ----------------------------------------------------------------------------------------------------------


def test_the_report_says_what_was_kept_changed_and_left_out_and_of_what_licence_it_is(tmp_path):
    _, report = brought("eva-x-b", publish("eva-x-b", random_network("eva-x-b"), tmp_path), GREY, roi=(96, 64))
    assert report["changed"] == {
        "patch_embed.proj.bias": "normalisation folded in",
        "patch_embed.proj.weight": "normalisation folded in, 3 channels to 1",
        "pos_embed": "4x4 to 6x4",
    }
    assert report["kept"] == report["loaded"] - 3
    extra = ["blocks.0.attn.rope.freqs_sin", "lm_head.bias", "lm_head.weight", "mask_token", "rope.freqs_cos"]
    assert report["dropped"] == extra
    assert (report["model"], report["licence"]) == ("eva-x-b", "MIT, by its README")
    trained_on = {"mean": [0.49185243] * 3, "std": [0.28509309] * 3, "size": 224}
    assert report["trained_on"] == trained_on and report["source"] == "https://github.com/hustvl/EVA-X"


def test_a_model_of_timms_needs_no_entry(tmp_path):
    network = random_network("dinov2-s")
    model = "vit_small_patch14_dinov2.lvd142m"
    _, report = brought("dinov2-s", publish("dinov2-s", network, tmp_path), model=model)
    assert (report["licence"], report["trained_on"]["size"]) == ("apache-2.0", 518)


@EACH
def test_every_entry_has_a_licence_a_preparation_and_a_source(name):
    about = origin(name)
    assert about.licence and about.source.startswith("https://") and about.size % 2 == 0
    assert all(0 < value < 1 for value in (*about.mean, *about.std))


# Refused in one line -------------------------------------------------------------------------------------------------


def refused(words, name, file, **settings):
    with pytest.raises(UserError, match=words) as caught:
        brought(name, file, **settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_the_weights_of_another_model_are_refused_with_the_three_names_that_differ_most(tmp_path):
    file = publish("dinov2-s", random_network("dinov2-s"), tmp_path)
    wide = {"embed_dim": 48}
    worst = "patch_embed.proj.weight is 24x3x14x14, not 48x3x14x14, blocks.0.mlp.fc1.weight is 96x24, not 192x48, blo"
    words = rf"^pretext\.weights: .*: is not of dinov2-s: 34 of 34 tensors differ \({worst}.*; name the model that it"
    refused(words, "dinov2-s", file, args=wide)


MISFITS = {  # a change of dinov2-s's file, and how it is refused
    "a tensor is missing": (lambda s: without(s, "norm.bias"), r"1 of 34 tensors differ \(norm\.bias is missing\)"),
    "one is unknown": (lambda s: s | {"novel": torch.zeros(7)}, r"\(novel is not the network's\)"),
    "registers": (lambda s: s | {"reg_token": torch.zeros(1, 4, 24)}, r"\(reg_token is not the network's\)"),
    "positions": (lambda s: s | {"pos_embed": torch.zeros(1, 13, 24)}, r"pos_embed"),
    "no image stem": (lambda s: without(s, "patch_embed.proj.weight"), r"patch_embed\.proj\.weight is missing"),
    "another network": (lambda s: {"conv1.weight": torch.zeros(2, 3, 4, 4)}, "tensors differ"),
    "other channels": (
        lambda s: s | {"patch_embed.proj.weight": torch.zeros(24, 2, 14, 14)},
        "its stem has 2 input channels and images has 3; use weights with 3",
    ),
}


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize("what", MISFITS)
def test_a_file_that_does_not_fit_is_refused_by_name(what, tmp_path):
    change, words = MISFITS[what]
    refused(words, "dinov2-s", publish("dinov2-s", random_network("dinov2-s"), tmp_path, change))


def test_a_cnn_s_file_is_refused_for_a_vit_and_the_other_way_round(tmp_path):
    refused(
        "is not of dinov2-s",
        "dinov2-s",
        publish("imagenet-convnext-t", random_network("imagenet-convnext-t"), tmp_path),
    )
    words = "is not of imagenet-convnext-t"
    refused(words, "imagenet-convnext-t", publish("dinov2-s", random_network("dinov2-s"), tmp_path))


def test_biases_that_the_network_has_not_are_not_dropped_in_silence(tmp_path, capsys):
    """timm's converter drops DINOv3's biases where its network has none, and prints the error."""
    file = publish("dinov3-s", random_network("dinov3-s"), tmp_path)
    bare = "vit_small_patch16_dinov3"
    config = timm.Config(model=bare, args={**arguments("dinov3-s"), "global_pool": "token"})
    encoder = timm.build(config, 3, (64, 64))
    settings = pretrained.Config(model=bare, weights=file)
    words = r"blocks\.0\.attn\.qkv\.bias is not zero, and the encoder has no such bias; take .*dinov3-s"
    with pytest.raises(UserError, match=words):
        pretrained.weights(settings, encoder, task_of((64, 64), COLOURS))

    def zeros(state):
        return {key: value * (not key.endswith("qkv.bias")) for key, value in state.items()}

    settings = pretrained.Config(model=bare, weights=publish("dinov3-s", random_network("dinov3-s"), tmp_path, zeros))
    pretrained.weights(settings, encoder, task_of((64, 64), COLOURS))
    assert capsys.readouterr().out == ""


def test_a_bias_of_keys_that_is_not_masked_is_refused(tmp_path):
    def unmasked(state):
        return {key: value for key, value in state.items() if not key.endswith("bias_mask")}

    file = publish("dinov3-s", random_network("dinov3-s"), tmp_path, unmasked)
    refused("is not zero, and the encoder has no such bias", "dinov3-s", file)


def test_a_pickled_network_is_never_unpickled(tmp_path):
    torch.save(random_network("dinov2-s"), tmp_path / "whole.pth")
    refused("weights only; save the network's state_dict as safetensors", "dinov2-s", tmp_path / "whole.pth")


def test_the_name_of_another_network_is_refused(tmp_path):
    file = publish("dinov2-b", random_network("dinov2-b"), tmp_path)
    words = r"^pretext\.model: eva-x-s is another network than the encoder's, dinov2-s; set encoder\.model=eva-x-s"
    refused(words, "dinov2-s", file, model="eva-x-s")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("dinov2-x", r"^pretext\.model: neither premed nor timm has 'dinov2-x'; did you mean dinov2-"),
        ("vit_small_patch14_dinov2.lvd142", "did you mean vit_small_patch14_dinov2.lvd142m"),
        ("qqqq", r"it may be one of dinov2-s, "),
    ],
)
def test_a_name_that_nobody_has_is_refused_with_those_alike(model, words):
    with pytest.raises(UserError, match=words):
        pretrained.weights_file(pretrained.Config(model=model))


def test_weights_that_are_on_no_hub_need_a_file():
    with pytest.raises(UserError, match=r"^pretext\.model: medical-mae-b is not on the hub; give a file: pretext\.w"):
        pretrained.content(pretrained.Config(model="medical-mae-b"))


def test_offline_and_without_a_file_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"^pretext\.model: rad-dino is not on this machine .*pretext\.weights=FILE$"):
        pretrained.content(pretrained.Config(model="rad-dino"))


def test_another_encoder_is_refused(tmp_path):
    file = publish("dinov2-s", random_network("dinov2-s"), tmp_path)
    with pytest.raises(UserError, match="^encoder: these weights are for the encoders timm .pictures. and vit"):
        settings = pretrained.Config(model="dinov2-s", weights=file)
        pretrained.weights(settings, nn.Identity(), task_of((56, 56), COLOURS))  # type: ignore[arg-type]


def test_dinov2_in_premed_s_own_vit_is_refused_with_a_remedy(tmp_path):
    file = publish("dinov2-s", random_network("dinov2-s"), tmp_path)
    encoder = vit.build(vit.Config(width=24, depth=2, heads=2, patch=14), 3, (56, 56))
    with pytest.raises(UserError, match=r"scales its layers \(LayerScale\).*encoder\.name=timm"):
        pretrained.weights(pretrained.Config(model="dinov2-s", weights=file), encoder, task_of((56, 56), COLOURS))


def test_mae_refuses_a_convnext():
    encoder = timm.build(timm.Config(model="imagenet-convnext-t", args=arguments("imagenet-convnext-t")), 1, (64, 64))
    with pytest.raises(UserError, match="^encoder: mae needs one that can skip patches"):
        mae.build(mae.Config(), encoder, [SimpleNamespace(task=task_of((64, 64), PIXELS))], 0.05)  # type: ignore[list-item]
