"""MiT on images of other sizes: its positions, the weights that it loads, and what is refused."""

import math

import numpy as np
import pytest
import torch
from support.mit import PICTURE, SMALLER, VOLUME, encoder, image, saved

from premed.errors import UserError
from premed.models.encoders import mit
from premed.models.encoders.mit import Config
from premed.models.layers import interpolate_positions
from premed.training.artifacts import load_encoder

pytest_plugins = ["support.experiment_fixtures"]


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_positions_are_as_many_as_published():
    with torch.device("meta"):
        model = mit.build(Config(), 3, (224, 224), (1, (96, 96, 16)))
    lengths = {
        dims: [1 + math.prod(stage.embed[dims].pos_embed.shape[1:-1]) for stage in model.stages]
        for dims in ("2d", "3d")
    }
    assert lengths == {"2d": [3137, 785, 197, 50], "3d": [4609, 577, 73, 10]}


# Formulas -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_stage_embeds_adds_skip_and_positions_and_carries_the_class_token():
    model = encoder(VOLUME)
    stage, grid = model.decoder[0], (4, 6, 2)
    below, skip, summary = torch.randn(2, 32, 2, 3, 1), torch.randn(2, 16, *grid), torch.randn(2, 1, 32)
    seen = []
    stage.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stage(below, summary, grid, iter([None]), skip)
    embed = stage.embed["3d"]
    grown = torch.zeros(2, 16, *grid)
    for at in np.ndindex(*grid):  # each patch becomes 2 x 2 x 2, with a matrix for each of these
        old, corner = tuple(i // 2 for i in at), tuple(i % 2 for i in at)
        grown[(..., *at)] = below[(..., *old)] @ embed.conv.weight[(..., *corner)] + embed.conv.bias
    places = (grown + skip + embed.pos_embed.movedim(-1, 1)).flatten(2).transpose(1, 2)
    first = summary @ stage.carry.weight.T + stage.carry.bias + embed.cls_pos_embed
    torch.testing.assert_close(seen[0], torch.cat([first, places], dim=1), rtol=1e-4, atol=1e-5)


# Positions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [(8, 8), (6, 9), (8, 8, 8), (5, 12, 6)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resized_positions_keep_a_ramp_along_each_axis(old, axis):
    new, axis = (10, 7, 12)[: len(old)], axis % len(old)
    ramp = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in old), indexing="ij")[axis]
    values = interpolate_positions(ramp[None, ..., None].expand(1, *old, 3), new)
    assert values.shape == (1, *new, 3)
    values, ratio = values[0, ..., 0].movedim(axis, 0), old[axis] / new[axis]
    centres = (torch.arange(new[axis]) + 0.5) * ratio - 0.5  # in old patches
    rim = 0 if len(old) == 3 else 2 * max(ratio, 1) - 1  # how far inside a centre has all its neighbours
    inner = (centres >= rim) & (centres <= old[axis] - 1 - rim)
    assert inner.any()
    expected = centres.reshape(-1, *[1] * (len(old) - 1)).expand(values.shape)
    torch.testing.assert_close(values[inner], expected[inner], rtol=0, atol=1e-4 if ratio <= 1 else 0.03)


@pytest.mark.parametrize(("old", "new"), [((32, 48), (48, 32)), ((32, 48, 16), (16, 32, 48))])
@torch.no_grad()
def test_weights_of_another_size_load_with_all_positions_resized_and_the_class_s_as_they_were(old, new, tmp_path):
    before, after = encoder((1, old)), encoder((1, new))
    report = load_encoder(after, saved(before, tmp_path))
    assert len(report["resized"]) == 7 and all(name.endswith(".pos_embed") for name in report["resized"])
    for one, other in zip((*before.stages, *before.decoder), (*after.stages, *after.decoder), strict=True):
        one, other = (stage.embed[f"{len(old)}d"] for stage in (one, other))
        assert torch.equal(other.pos_embed, interpolate_positions(one.pos_embed, tuple(other.pos_embed.shape[1:-1])))
        assert torch.equal(other.cls_pos_embed, one.cls_pos_embed)
    torch.testing.assert_close(after(image((1, new))).tokens, before(image((1, new))).tokens)


def test_weights_of_the_same_size_are_left_alone():
    model = encoder()
    state = model.state_dict()
    fitted, changed = model.fit_state(state, model.grid)
    assert changed == [] and all(fitted[name] is state[name] for name in state)


@torch.no_grad()
def test_images_of_any_size_that_the_strides_divide_are_taken():
    model = encoder(PICTURE, VOLUME)
    assert model(image((1, (64, 16)))).grid == (32, 8)
    assert model(image((1, (16, 32, 48)))).grid == (8, 16, 24)


def test_data_sets_with_equally_many_axes_share_a_branch():
    model = mit.build(SMALLER, *PICTURE, VOLUME, (1, (16, 32)), (1, (32, 32, 32)))
    assert model.branches == ["2d", "3d"] and model.grid == encoder(PICTURE, VOLUME).grid
    assert model.state_dict().keys() == encoder(PICTURE, VOLUME).state_dict().keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((3, (32, 48)), r"^pretrain\.sources: images of 2 axes have 1 and 3 channels; mit has one stem for both"),
        ((1, (32, 20)), r"^encoder\.stem_stride: .*\(32, 20\)"),
    ],
)
def test_data_sets_that_cannot_share_a_branch_are_refused(more, message):
    with pytest.raises(UserError, match=message):
        mit.build(SMALLER, *PICTURE, VOLUME, more)


@pytest.mark.parametrize(
    ("size", "config", "message"),
    [
        ((28, 28), {}, r"encoder\.stem_stride: \[2, 2, 1\] .*\(32, 32\).*\(28, 28\)"),
        ((64, 64, 24), {}, r"encoder\.stem_stride: .*\(32, 32, 16\)"),
        ((32, 32), {}, r"encoder\.stem_stride: .* one patch"),
        ((64, 64), {"reductions": (17, 4, 2, 1)}, r"encoder\.reductions: \[17, 4, 2, 1\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(size, config, message):
    config = Config.model_validate({"size": "tiny", **config})
    with pytest.raises(UserError, match=message):
        mit.build(config, 1, size)


def test_an_image_that_the_strides_do_not_divide_is_refused_by_name():
    with pytest.raises(UserError, match=r"encoder\.stem_stride: .*\(40, 40\)"):
        encoder()(image((1, (40, 40))))
