"""encoders/vit.py: equal to timm's ViT; patches, positions, drop path."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.suite import examples

from premed.config.spec import canonical
from premed.contracts import Features
from premed.errors import UserError
from premed.models import patches
from premed.models.encoders import vit
from premed.models.encoders.vit import Config, ViT
from premed.models.heads import linear
from premed.models.patches import PatchEmbed, patchify, sincos, take, unpatchify
from premed.pretext import mae
from premed.rng import sample_keys

TINY = Config(width=24, depth=3, heads=2, patch=8)


def encoder(roi=(32, 32), channels=1, config=TINY) -> ViT:
    torch.manual_seed(0)
    return vit.build(config, channels, roi).eval()


def keys(n: int, epoch: int = 0) -> torch.Tensor:
    return torch.from_numpy(sample_keys(0, "finetune", epoch, np.arange(n)))


# Equal to timm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi", [(32, 32), (48, 32)])
def test_logits_are_timms_with_timms_weights(roi):
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    reference = VisionTransformer(
        img_size=roi, patch_size=8, in_chans=3, num_classes=5, embed_dim=24, depth=3, num_heads=2
    )
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # norms, biases, positions and the class token too
    state = reference.state_dict()
    ours, head = encoder(roi, channels=3), linear.Linear(linear.Config(), 24, 5)
    head.fc.load_state_dict({name: state.pop(f"head.{name}") for name in ("weight", "bias")})
    ours.load_state_dict(state)
    image = torch.randn(4, 3, *roi)
    torch.testing.assert_close(head(image, ours(image)), reference.eval()(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_sizes_have_timms_names_and_shapes(size):
    import timm

    with torch.device("meta"):
        reference = timm.create_model(f"vit_{size}_patch16_224", num_classes=0).state_dict()
        ours = ViT(Config.model_validate({"size": size}), 3, (224, 224)).state_dict()
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in reference.items()}


# What it looks at -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi", [(32, 24), (16, 24, 32)])
@torch.no_grad()
def test_visible_patches_alone_are_embedded_and_each_as_among_all(roi, monkeypatch):
    model, image = encoder(roi), torch.randn(2, 1, *roi)
    keep, rows = torch.tensor([[5, 0, 3], [1, 2, 4]]), []
    linear = patches.F.linear
    monkeypatch.setattr(patches.F, "linear", lambda x, *more: rows.append(x.shape[1]) or linear(x, *more))
    visible, everything = model.patch_embed(image, keep), model.patch_embed(image)
    assert rows == [3, math.prod(model.grid)]
    torch.testing.assert_close(visible, take(everything, keep))


@pytest.mark.parametrize("roi", [(32, 24), (16, 24, 32)])
def test_hidden_patches_do_not_reach_the_visible_ones(roi):
    model = encoder(roi)
    keep = torch.tensor([[5, 0, 3], [1, 2, 4]])
    patches = torch.randn(2, math.prod(model.grid), 8 ** len(roi))
    other = torch.randn_like(patches).scatter(1, keep[..., None].expand(-1, -1, patches.shape[2]), 0)
    visible = torch.zeros_like(patches).scatter(1, keep[..., None].expand(-1, -1, patches.shape[2]), 1) * patches
    first, second = (model(unpatchify(x, model.grid, model.patch), keep=keep) for x in (patches, visible + other))
    assert first.tokens.shape == (2, 3, 24)
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.summary, second.summary)


def test_looking_at_all_patches_in_another_order_only_reorders_the_tokens():
    model, image, order = encoder(), torch.randn(2, 1, 32, 32), torch.randperm(16)
    everything, shuffled = model(image), model(image, keep=order.expand(2, -1))
    torch.testing.assert_close(shuffled.tokens, everything.tokens[:, order], rtol=1e-4, atol=1e-5)


def test_taps_are_what_the_blocks_left():
    model, image = encoder(), torch.randn(2, 1, 32, 32)
    left = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _module, _inputs, output, i=i: left.update({i: output}))
    features: Features = model(image, taps=(0, 2))
    assert set(features.taps) == {0, 2} and features.grid == (4, 4)
    for i, tapped in features.taps.items():
        assert torch.equal(tapped, left[i][:, 1:])


# Patches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [(4, 4), (8, 4), (4, 4, 4), (2, 8, 4)])
@pytest.mark.parametrize("content", ["random", "ramp"])
def test_embedding_patches_is_the_strided_convolution(channels, patch, content):
    embed = PatchEmbed(channels, 12, patch)
    shape = (2, channels, *(edge * (2 + i) for i, edge in enumerate(patch)))
    image = torch.randn(shape) if content == "random" else torch.arange(math.prod(shape)).reshape(shape) / 1000
    image.requires_grad_()
    convolved = embed.proj(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(image), convolved, rtol=1e-4, atol=1e-4)
    weights = embed.proj.weight
    ours, theirs = (torch.autograd.grad(out.square().mean(), [image, weights]) for out in (embed(image), convolved))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=examples(50))
@given(
    axes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=2, max_size=3),
    channels=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_unpatchify_undoes_patchify(axes, channels, batch):
    grid, patch = zip(*axes, strict=True)
    image = torch.randn(batch, channels, *(n * edge for n, edge in axes))
    patches = patchify(image, patch)
    assert patches.shape == (batch, math.prod(grid), channels * math.prod(patch))
    assert torch.equal(unpatchify(patches, grid, patch), image)


def test_patches_come_in_raster_order():
    image = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert patchify(image, (2, 3))[0].tolist() == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
        [12, 13, 14, 18, 19, 20],
        [15, 16, 17, 21, 22, 23],
    ]


# Positions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "width"), [((3, 4), 16), ((2, 3, 4), 24)])
def test_positions_are_sines_and_cosines_axis_by_axis(grid, width):
    n = width // (2 * len(grid))
    expected = []
    for place in np.ndindex(*grid):
        row = []
        for at in place:
            row += [math.sin(at / 10000 ** (i / n)) for i in range(n)]
            row += [math.cos(at / 10000 ** (i / n)) for i in range(n)]
        expected.append(row)
    np.testing.assert_allclose(sincos(grid, width)[0], expected, atol=1e-6)


def test_positions_start_fixed_with_zeros_for_the_class_token():
    positions = encoder((32, 48)).pos_embed
    assert not positions[:, 0].any()
    assert torch.equal(positions[:, 1:], sincos((4, 6), 24))


@pytest.mark.parametrize(("roi", "width", "multiple"), [((16,) * 3, 32, 6), ((16,) * 2, 10, 4)])
def test_a_width_that_cannot_be_split_is_refused_by_name(roi, width, multiple):
    config = Config(width=width, depth=1, heads=2, patch=8)
    with pytest.raises(UserError, match=rf"encoder\.width: {width} .*{len(roi)} axes.*multiple of {multiple}"):
        encoder(roi, config=config)


@pytest.mark.parametrize("old_roi", [(32, 32), (64, 48), (32, 32, 32), (24, 48, 32)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resized_positions_keep_a_ramp_along_each_axis(old_roi, axis):
    dims = len(old_roi)
    old, new = encoder(old_roi), encoder((48, 64, 40)[:dims])
    axis %= dims
    ramp = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in old.grid), indexing="ij")[axis]
    places = torch.cat([torch.full((1, 1), 7.0), ramp.reshape(-1, 1)])[None].expand(-1, -1, 24)
    state, resized = new.fit_state({**old.state_dict(), "pos_embed": places}, old.grid)
    assert resized == ["pos_embed"] and state["pos_embed"].shape == new.pos_embed.shape
    assert (state["pos_embed"][:, 0] == 7).all()
    values = state["pos_embed"][0, 1:, 0].unflatten(0, new.grid).movedim(axis, 0)
    ratio = old.grid[axis] / new.grid[axis]
    centres = (torch.arange(new.grid[axis]) + 0.5) * ratio - 0.5  # in old patches
    rim = 0 if dims == 3 else 2 * max(ratio, 1) - 1  # how far a centre must be inside to have all its neighbours
    inner = (centres >= rim) & (centres <= old.grid[axis] - 1 - rim)
    expected = centres.reshape(-1, *[1] * (dims - 1)).expand(values.shape)
    assert inner.any()
    torch.testing.assert_close(values[inner], expected[inner], rtol=0, atol=1e-4 if ratio <= 1 else 0.02)


@pytest.mark.parametrize("old_roi", [(32, 32), (64, 80), (24, 64)])
def test_pictures_positions_are_resized_as_timm_does(old_roi):
    from timm.layers import resample_abs_pos_embed

    old, new = encoder(old_roi), encoder((48, 64))
    reference = resample_abs_pos_embed(old.pos_embed, list(new.grid), list(old.grid))
    torch.testing.assert_close(new.fit_state(old.state_dict(), old.grid)[0]["pos_embed"], reference.detach())


def test_weights_of_the_same_grid_are_left_alone():
    model = encoder()
    state = model.state_dict()
    assert model.fit_state(state, (4, 4)) == (state, [])


def test_weights_of_another_grid_load_strictly_and_run():
    old, new = encoder((32, 32, 32)), encoder((48, 32, 64))
    new.load_state_dict(new.fit_state(old.state_dict(), old.grid)[0])
    assert new(torch.randn(1, 1, 48, 32, 64)).tokens.isfinite().all()


# Drop path ------------------------------------------------------------------------------------------------------------


def dropping(rate: float) -> ViT:
    model = encoder(config=Config(width=8, depth=5, heads=1, patch=8)).train()
    model.drop_path = rate
    return model


def scales(model: ViT, of: torch.Tensor) -> torch.Tensor:
    """[depth, 2, B]"""
    return torch.stack([s for s in model.drop_scales(of) if s is not None])[..., 0, 0]


def test_drop_path_grows_from_none_to_its_rate_and_keeps_the_mean():
    drawn = scales(dropping(0.4), keys(4000))
    rates = (drawn == 0).float().mean(dim=(1, 2))
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4], atol=0.03)
    np.testing.assert_allclose(drawn.mean(dim=(1, 2)), 1, atol=0.05)


def test_drop_path_draws_each_branch_and_block_on_its_own():
    dropped = (scales(dropping(0.4), keys(4000)) == 0)[1:].flatten(0, 1).float()
    correlation = torch.corrcoef(dropped) - torch.eye(len(dropped))
    assert correlation.abs().max() < 0.08


def test_drop_path_is_a_function_of_the_samples_key_alone():
    model, image = dropping(0.9), torch.randn(8, 1, 32, 32)
    together = model(image, keys=keys(8)).tokens
    assert torch.equal(together, model(image, keys=keys(8)).tokens)
    assert not torch.equal(together, model(image, keys=keys(8, epoch=1)).tokens)
    for i in range(8):
        alone = model(image[i : i + 1], keys=keys(8)[i : i + 1]).tokens
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_drop_path_is_off_in_evaluation_and_without_keys():
    model, image = dropping(0.9), torch.randn(4, 1, 32, 32)
    without_keys = model(image).tokens
    assert torch.equal(without_keys, model.eval()(image, keys=keys(4)).tokens)


# Settings -------------------------------------------------------------------------------------------------------------


def test_a_number_beside_the_size_wins():
    config = Config.model_validate({"size": "tiny", "depth": 2})
    assert (config.width, config.depth, config.heads) == (192, 2, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": "giant"}, "'giant' is not one of tiny, small, base"),
        ({"size": ["tiny"]}, "is not one of tiny, small, base"),
        ({"width": 50, "heads": 3}, "width 50 is not a multiple of heads 3"),
        ({"patch": 0}, "at least 1"),
        ({"patch": [8, -8]}, "at least 1"),
        ({"patches": 16}, "patches"),
    ],
)
def test_settings_that_make_no_encoder_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(config)


@pytest.mark.parametrize(("patch", "roi"), [(8, (36, 32)), ((8, 8), (32, 32, 32)), ((8, 8, 5), (32, 32, 32))])
def test_a_patch_that_does_not_tile_the_roi_is_refused_by_name(patch, roi):
    with pytest.raises(UserError, match=r"encoder\.patch"):
        encoder(roi, config=Config(width=24, depth=1, heads=2, patch=patch))


def test_layers_count_from_the_embedding_to_the_last_norm():
    model = encoder()
    layers = {name: model.layer(name) for name, _ in model.named_parameters()}
    assert {name for name, i in layers.items() if i == 0} == {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }
    assert layers["blocks.0.attn.qkv.weight"] == 1 and layers["blocks.2.mlp.fc2.bias"] == 3
    assert {name for name, i in layers.items() if i == 4} == {"norm.weight", "norm.bias"}


# Initial weights ------------------------------------------------------------------------------------------------------


def test_timm_s_initial_weights_have_the_distribution_of_timm_s():
    """Parameter by parameter: zeros and ones are equal, random weights have timm's deviation and reach."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    config = Config(width=192, depth=3, heads=3, patch=8, init="timm")
    ours = dict(encoder((64, 64), 1, config).named_parameters())
    reference = VisionTransformer(64, 8, 1, 0, embed_dim=192, depth=3, num_heads=3)
    for name, theirs in reference.named_parameters():
        mine = ours.pop(name)
        assert mine.shape == theirs.shape
        if theirs.std() == 0 or mine.std() == 0:
            assert torch.equal(mine, theirs), name
        else:
            assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.2), name
            assert mine.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.5), name
    assert not ours


