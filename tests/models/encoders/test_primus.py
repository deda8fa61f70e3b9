"""encoders/vit.py with the options of Primus: equal to its own package's; rotary positions; hidden voxels; MAE."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support import stages
from support.primus_reference import (
    CASES,
    CHANNELS,
    DEPTH,
    HEADS,
    NUM_CLASSES,
    VISIBLE,
    WIDTH,
    Case,
    fill,
    image,
    read,
    some,
)

from premed.config.spec import canonical
from premed.contracts import Batch, DataSet
from premed.data.phantoms.writers import write_msd
from premed.errors import UserError
from premed.models.encoders import vit
from premed.models.encoders.vit import Config, ViT
from premed.models.eva import EvaBlock, rotary
from premed.models.heads import patch_decoder
from premed.models.patches import patchify, unpatchify
from premed.pretext import mae
from premed.pretext.common import vit_weights
from premed.rng import sample_keys


def config(size: str = "primus-s", **changes: Any) -> Config:
    return Config.model_validate({"size": size, "width": WIDTH, "depth": DEPTH, "heads": HEADS, **changes})


def encoder(roi=(16, 24, 32), channels=CHANNELS, **changes) -> ViT:
    torch.manual_seed(0)
    return vit.build(config(**changes), channels, roi).eval()


def task(dims: int = 3) -> Any:
    return SimpleNamespace(dims=dims, channels=CHANNELS, classes=tuple("abc"[:NUM_CLASSES]))


# Equal to dynamic-network-architectures -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_features_and_logits_are_those_of_its_own_package(name):
    case: Case = CASES[name]
    model = encoder(case.roi, patch=case.patch, registers=case.registers, stem=case.stem)
    head = patch_decoder.build(patch_decoder.Config(), model, task())
    fill(model.named_parameters())
    fill((f"head.{name}", parameter) for name, parameter in head.named_parameters())
    features = model(image(case), keep=VISIBLE if case.masked else None)
    outputs = [features.tokens] if case.masked else [features.tokens, head(image(case), features)]
    assert len(outputs) == len(read(name))
    for seen, expected in zip(outputs, read(name), strict=True):
        np.testing.assert_allclose(some(seen), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("size", "number"),
    [("primus-s", 26_061_156), ("primus-b", 97_285_320), ("primus-m", 150_997_536), ("primus-l", 330_725_472)],
)
def test_sizes_have_as_many_weights_as_in_its_package(size, number):
    """Without the decoder, for one channel and 160 voxels an edge, counted in 0.4.4."""
    with torch.device("meta"):
        model = vit.build(Config.model_validate({"size": size}), 1, (160,) * 3)
    assert sum(parameter.numel() for parameter in model.parameters()) == number


@pytest.mark.parametrize("swiglu", [True, False])
@torch.no_grad()
def test_its_blocks_are_timm_s_with_timm_s_weights(swiglu):
    from timm.models.eva import EvaBlock as Reference

    torch.manual_seed(0)
    theirs = Reference(
        24, 2, qkv_fused=False, mlp_ratio=8 / 3 if swiglu else 4, swiglu_mlp=swiglu, scale_mlp=True,
        scale_attn_inner=True, init_values=0.3, num_prefix_tokens=2, norm_layer=torch.nn.LayerNorm,
    )  # fmt: skip
    ours = EvaBlock(24, 2, layer_scale=0.3, swiglu=swiglu, inner_norm=True, num_prefix=2)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    x, rotation = torch.randn(3, 8, 24), rotary((2, 3), 24, 2)
    torch.testing.assert_close(ours(x, None, rotation), theirs(x, rotation), rtol=1e-4, atol=1e-4)


# Rotary positions -----------------------------------------------------------------------------------------------------


def turned(x: torch.Tensor, place: tuple[int, ...]) -> torch.Tensor:
    """A head's channels [D] as they are at a place, written out."""
    share = len(x) // len(place)
    parts = []
    for at, channels in zip(place, x.split(share), strict=True):
        for i, (a, b) in enumerate(channels.view(-1, 2).tolist()):
            angle = at * 10000 ** (-i / (share // 2))
            parts += [a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)]
    return torch.tensor(parts)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 4), (1, 5, 2)])
