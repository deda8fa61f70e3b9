"""encoders/timm.py: patches, taps, drop path, layers and names of timm's own networks."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm as library
import torch
from pydantic import ValidationError
from support.public_checkpoints import NARROW, SHALLOW, arguments, side

from premed.config.compose import merge
from premed.errors import UserError
from premed.models.encoders import timm
from premed.models.heads import conv, linear, unetr
from premed.models.network import Network, load_resized
from premed.models.public_encoders import PUBLIC_ENCODERS
from premed.pretext import hssl, mae
from premed.rng import sample_keys
from premed.training.optimizer import layer_decay_groups

TRANSFORMERS = (
    "dinov2-reg-s",
    "dinov3-s",
    "eva-x-b",
)  # registers; rotary positions alone; those and others, gated MLPs
MIXED = "vit_small_patch16_rope_mixed_224"  # other rotary positions in each head and block
NO_CLASS = "vit_base_patch16_siglip_224"


def encoder(name="dinov3-s", roi=None, channels=1, **args):
    torch.manual_seed(0)
    known = name in PUBLIC_ENCODERS
    roi, small = roi or (side(name) if known else 64,) * 2, arguments(name) if known else NARROW
    built = timm.build(timm.Config(model=name, args={**small, **args}), channels, roi)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built.eval()


def keys(n, epoch=0):
    return torch.from_numpy(sample_keys(0, "finetune", epoch, np.arange(n)))


def picture(model, n=2, channels=1):
    return torch.randn(n, channels, *(cells * edge for cells, edge in zip(model.grid, model.patch, strict=True)))


# What it looks at -----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", [*TRANSFORMERS, MIXED, NO_CLASS])
def test_looking_at_all_patches_in_another_order_only_reorders_the_tokens(name):
    model = encoder(name)
    image, order = picture(model), torch.randperm(16)
    everything, shuffled = model(image, taps=(0,)), model(image, keep=order.expand(2, -1), taps=(0,))
    torch.testing.assert_close(shuffled.tokens, everything.tokens[:, order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shuffled.taps[0], everything.taps[0][:, order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shuffled.summary, everything.summary, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_hidden_patches_do_not_reach_the_visible_ones(name):
    model, keep = encoder(name), torch.tensor([[5, 0, 3], [1, 2, 4]])
    image = picture(model)
    other = torch.randn_like(image)
    for sample, kept in enumerate(keep.tolist()):
        for place in kept:
            row, column = (
                slice(at * edge, (at + 1) * edge) for at, edge in zip(divmod(place, 4), model.patch, strict=True)
            )
            other[sample, :, row, column] = image[sample, :, row, column]
    first, second = model(image, keep=keep), model(other, keep=keep)
    assert first.tokens.shape == (2, 3, 24) and torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.summary, second.summary)
    assert not torch.equal(model(image).tokens, model(other).tokens)  # and nothing of it stays for the next


@torch.no_grad()
@pytest.mark.parametrize("name", [*TRANSFORMERS, MIXED])
def test_taps_are_what_the_blocks_left(name):
    model, left = encoder(name), {}
    for i, block in enumerate(model.network.blocks):
        block.register_forward_hook(lambda _module, _inputs, output, i=i: left.update({i: output}))
    features = model(picture(model), taps=(1, 0))
    assert set(features.taps) == {0, 1} and features.grid == (4, 4)
    for i, tapped in features.taps.items():
        assert torch.equal(tapped, left[i][:, model.network.num_prefix_tokens :])


@torch.no_grad()
def test_the_summary_is_what_timms_classifier_sees():
    for name, pool in (("dinov3-s", "token"), ("dinov3-s", "avg"), ("eva-x-ti", "avg"), ("dinov2-reg-s", "token")):
        model = encoder(name, global_pool=pool)
        image = picture(model)
        network, x = model.network, model.network.forward_features(image)
        tokens = x[:, 0] if pool == "token" else network.fc_norm(x[:, network.num_prefix_tokens :].mean(dim=1))
        torch.testing.assert_close(model(image).summary, tokens)
    assert encoder("dinov2-s", global_pool="")(picture(model)).summary is None


@torch.no_grad()
def test_a_convnexts_maps_are_its_stages():
    model = encoder("imagenet-convnext-t", roi=(64, 96))
    image, left = picture(model), []
    for stage in model.network.stages:
        stage.register_forward_hook(lambda _module, _inputs, output: left.append(output))
    features = model(image)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(features.pyramid, left, strict=True))
    for scale, map_ in zip(model.pyramid, features.pyramid, strict=True):
        assert map_.shape[1:] == (scale.channels, 64 // scale.stride[0], 96 // scale.stride[1])
    assert (features.grid, model.patch, model.decoded) == ((2, 3), (32, 32), 3)
    assert torch.equal(features.tokens, left[-1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(
        features.summary, model.network.head.norm(left[-1].mean(dim=(2, 3), keepdim=True)).flatten(1)
    )


@torch.no_grad()
@pytest.mark.parametrize(("name", "head"), [("imagenet-convnext-t", conv), ("eva-x-ti", unetr)])
def test_segmentation_heads_fit(name, head):
    model = encoder(name, depth=4) if head is unetr else encoder(name)
    task = SimpleNamespace(channels=1, classes=("a", "b", "c"))
    network = Network(model, head.build(head.Config(feature_size=4), model, task)).eval()
    assert network(torch.randn(2, 1, 64, 64)).shape == (2, 3, 64, 64)


# Drop path ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dinov3-s", "dinov2-s", "imagenet-convnext-t"])
def test_drop_path_is_a_function_of_the_samples_key_alone(name):
    model = encoder(name).train()
    model.drop_path = 0.9
    image = picture(model, 8)
    together = model(image, keys=keys(8)).tokens
    assert torch.equal(together, model(image, keys=keys(8)).tokens)
    assert not torch.equal(together, model(image, keys=keys(8, epoch=1)).tokens)
    for i in range(8):
        alone = model(image[i : i + 1], keys=keys(8)[i : i + 1]).tokens
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-3, atol=1e-4)
    without_keys = model(image).tokens
    assert not torch.equal(together, without_keys)
    assert torch.equal(without_keys, model.eval()(image, keys=keys(8)).tokens)


def test_a_sample_whose_branches_are_dropped_passes_by_the_block():
    model = encoder("dinov2-s").train()
    model.drop_path = 0.999999  # of the last of two blocks; the first has none
    features = model(picture(model, 4), keys=keys(4), taps=(0, 1))
    assert torch.equal(features.taps[0], features.taps[1])


# Layers and names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_layers_count_from_the_embedding_to_the_last_norm(name):
    model = encoder(name)
    layers = {key: model.layer(key) for key, _ in model.named_parameters()}
    for key, layer in layers.items():
        key = key.removeprefix("network.")
        assert layer == (int(key.split(".")[1]) + 1 if key.startswith("blocks.") else 3 * ("norm" in key)), key
    assert set(layers.values()) == {0, 1, 2, 3}


def test_layers_of_a_convnext_count_through_the_stages():
    model = encoder("imagenet-convnext-t")
    assert model.depth == 5
    expected = {"stem.0.weight": 0, "stem.1.bias": 0, "stages.0.blocks.0.gamma": 1, "stages.1.downsample.0.weight": 2}
    expected |= {"stages.1.blocks.0.norm.bias": 2, "stages.2.downsample.1.bias": 3, "stages.2.blocks.1.gamma": 4}
    expected |= {"stages.3.blocks.0.conv_dw.bias": 5, "head.norm.weight": 6}
    assert {key: model.layer(f"network.{key}") for key in expected} == expected


def test_what_timm_does_not_decay_is_not_decayed():
    model = encoder("dinov2-reg-s")
    network = Network(model, linear.Linear(linear.Config(), 24, 3))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = layer_decay_groups(network, 0.05, 0.5)
    decayed = {names[id(each)] for group in groups if group["weight_decay"] for each in group["params"]}
    undecayed = model.network.no_weight_decay()
    assert undecayed == {"pos_embed", "cls_token", "reg_token", "dist_token"}
    expected = {f"encoder.network.{key}" for key, each in model.network.named_parameters() if each.ndim > 1}
    assert decayed == expected - {f"encoder.network.{key}" for key in undecayed} | {"head.fc.weight"}


@pytest.mark.parametrize("name", [*TRANSFORMERS, "imagenet-convnext-t"])
def test_saved_names_are_timms_alone_and_inside_a_network(name):
    model = encoder(name)
    reference = library.create_model(**model.timm())
    assert list(reference.state_dict()) == list(model.state_dict())
    reference.load_state_dict(model.state_dict())  # a strict load: as the exported file loads in timm
    image = picture(model)
    torch.testing.assert_close(
        reference.eval().forward_head(reference.forward_features(image), True), model(image).summary
    )
    whole = Network(model, linear.Linear(linear.Config(), model.width, 3))
    state = {key: value * 2 for key, value in whole.state_dict().items()}
    assert {f"encoder.{key}" for key in reference.state_dict()} | {"head.fc.weight", "head.fc.bias"} == state.keys()
    whole.load_state_dict(state)
    assert all(torch.equal(value, state[f"encoder.{key}"]) for key, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        whole.load_state_dict({key: value for key, value in state.items() if "norm" not in key})


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_weights_of_another_grid_are_resized_as_timm_does(name):
    old, edge = encoder(name), side(name) // 4
    new = encoder(name, roi=(6 * edge, 3 * edge))
    report = load_resized(new, old.state_dict(), old.grid)
    assert report["resized"] == ([] if name == "dinov3-s" else ["pos_embed"])
    old.network.set_input_size(img_size=(6 * edge, 3 * edge))
    image = picture(new)
    torch.testing.assert_close(new(image).tokens, old(image).tokens, rtol=1e-4, atol=1e-4)


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "resnet18"}, r"^encoder\.model: resnet18 is of timm's resnet; take one of its ViTs, EVAs or Conv"),
        ({"model": "vit_small_r26_s32_224"}, r"^encoder\.model: "),
        ({"model": "dinov"}, r"^encoder\.model: neither premed nor timm has 'dinov'; did you mean dinov"),
        ({"args": {"patchsize": 8}}, r"^encoder\.args\.patchsize: is no property of dinov2-s, or set by premed"),
        ({"args": {"checkpoint_path": "x.pth"}}, r"^encoder\.args\.checkpoint_path: is no property"),
        ({"args": {"drop_rate": 0.1}}, r"^encoder\.args\.drop_rate: is no property of dinov2-s, or set by premed"),
        ({"args": {"num_heads": 5}}, r"^encoder: timm cannot build dinov2-s with .*'num_heads': 5"),
        (
            {"roi": (64, 56)},
            r"^encoder\.model: dinov2-s has patches of \(14, 14\), of which the roi \(64, 56\) is no mul",
        ),
        (
            {"roi": (56, 56, 56)},
            r"^encoder: timm's networks take pictures, and these are volumes; use vit, mit or unet",
        ),
        ({"more": ((1, (28, 28)),)}, r"^pretrain\.sources: timm takes images of one shape"),
        (
            {"model": "imagenet-convnext-t", "args": SHALLOW, "roi": (64, 48)},
            r"^encoder\.model: imagenet-convnext-t halves images to 32ths, of which the roi \(64, 48\) is no multiple",
        ),
    ],
)
def test_what_makes_no_encoder_is_refused_by_field(change, words):
    settings = merge({"model": "dinov2-s", "args": {"depth": 1}, "roi": (56, 56), "more": ()}, change)
    args = {} if settings["model"] in ("resnet18", "vit_small_r26_s32_224") else settings["args"]
    args = {key: value for key, value in args.items() if settings["model"] != "imagenet-convnext-t" or key in SHALLOW}
    with pytest.raises(UserError, match=words) as caught:
        timm.build(timm.Config(model=settings["model"], args=args), 1, settings["roi"], *settings["more"])
    assert "\n" not in str(caught.value)


def test_a_model_is_needed():
    with pytest.raises(ValidationError, match="model"):
        timm.Config()  # type: ignore[call-arg]


def test_a_convnext_has_no_decoder_for_hssl():
    task = SimpleNamespace(name="x", dims=2, channels=1, roi=(64, 64))
    data_sets = [SimpleNamespace(task=task, group=group, augment=SimpleNamespace(crops=1)) for group in "ab"]
    with pytest.raises(UserError, match="hssl needs an encoder with a decoder"):
        hssl.build(hssl.Config(), encoder("imagenet-convnext-t"), data_sets, 0.05)  # type: ignore[arg-type]


# MAE ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TRANSFORMERS, "dinov2-s", NO_CLASS])
def test_mae_trains_it_with_its_positions(name):
    model = encoder(name)
    task = SimpleNamespace(channels=1, roi=picture(model).shape[2:])
    objective = mae.build(
        mae.Config(decoder_width=24, decoder_depth=1, decoder_heads=2),
        model,
        [SimpleNamespace(task=task)],
        0.05,  # type: ignore[list-item]
    )
    error, gate = objective.losses(picture(model), keys(2))
    error.mean().backward()
    assert error.shape == gate.shape == (2,) and math.isfinite(error.mean().item())
    for key in ("pos_embed", "patch_embed.proj.weight", "reg_token"):
        parameter = getattr(model.network, key, None) if "." not in key else model.network.get_parameter(key)
        assert parameter is None or (parameter.requires_grad and parameter.grad.any()), key