def test_the_initialisation_is_in_the_digest_only_where_it_is_not_mae_s():
    assert "init" not in canonical(TINY)
    assert TINY.digest() != TINY.model_copy(update={"init": "timm"}).digest()


def test_mae_refuses_positions_that_it_would_not_train():
    with pytest.raises(UserError, match="encoder.init: .*only: .none"):
        mae.build(mae.Config(), encoder(config=TINY.model_copy(update={"init": "timm"})), [None], 0.05)  # type: ignore[list-item]


def test_a_head_of_xavier_s_weights_has_their_deviation():
    torch.manual_seed(0)
    width, classes = 256, 64
    for init, deviation in (("mae", 2e-5), ("xavier", math.sqrt(2 / (width + classes)))):
        weight = linear.Linear(linear.Config(init=init), width, classes).fc.weight
        assert weight.std().item() == pytest.approx(deviation, rel=0.05)


# Attention on CPUs ----------------------------------------------------------------------------------------------------


def fused_calls(step) -> int:
    """How often `step` calls PyTorch's fused attention."""
    with torch.profiler.profile() as profiled:
        step()
    return sum("scaled_dot_product" in event.key for event in profiled.key_averages())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_in_bf16_on_a_cpu_attention_is_matrix_products_that_give_the_same(precision):
    """The backward pass of the fused kernel takes half of a step there."""
    vit_, image = encoder(), torch.randn(2, 1, 32, 32)

    def step():
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            return vit_(image).tokens

    assert bool(fused_calls(step)) == (precision == torch.float32)
    torch.testing.assert_close(step().float(), vit_(image).tokens, atol=0.05, rtol=0.05)


def test_many_tokens_keep_the_fused_kernel_that_needs_little_memory():
    vit_, image = encoder((256, 136)), torch.randn(1, 1, 256, 136)  # 544 patches
    with torch.autocast("cpu", torch.bfloat16):
        assert fused_calls(lambda: vit_(image))