def test_queries_and_keys_are_turned_axis_by_axis(grid):
    from timm.layers import apply_rot_embed_cat

    torch.manual_seed(0)
    x = torch.randn(math.prod(grid), 24)
    expected = torch.stack([turned(row, place) for row, place in zip(x, np.ndindex(*grid), strict=True)])
    torch.testing.assert_close(apply_rot_embed_cat(x, rotary(grid, 48, 2)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@torch.no_grad()
def test_with_rotary_positions_alone_features_depend_on_distances_alone(axis):
    """The same patches moved by one place, whatever is left behind, give the same features; moved apart, others."""
    model = encoder((32, 32, 32), position="none")  # a class token or register has no place: it is met at absolute ones
    fill(model.named_parameters())
    patches, grid = torch.randn(5, CHANNELS * 8**3), model.grid
    places = torch.tensor([[0, 0, 0], [1, 0, 2], [2, 2, 1], [0, 1, 1], [2, 1, 0]])

    def seen(at: torch.Tensor) -> torch.Tensor:
        keep = torch.from_numpy(np.ravel_multi_index(tuple(at.T.numpy()), grid))[None]
        rows = torch.zeros(1, math.prod(grid), patches.shape[1]).index_copy(1, keep[0], patches[None])
        return model(unpatchify(rows, grid, model.patch), keep=keep).tokens

    here, step = seen(places), torch.eye(3, dtype=torch.int64)[axis]
    torch.testing.assert_close(seen(places + step), here, rtol=1e-3, atol=1e-4)
    apart = places + step * torch.tensor([[1], [0], [0], [0], [0]])
    assert (seen(apart) - here).abs().max() > 0.1


@pytest.mark.parametrize(("roi", "multiple"), [((16, 16), 4), ((16,) * 3, 6)])
def test_heads_that_cannot_be_shared_out_among_the_axes_are_refused_by_name(roi, multiple):
    with pytest.raises(UserError, match=rf"encoder\.heads: .* a head 10 channels.* multiple of {multiple}"):
        encoder(roi, width=20, heads=2)


# What it looks at -----------------------------------------------------------------------------------------------------

STEMS = pytest.mark.parametrize("stem", ["patch", "residual"])


@STEMS
@pytest.mark.parametrize("roi", [(16, 24), (16, 24, 16)])
@torch.no_grad()
def test_hidden_voxels_set_to_nan_change_no_feature(stem, roi):
    model, image = encoder(roi, stem=stem, stem_width=4, registers=2), torch.randn(2, CHANNELS, *roi)
    keep = torch.tensor([[5, 0, 3], [1, 2, 4]])
    rows = patchify(image, model.patch)
    visible = torch.zeros(2, rows.shape[1], 1, dtype=torch.bool).scatter(1, keep[..., None], True)
    spoilt = unpatchify(rows.masked_fill(~visible, math.nan), model.grid, model.patch)
    first, second = (model(x, keep=keep, taps=(0, 2)) for x in (image, spoilt))
    assert first.tokens.isfinite().all() and torch.equal(first.tokens, second.tokens)
    assert all(torch.equal(first.taps[i], second.taps[i]) for i in (0, 2))
    assert not torch.equal(first.tokens, model(image + 1, keep=keep).tokens)


@torch.no_grad()
def test_the_residual_stem_sees_a_visible_slab_as_if_nothing_were_beside_it():
    whole, alone = (encoder(roi, stem="residual", stem_width=4, position="none") for roi in ((24, 16, 16), (8, 16, 16)))
    alone.load_state_dict(whole.state_dict())
    image, slab = torch.randn(2, CHANNELS, 24, 16, 16), torch.arange(4, 8).expand(2, -1)
    seen = whole.patch_embed(image, slab)
    torch.testing.assert_close(seen, alone.patch_embed(image[:, :, 8:16]), rtol=1e-3, atol=1e-4)


@STEMS
@torch.no_grad()
def test_looking_at_all_patches_in_another_order_only_reorders_the_tokens(stem):
    model, image, order = encoder(stem=stem, stem_width=4), torch.randn(2, CHANNELS, 16, 24, 32), torch.randperm(24)
    everything, shuffled = model(image, taps=(1,)), model(image, keep=order.expand(2, -1), taps=(1,))
    torch.testing.assert_close(shuffled.tokens, everything.tokens[:, order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shuffled.taps[1], everything.taps[1][:, order], rtol=1e-3, atol=1e-4)


def test_drop_path_is_a_function_of_the_samples_key_alone():
    model, image = encoder().train(), torch.randn(6, CHANNELS, 16, 24, 32)
    model.drop_path, keys = 0.9, torch.arange(6) * 977
    together = model(image, keys=keys).tokens
    apart = torch.cat([model(image[i : i + 1], keys=keys[i : i + 1]).tokens for i in range(6)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert not torch.equal(together, model(image).tokens)
    assert torch.equal(model.eval()(image, keys=keys).tokens, model(image).tokens)


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_token", [False, True])
@torch.no_grad()
def test_weights_of_another_grid_load_strictly_with_positions_resized(class_token):
    old, new = (encoder(roi, class_token=class_token) for roi in ((16, 24, 32), (24, 24, 16)))
    state, resized = new.fit_state(old.state_dict(), old.grid)
    new.load_state_dict(state)
    assert resized == ["pos_embed"] and new.pos_embed is not None
    assert new.pos_embed.shape[1] == 18 + class_token
    without = encoder((24, 24, 16), position="none")
    state = encoder((16, 24, 32), position="none").state_dict()
    assert without.fit_state(state, old.grid) == (state, [])


def test_layers_count_from_the_embedding_to_the_last_norm():
    model = encoder(registers=1, class_token=True, stem="residual")
    layers = {name: model.layer(name) for name, _ in model.named_parameters()}
    assert {layers[name] for name in layers if not name.startswith(("blocks", "norm"))} == {0}
    assert layers["blocks.0.gamma_1"] == 1 and layers["blocks.2.mlp.fc1_g.weight"] == 3 and layers["norm.bias"] == 4


def test_first_weights_have_primus_deviations():
    model = encoder(width=192, heads=4, depth=4)
    assert model.pos_embed is not None and model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    for number, block in enumerate(model.blocks, start=1):
        assert block.attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)  # type: ignore[union-attr]
        for last in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
            assert last.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.1)  # type: ignore[union-attr, operator]


def test_weights_of_a_plain_vit_are_refused_with_the_options_to_leave_out():
    with pytest.raises(
        UserError, match=r"^encoder\.rotary: .*leave out rotary, layer_scale, mlp, inner_norm, class_token"
    ):
        vit_weights.refuse_shape("pretext.model: vit_base", encoder((32, 32)), WIDTH, DEPTH, HEADS)
    assert encoder((32, 32)).timm() is None


# Settings -------------------------------------------------------------------------------------------------------------


def test_the_options_are_in_no_digest_of_a_plain_vit():
    plain = Config(width=24, depth=3, heads=2, patch=8)
    assert canonical(plain) == '{"depth":3,"heads":2,"name":"vit","patch":8,"version":1,"width":24}'
    options = [{"rotary": True}, {"layer_scale": 0.1}, {"mlp": "swiglu"}, {"stem": "residual"}, {"registers": 1}]
    options += [{"position": "learned"}, {"class_token": False}, {"inner_norm": True}, {"init": "primus"}]
    digests = {plain.model_copy(update=each).digest() for each in [{}, *options]}
    assert len(digests) == 1 + len(options)
    assert plain.model_copy(update={"stem_width": 8}).digest() == plain.digest()


def test_a_field_beside_the_size_wins():
    seen = Config.model_validate({"size": "primus-m", "rotary": False, "depth": 2})
    assert (seen.width, seen.depth, seen.patch, seen.rotary, seen.mlp) == (864, 2, 8, False, "swiglu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "primus-x"}, "'primus-x' is not one of tiny, small, base, primus-s"),
        ({"layer_scale": 0}, "greater than 0"),
        ({"position": "rotary"}, "'sincos', 'learned' or 'none'"),
        ({"registers": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_make_no_encoder_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(settings)


@pytest.mark.parametrize(
    ("roi", "patch"), [((24, 24, 24), 12), ((16, 16, 16), (8, 8, 4)), ((16, 16, 16), 16), ((16, 16, 16), 1)]
)
def test_a_patch_that_the_residual_stem_cannot_halve_to_is_refused_by_name(roi, patch):
    with pytest.raises(UserError, match=r"encoder\.patch: .*stem: residual"):
        encoder(roi, patch=patch, stem="residual")


# MAE ------------------------------------------------------------------------------------------------------------------


def objective(roi=(16, 24, 32), **changes) -> mae.MAE:
    images = SimpleNamespace(roi=roi, channels=CHANNELS, dims=len(roi))
    config = mae.Config(decoder_width=24, decoder_depth=1, decoder_heads=2)
    return mae.build(config, encoder(roi, **changes), [DataSet(images, "")], 0.05)  # type: ignore[arg-type]


def keys_of(n: int) -> torch.Tensor:
    return torch.from_numpy(sample_keys(0, "pretrain", 0, np.arange(n)))


@STEMS
def test_mae_learns_every_weight_positions_too(stem):
    model = objective(stem=stem, stem_width=4, registers=1)
    model(Batch(torch.randn(2, CHANNELS, 16, 24, 32), keys_of(2), ("a", "b")), 0.0)[0].backward()
    assert {name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()} == set()


def test_mae_keeps_sines_and_cosines_fixed_under_rotary_positions():
    model = objective(position="sincos", class_token=True)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"encoder.pos_embed"}


@STEMS
@torch.no_grad()
def test_mae_s_prediction_does_not_see_the_hidden_voxels(stem, monkeypatch):
    model, image = objective(stem=stem, stem_width=4), torch.randn(2, CHANNELS, 16, 24, 32)
    target = model.target(image)
    monkeypatch.setattr(model, "target", lambda image: target)
    losses, hide = model.losses(image, keys_of(2))[0], model.mask(keys_of(2))[1]
    rows = patchify(image, (8, 8, 8))
    rows = rows.scatter(1, hide[..., None].expand(-1, -1, rows.shape[2]), math.nan)
    assert torch.equal(model.losses(unpatchify(rows, (2, 3, 4), (8, 8, 8)), keys_of(2))[0], losses)


# From one process to the next -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_killed_training_goes_on_as_if_nothing_had_been(kind, tmp_path):
    root = write_msd(tmp_path / "hippocampus", 8, 0, shape=(24, 30, 16))
    volumes = {"name": "msd", "root": str(root), "roi": [24, 32, 16], "percentiles": [0.5, 99.5], "normalise": "zscore"}
    size = {"size": "primus-s", "width": WIDTH, "depth": 2, "heads": HEADS, "patch": 8}
    changes: dict = {"task": volumes, "encoder": size, "pretext": {"decoder_width": 24}}
    changes["pretrain"] = {"augment": {"scale": None}}
    changes["finetune"] = {"head": {"name": "patch_decoder"}, "augment": {"scale": None}}
    if kind == "finetune":
        changes |= {"pretext": {"name": "none"}, "pretrain": None}
    killed, whole = (stages.jobs(root, tmp_path / each, **changes)[kind] for each in ("killed", "whole"))
    assert stages.run(killed, kill="saved 4") == [-9] and stages.run(killed) == [0]
    assert stages.run(whole) == [0]
    assert stages.outcome(killed) == stages.outcome(whole)
