"""encoders/swin.py: MONAI's Swin UNETR, taps, drop path, layers, refusals, and its training to a test score."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from pydantic import ValidationError

from premed.config.compose import validate_experiment
from premed.contracts import Features
from premed.data.phantoms.writers import write_msd
from premed.errors import UserError
from premed.execution import runner
from premed.models.encoders import swin
from premed.models.encoders.swin import Config, Swin
from premed.models.heads import conv, linear, unet, unetr
from premed.models.network import Network
from premed.pretext import mae
from premed.rng import sample_keys
from premed.training.optimizer import layer_decay_groups

pytest_plugins = ["support.experiment_fixtures"]

PICTURE, VOLUME = (1, (64, 32)), (2, (32, 32, 64))
TASK: Any = SimpleNamespace(channels=2, classes=("background", "a", "b"))
ORGANS = {  # MONAI's names of the decoder, in the head conv
    **{f"decoder{5 - i}.": f"ups.{i}." for i in range(5)},
    "out.": "out.",
}


def encoder(of=VOLUME, **settings) -> Swin:
    torch.manual_seed(0)
    model = swin.build(Config(**({"width": 12} | settings)), *of)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def images(of=VOLUME, n: int = 2) -> torch.Tensor:
    return torch.randn(n, of[0], *of[1], generator=torch.Generator().manual_seed(1))


def keys(n, epoch=0):
    return torch.from_numpy(sample_keys(0, "finetune", epoch, np.arange(n)))


# Equal to MONAI ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("of", [PICTURE, VOLUME])
def test_with_the_head_conv_it_is_monais_swin_unetr(of, v2):
    channels, roi = of
    model = encoder(of, v2=v2)
    head = conv.build(conv.Config(), model, TASK).eval()
    reference = SwinUNETR(channels, 3, feature_size=12, use_v2=v2, spatial_dims=len(roi)).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    decoder, own = {}, {}
    for name, value in reference.state_dict().items():
        start = next((each for each in ORGANS if name.startswith(each)), None)
        if start is None:
            own[name] = value
        else:
            decoder[ORGANS[start] + name.removeprefix(start)] = value
    model.load_state_dict(own)
    head.load_state_dict(decoder)
    torch.testing.assert_close(Network(model, head).eval()(images(of)), reference(images(of)))


@torch.no_grad()
@pytest.mark.parametrize("of", [PICTURE, VOLUME])
@pytest.mark.parametrize("skips", [False, True])
def test_its_features_match_its_attributes(of, skips):
    model = encoder(of, skips=skips)
    features = model(images(of), taps=(0, 3, 7))
    assert len(features.pyramid) == len(model.pyramid) == 5 + skips and model.decoded == len(model.pyramid) - 1
    for scale, seen in zip(model.pyramid, features.pyramid, strict=True):
        assert seen.shape == (2, scale.channels, *(n // edge for n, edge in zip(of[1], scale.stride, strict=True)))
    transformer = model.swinViT(images(of))
    assert torch.equal(features.tokens, transformer[-1].flatten(2).transpose(1, 2))
    assert features.tokens.shape[2] == model.width == 192 and features.grid == model.grid
    torch.testing.assert_close(features.summary, features.tokens.mean(dim=1))
    if not skips:
        assert all(torch.equal(a, b) for a, b in zip(features.pyramid, transformer, strict=True))
    places = [np.prod(of[1]) // 2 ** (level * len(of[1])) for level in (1, 2, 4)]
    assert [tap.shape for tap in features.taps.values()] == [
        (2, n, width) for n, width in zip(places, (12, 24, 96), strict=True)
    ]


@torch.no_grad()
def test_a_tap_is_what_the_block_hands_on():
    model = encoder(PICTURE)
    tap = model(images(PICTURE), taps=(1,)).taps[1]
    stage = model.stage(0)
    handed_on = stage.downsample(tap.unflatten(1, (32, 16))).movedim(-1, 1)
    torch.testing.assert_close(model.swinViT.proj_out(handed_on, True), model.swinViT(images(PICTURE))[1])
    assert not any(block._forward_hooks for block in model.blocks)


def test_it_can_be_built_and_looked_at_without_weights():
    with torch.device("meta"):
        model = swin.build(Config(), 1, (96, 96, 96))
        features = model(torch.zeros(1, 1, 96, 96, 96))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert [seen.shape[1] for seen in features.pyramid] == [48, 48, 96, 192, 384, 768]


# Drop path, layers ---------------------------------------------------------------------------------------------------


def tokens(model: Swin, of=PICTURE, keys=None) -> torch.Tensor:
    features: Features = model(images(of), keys=keys)
    return features.tokens


@torch.no_grad()
def test_drop_path_depends_on_the_samples_keys_alone_and_not_on_torchs_generator():
    model = encoder(PICTURE).train()
    model.drop_path = 0.5
    first = tokens(model, keys=keys(2))
    torch.manual_seed(7)
    assert torch.equal(tokens(model, keys=keys(2)), first)
    assert not torch.equal(tokens(model, keys=keys(2, epoch=1)), first)
    without = tokens(model)
    assert torch.equal(without, tokens(model.eval(), keys=keys(2))) and not torch.equal(without, first)


@torch.no_grad()
def test_a_dropped_block_hands_on_what_it_got_and_its_two_branches_are_drawn_apart(monkeypatch):
    model = encoder(PICTURE).train()
    scales = torch.ones(model.depth, 2, 2, 1, 1)
    scales[1, :, 0] = 0  # both branches of block 1, of the first image
    scales[0, 1, 1] = 0  # the second branch of block 0, of the second image
    monkeypatch.setattr(model, "drop_scales", lambda keys: scales)
    got = model(images(PICTURE), taps=(0, 1)).taps
    whole = model.eval()
    monkeypatch.setattr(model, "drop_scales", lambda keys: [None] * model.depth)
    before = whole(images(PICTURE), taps=(0, 1)).taps
    assert torch.equal(got[1][0], got[0][0]) and torch.equal(got[0][0], before[0][0])
    assert not torch.equal(got[0][1], before[0][1])
    block = model.blocks[0]
    block.mlp.linear2.weight.zero_()
    block.mlp.linear2.bias.zero_()
    torch.testing.assert_close(whole(images(PICTURE), taps=(0,)).taps[0][1], got[0][1])


LAYERS = {
    "swinViT.patch_embed.proj.weight": 0,
    "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table": 1,
    "swinViT.layers1.0.blocks.1.norm1.weight": 2,
    "swinViT.layers1.0.downsample.reduction.weight": 2,
    "swinViT.layers2c.0.layer.conv1.conv.weight": 3,
    "swinViT.layers2.0.blocks.0.mlp.linear1.bias": 3,
    "swinViT.layers4.0.blocks.1.attn.qkv.weight": 8,
    "swinViT.layers4.0.downsample.norm.bias": 8,
    "encoder1.layer.conv1.conv.weight": 9,
    "encoder10.layer.conv2.conv.weight": 9,
}


def test_blocks_are_numbered_through_all_stages():
    model = encoder(v2=True)
    names = dict(model.named_parameters())
    assert {name: model.layer(name) for name in LAYERS if name in names} == LAYERS
    assert {model.layer(name) for name in names} == set(range(10))


def test_the_tables_of_relative_positions_are_not_decayed():
    model = encoder()
    network = Network(model, conv.build(conv.Config(), model, TASK))
    table = model.swinViT.layers1[0].blocks[0].attn.relative_position_bias_table
    (group,) = [group for group in layer_decay_groups(network, 0.05, 0.75) if any(p is table for p in group["params"])]
    assert group["weight_decay"] == 0 and group["lr_scale"] == 0.75**8


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi", [(48, 64, 64), (32, 32, 32)])
def test_a_roi_that_does_not_suit_it_is_refused(roi):
    with pytest.raises(UserError, match=r"^encoder: swin halves images five times.* of multiples of 32$"):
        encoder((1, roi))


def test_one_place_is_no_mistake_without_skips():
    assert encoder((1, (32, 32, 32)), skips=False).grid == (1, 1, 1)


def test_heads_that_do_not_divide_the_widths_are_refused():
    with pytest.raises(
        ValidationError, match=r"heads: \[5, 6, 12, 24\] do not divide the widths of the stages, \[12, 24"
    ):
        Config(width=12, heads=(5, 6, 12, 24))


def test_masked_images_and_masked_autoencoding_are_refused_with_the_mend():
    model = encoder()
    with pytest.raises(UserError, match="^encoder: swin takes no masked images.*or vit or resenc$"):
        model(images(), keep=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(UserError, match="^encoder: mae needs one that can skip patches; use vit, resenc"):
        mae.build(mae.Config(mask_ratio=0.5), model, [SimpleNamespace(task=TASK)], 0.05)  # type: ignore[list-item]


def test_several_shapes_and_the_head_unetr_are_refused_with_the_mend():
    with pytest.raises(UserError, match="^pretrain.sources: swin takes images of one shape.*use mit or unet$"):
        swin.build(Config(), 1, (64, 64), (1, (32, 64, 64)))
    with pytest.raises(UserError, match="unetr needs one grid in all blocks.*use conv$"):
        unetr.build(unetr.Config(), encoder(), TASK)
    with pytest.raises(UserError, match="unet needs an encoder with maps from full resolution on"):
        unet.build(unet.Config(), encoder(skips=False), TASK)


@torch.no_grad()
def test_nnu_nets_decoder_and_classification_take_it():
    model = encoder()
    logits = unet.build(unet.Config(), model, TASK)(images(), model(images()))
    assert logits.shape == (2, 3, *VOLUME[1])
    assert linear.build(linear.Config(), model, TASK)(images(), model(images())).shape == (2, 3)


# From a folder to a test score ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_trains_from_a_folder_to_a_test_score(home, tmp_path):
    write_msd(tmp_path / "hippocampus", 10, 0, shape=(30, 36, 30))
    tree = {
        "task": {"name": "msd", "root": str(tmp_path / "hippocampus"), "roi": [32, 32, 64]},
        "encoder": {"name": "swin", "width": 12, "depths": [1, 1, 1, 1]},
        "pretext": "none",
        "finetune": {"steps": 4, "epochs": 2, "batch": 2, "lr": 1e-3, "validations": 1, "head": {"name": "conv"}},
        "train": {"workers": 0, "log_steps": 2, "precision": "fp32"},
    }
    outcome = runner.run(validate_experiment(tree), lambda event: None)
    assert [stage["kind"] for stage in outcome["stages"]] == ["finetune", "test"]
    assert 0 <= outcome["stages"][-1]["value"] <= 1
