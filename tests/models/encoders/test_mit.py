"""encoders/mit.py: UniMiSS's transformer; its sizes, its formulas, its two branches, and training with it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.mit import NUMBERS, PICTURE, VOLUME, encoder, image, saved
from torch import Tensor, nn
from torch.nn import functional as F

from premed.contracts import DataSet
from premed.errors import UserError
from premed.models.encoders import mit
from premed.models.encoders.mit import Config
from premed.models.layers import Attention, Block
from premed.pretext import mae
from premed.rng import sample_keys
from premed.training.artifacts import load_encoder

pytest_plugins = ["support.experiment_fixtures"]


def keys(n: int, epoch: int = 0) -> Tensor:
    return torch.from_numpy(sample_keys(0, "finetune", epoch, np.arange(n)))


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "total", "without_decoder"), [("small", 43.94, 28.52), ("tiny", 20.38, 13.86)])
def test_sizes_have_the_published_number_of_parameters_with_both_branches(size, total, without_decoder):
    """All weights and biases, for RGB pictures of 224 and volumes of 96 x 96 x 16 with one channel, in millions."""
    with torch.device("meta"):
        model = mit.build(Config.model_validate({"size": size}), 3, (224, 224), (1, (96, 96, 16)))
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    encoder = sum(n for name, n in counts.items() if not name.startswith(("decoder.", "norm.")))
    assert round(sum(counts.values()) / 1e6, 2) == total
    assert round(encoder / 1e6, 2) == without_decoder


@pytest.mark.parametrize(("of", "last"), [((1, (96, 64)), (3, 2)), ((2, (64, 96, 48)), (2, 3, 3))])
def test_the_pyramid_matches_the_encoder_s_attributes(of, last):
    model = encoder(of, config=Config.model_validate({"size": "tiny"}))
    with torch.no_grad():
        features = model(image(of))
    for scale, seen in zip(model.pyramid, features.pyramid, strict=True):
        assert seen.shape == (2, scale.channels, *(n // edge for n, edge in zip(of[1], scale.stride, strict=True)))
    assert features.pyramid[-1].shape[2:] == last
    assert model.pyramid[model.decoded].channels == model.width == features.summary.shape[1]
    assert features.grid == model.grid and features.tokens.shape == (2, math.prod(model.grid), model.width)
    map_of_tokens = features.tokens.transpose(1, 2).unflatten(2, model.grid)
    assert torch.equal(features.pyramid[model.decoded], map_of_tokens)


# Formulas -------------------------------------------------------------------------------------------------------------


def attention_by_hand(layer: Attention, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Softmax(q k / sqrt(d)) v for each image and head in turn; keys from blocks of patches and the class token."""
    edge, width = layer.reduction, x.shape[2]
    weights = dict(layer.named_parameters())
    answers = []
    for tokens in x.double():
        places, context = tokens[1:].reshape(*grid, width), [tokens[0]]
        for corner in np.ndindex(*(n // edge for n in grid)):
            block = places[tuple(slice(edge * i, edge * (i + 1)) for i in corner)]
            kernel = weights[f"reduce.{len(grid)}d.weight"].double()  # [out, in, *edges]
            context.append(
                torch.einsum("oik,ki->o", kernel.flatten(2), block.reshape(-1, width))
                + weights[f"reduce.{len(grid)}d.bias"]
            )
        context = torch.stack(context)
        context = (context - context.mean(1, keepdim=True)) / (context.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        context = context * weights["norm.weight"] + weights["norm.bias"]
        q = tokens @ weights["q.weight"].double().T + weights["q.bias"]
        k, v = (context @ weights["kv.weight"].double().T + weights["kv.bias"]).split(width, dim=1)
        heads, d = [], width // layer.heads
        for h in range(layer.heads):
            part = slice(h * d, (h + 1) * d)
            heads.append((q[:, part] @ k[:, part].T / math.sqrt(d)).softmax(dim=1) @ v[:, part])
        answers.append(torch.cat(heads, dim=1) @ weights["proj.weight"].double().T + weights["proj.bias"])
    return torch.stack(answers).float()


def drawn(layer: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (4, 2, 6), (5, 4, 3)])  # with and without a rest that is not seen
@torch.no_grad()
def test_attention_asks_strided_blocks_of_patches_and_the_class_token_as_it_is(grid):
    layer = drawn(Attention(8, 2, 2, ("2d", "3d")))
    x = torch.randn(2, 1 + math.prod(grid), 8)
    torch.testing.assert_close(layer(x, grid), attention_by_hand(layer, x, grid), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_reduction_attention_is_timm_s():
    from timm.models.pvt_v2 import Attention as Reference

    layer, reference = drawn(Attention(8, 2, 1, ("2d",))), Reference(8, num_heads=2)
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(2, 13, 8)
    torch.testing.assert_close(layer(x, (3, 4)), reference(x, (13, 1)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_block_adds_attention_and_an_mlp_of_four_times_the_width():
    block: Any = drawn(Block(8, 2, 2, ("2d",), bias=False))
    x = torch.randn(2, 13, 8)
    y = x + block.attn(F.layer_norm(x, (8,), block.norm1.weight, block.norm1.bias, 1e-6), (3, 4))
    hidden = F.layer_norm(y, (8,), block.norm2.weight, block.norm2.bias, 1e-6) @ block.mlp.fc1.weight.T
    hidden = hidden + block.mlp.fc1.bias
    gelu = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = y + gelu @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    assert hidden.shape[2] == 32
    torch.testing.assert_close(block(x, (3, 4)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_class_token_passes_all_stages_and_comes_out_normed():
    model = encoder()
    before = model(image(PICTURE)).summary
    torch.testing.assert_close(before.mean(dim=1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(before.var(dim=1, correction=0), torch.ones(2), atol=0.01, rtol=0)
    for stage in (*model.stages[1:], *model.decoder):
        kept = stage.carry.bias.clone()
        stage.carry.bias.add_(torch.linspace(-1, 1, len(kept)))
        assert not torch.allclose(before, model(image(PICTURE)).summary, atol=1e-4)
        stage.carry.bias.copy_(kept)


@torch.no_grad()
def test_skips_lead_from_each_stage_to_the_decoder_stage_of_its_grid():
    model = encoder()
    given = []
    for stage in model.decoder:
        stage.register_forward_pre_hook(lambda _, inputs: given.append(inputs[-1]))
    features = model(image(PICTURE), taps=(0, 1, 2))
    for skip, i in zip(given, (2, 1, 0), strict=True):
        assert torch.equal(skip.flatten(2).transpose(1, 2), features.taps[i])


# Two branches, one body -----------------------------------------------------------------------------------------------


def own(name: str) -> set[str]:
    """The branch that a parameter belongs to; none, where it is shared."""
    return {"2d", "3d"}.intersection(name.split("."))


def test_pictures_and_volumes_pass_through_the_same_attention_and_mlp_tensors():
    model, used = encoder(PICTURE, VOLUME), []
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_hook(lambda layer, *_: used.append(layer.weight.data_ptr()))
    tensors = []
    for of in (PICTURE, VOLUME):
        used.clear()
        model(image(of))
        tensors.append(list(used))
    assert tensors[0] == tensors[1]
    shared = {p.data_ptr() for name, p in model.named_parameters() if name.endswith("weight") and not own(name)}
    assert set(tensors[0]) == shared


@pytest.mark.parametrize(("of", "kept", "other"), [(PICTURE, "2d", "3d"), (VOLUME, "3d", "2d")])
def test_one_branch_s_pass_leaves_every_parameter_of_the_other_without_gradient(of, kept, other):
    model = encoder(PICTURE, VOLUME)
    features = model(image(of))
    sum(part.square().mean() for part in (features.summary, *features.pyramid)).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if own(name) == {other}}
    assert without and all(own(name) <= {kept} for name, _ in model.named_parameters() if name not in without)


def test_a_network_for_one_kind_of_image_holds_what_that_one_needs():
    both = {name for name, _ in encoder(PICTURE, VOLUME).named_parameters()}
    for of, other in ((PICTURE, "3d"), (VOLUME, "2d")):
        assert {name for name, _ in encoder(of).named_parameters()} == {n for n in both if own(n) != {other}}


@pytest.mark.parametrize("of", [PICTURE, VOLUME])
@torch.no_grad()
def test_one_branch_loads_strictly_from_two_and_reports_what_was_dropped(of, tmp_path):
    both, one = drawn(encoder(PICTURE, VOLUME)).eval(), encoder(of)
    report = load_encoder(one, saved(both, tmp_path))
    assert set(report["dropped"]) == set(both.state_dict()) - set(one.state_dict())
    assert (report["loaded"], report["missing"], report["resized"]) == (len(one.state_dict()), [], [])
    assert torch.equal(one(image(of)).summary, both(image(of)).summary)


def test_two_branches_load_strictly_from_two_in_whatever_order_and_never_from_one(tmp_path):
    both, same = drawn(encoder(PICTURE, VOLUME)), encoder(VOLUME, PICTURE)
    report = load_encoder(same, saved(both, tmp_path / "both"))
    assert report["dropped"] == [] and report["loaded"] == len(both.state_dict())
    with pytest.raises(UserError, match=r"do not fit the network \(missing: .*\.3d\."):
        load_encoder(same, saved(encoder(PICTURE), tmp_path / "one"))


# Settings, layers, drop path ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": "base"}, "'base' is not one of tiny, small"),
        ({"heads": (1, 2, 3, 8)}, "heads: .* do not divide the widths"),
        ({"decoder_heads": (8, 4, 5)}, "decoder_heads: .* do not divide the widths"),
        ({"depths": (1, 1, 1)}, "depths"),
        ({"stem_stride": (2, 2, 0)}, "stem_stride"),
    ],
)
def test_settings_that_make_no_encoder_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(config)


def test_a_number_beside_the_size_wins():
    config = Config.model_validate({"size": "tiny", "depths": (1, 2, 1, 1)})
    assert (config.depths, config.decoder_depths) == ((1, 2, 1, 1), (1, 1, 1))


def test_hidden_patches_are_refused_by_name():
    with pytest.raises(UserError, match="encoder: mit takes no masked images"):
        encoder()(image(PICTURE), keep=torch.zeros(2, 1, dtype=torch.int64))


def test_mae_on_it_is_refused_before_anything_is_trained():
    task: Any = type("Task", (), {"channels": 1})()
    with pytest.raises(UserError, match="encoder: mae needs one that can skip patches"):
        mae.build(mae.Config(), encoder(), [DataSet(task, "")], 0.05)


def test_layers_count_from_the_stem_through_the_decoder_to_the_last_norm():
    model = encoder(
        PICTURE, VOLUME, config=Config.model_validate({**NUMBERS, "depths": (1, 2, 1, 1), "decoder_depths": (1, 2, 1)})
    )
    layers = {name: model.layer(name) for name, _ in model.named_parameters()}
    assert model.depth == 9
    assert {name.split(".")[0] for name, i in layers.items() if i == 0} == {"cls_token", "stem", "stages"}
    assert {name for name, i in layers.items() if i == 10} == {"norm.weight", "norm.bias"}
    assert layers["stages.0.embed.2d.pos_embed"] == 0 and layers["stages.0.blocks.0.attn.q.weight"] == 1
    assert layers["stages.1.embed.3d.conv.conv.weight"] == 2 == layers["stages.1.carry.weight"]
    assert [layers[f"stages.1.blocks.{i}.mlp.fc1.weight"] for i in range(2)] == [2, 3]
    assert layers["decoder.0.embed.2d.conv.weight"] == 6 == layers["decoder.0.blocks.0.norm1.bias"]
    assert layers["decoder.2.blocks.0.attn.reduce.3d.weight"] == 9
    assert set(layers.values()) == set(range(11))


def test_taps_are_what_the_blocks_left_each_on_its_own_grid():
    model, left = encoder(), []
    for stage in (*model.stages, *model.decoder):
        stage.blocks[-1].register_forward_hook(lambda _module, _inputs, output: left.append(output))
    features = model(image(PICTURE), taps=(1, 6))
    assert set(features.taps) == {1, 6}
    assert all(torch.equal(tapped, left[i][:, 1:]) for i, tapped in features.taps.items())


def test_drop_path_acts_in_every_block_but_the_first_and_is_a_function_of_the_key():
    model = encoder().train()
    model.drop_path = 0.9
    together = model(image(PICTURE, 8), keys=keys(8)).summary
    assert torch.equal(together, model(image(PICTURE, 8), keys=keys(8)).summary)
    assert not torch.equal(together, model(image(PICTURE, 8), keys=keys(8, epoch=1)).summary)
    for i in range(8):
        alone = model(image(PICTURE, 8)[i : i + 1], keys=keys(8)[i : i + 1]).summary
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-3, atol=1e-4)
    scales = []
    for stage in (*model.stages, *model.decoder):
        stage.blocks[0].register_forward_pre_hook(lambda _, inputs: scales.append(inputs[2]))
    model(image(PICTURE, 8), keys=keys(8))
    dropped = [bool((scale == 0).any()) for scale in scales]
    assert not dropped[0] and all(dropped[2:])
    plain = model(image(PICTURE, 8)).summary
    assert torch.equal(plain, model.eval()(image(PICTURE, 8), keys=keys(8)).summary)
