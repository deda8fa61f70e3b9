"""encoders/unet.py: its sizes and formula, volumes slice by slice, heads on it, strict loading, training with it."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from premed.config.compose import validate_experiment
from premed.contracts import DataSet
from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.errors import UserError
from premed.execution import runner
from premed.models.encoders import unet
from premed.models.encoders.unet import Config, UNet
from premed.models.heads import conv, linear
from premed.models.network import Network
from premed.pretext import mae
from premed.training.artifacts import load_encoder
from premed.training.storage import StageStorage
from premed.training.supervised import Supervised

pytest_plugins = ["support.experiment_fixtures"]

WIDTHS = (8, 16, 24)
PICTURE, VOLUME = (1, (16, 24)), (1, (16, 24, 12))


def encoder(of=PICTURE, **settings) -> UNet:
    torch.manual_seed(0)
    return unet.build(Config(**({"widths": WIDTHS} | settings)), *of).eval()


def image(of, n: int = 2) -> Tensor:
    return torch.randn(n, of[0], *of[1], generator=torch.Generator().manual_seed(1))


def task(of=VOLUME) -> Any:
    return SimpleNamespace(classes=("background", "a", "b"), channels=of[0], roi=of[1])


# Sizes and formula ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of", "widths"), [(PICTURE, WIDTHS), (VOLUME, WIDTHS), ((3, (64, 32)), Config().widths)])
def test_it_has_a_u_net_s_parameters_and_no_other(of, widths):
    """Two convolutions of 3 per axis and resolution, on the way up after a transposed one of 2; norms with 2 numbers
    per channel; no biases."""
    dims = len(of[1])

    def block(before: int, width: int) -> int:
        return 3**dims * (before * width + width * width) + 2 * 2 * width

    down = sum(block(before, width) for before, width in pairwise((of[0], *widths)))
    up = sum(2**dims * coarse * fine + block(2 * fine, fine) for fine, coarse in pairwise(widths))
    assert sum(p.numel() for p in encoder(of, widths=widths).parameters()) == down + up


@pytest.mark.parametrize(("of", "last"), [(PICTURE, (4, 6)), (VOLUME, (4, 6, 3))])
@torch.no_grad()
def test_its_features_match_its_attributes(of, last):
    model, features = encoder(of), encoder(of)(image(of))
    for scale, seen in zip(model.pyramid, features.pyramid, strict=True):
        assert seen.shape == (2, scale.channels, *(n // edge for n, edge in zip(of[1], scale.stride, strict=True)))
    assert features.pyramid[model.decoded].shape[2:] == of[1] and features.pyramid[-1].shape[2:] == last
    assert features.grid == model.grid == last and model.width == WIDTHS[-1]
    assert torch.equal(features.tokens.transpose(1, 2).unflatten(2, last), features.pyramid[-1])
    torch.testing.assert_close(features.summary, features.pyramid[-1].flatten(2).mean(dim=2))


@pytest.mark.parametrize("of", [PICTURE, VOLUME])
@torch.no_grad()
def test_its_maps_are_those_of_the_formula_written_out(of):
    model = encoder(of)
    weights = model.state_dict()
    convolve, transposed = (F.conv2d, F.conv_transpose2d) if len(of[1]) == 2 else (F.conv3d, F.conv_transpose3d)

    def block(x: Tensor, name: str, stride: int = 1) -> Tensor:
        for i in (1, 2):
            x = convolve(x, weights[f"{name}.conv{i}.conv.weight"], stride=stride if i == 1 else 1, padding=1)
            x = F.group_norm(x, 8, weights[f"{name}.norm{i}.weight"], weights[f"{name}.norm{i}.bias"])
            x = F.leaky_relu(x, 0.01)
        return x

    first = block(image(of), "down.0")
    second = block(first, "down.1", 2)
    third = block(second, "down.2", 2)
    up = block(
        torch.cat([transposed(third, weights["up.0.transp_conv.conv.weight"], stride=2), second], 1), "up.0.conv_block"
    )
    top = block(
        torch.cat([transposed(up, weights["up.1.transp_conv.conv.weight"], stride=2), first], 1), "up.1.conv_block"
    )
    features = model(image(of), taps=range(model.depth))
    for seen, by_hand in zip(features.pyramid, (top, up, third), strict=True):
        torch.testing.assert_close(seen, by_hand, rtol=1e-4, atol=1e-5)
    for i, by_hand in enumerate((first, second, third, up, top)):
        torch.testing.assert_close(features.taps[i], by_hand.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_images_of_any_size_that_the_strides_divide_are_taken():
    assert encoder()(image((1, (32, 4)))).grid == (8, 1)
    assert encoder(dims=2)(image((1, (8, 8, 5)))).grid == (2, 2, 5)


# Volumes slice by slice -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_network_for_pictures_sees_a_volume_as_it_sees_each_slice():
    model, flat, volume = encoder((2, VOLUME[1]), dims=2), encoder((2, PICTURE[1])), image((2, VOLUME[1]))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), flat.state_dict().values(), strict=True))
    features = model(volume, taps=(0, 4))
    slices = [flat(volume[..., i], taps=(0, 4)) for i in range(volume.shape[-1])]
    for level, (scale, seen) in enumerate(zip(model.pyramid, features.pyramid, strict=True)):
        torch.testing.assert_close(seen, torch.stack([each.pyramid[level] for each in slices], dim=-1))
        assert scale.stride == (2**level, 2**level, 1)
    assert features.grid == model.grid == (4, 6, 12) and model.patch == (4, 4, 1)
    assert features.tokens.shape == (2, 4 * 6 * 12, WIDTHS[-1])
    torch.testing.assert_close(features.summary, torch.stack([each.summary for each in slices]).mean(dim=0))
    tapped = torch.stack([each.taps[0].unflatten(1, PICTURE[1]) for each in slices], dim=3).flatten(1, 3)
    torch.testing.assert_close(features.taps[0], tapped)


@torch.no_grad()
def test_a_segmentation_slice_by_slice_is_the_slices_segmentations():
    model, volume = encoder(VOLUME, dims=2), image(VOLUME)
    head = conv.build(conv.Config(), model, task())
    whole = head(volume, model(volume))
    assert whole.shape == (2, 3, *VOLUME[1])
    for i in range(VOLUME[1][-1]):
        some = volume[..., i : i + 1]
        torch.testing.assert_close(head(some, model(some))[..., 0], whole[..., i])


# Heads, layers, refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"dims": 2}])
def test_of_a_segmentation_only_the_last_layer_is_not_pre_trained(settings):
    head = conv.build(conv.Config(), encoder(VOLUME, **settings), task())
    assert {name: tuple(p.shape[:2]) for name, p in head.named_parameters()} == {
        "out.conv.conv.weight": (3, WIDTHS[0]),
        "out.conv.conv.bias": (3,),
    }


def test_a_segmentation_trains_encoder_and_decoder_and_a_classification_the_encoder_alone():
    model = encoder(VOLUME)
    for head, trained in (
        (conv.build(conv.Config(), model, task()), {"down", "up"}),
        (linear.Linear(linear.Config(), 24, 3), {"down"}),
    ):
        torch.nn.init.normal_(next(head.parameters()))
        model.zero_grad()
        head(image(VOLUME), model(image(VOLUME))).square().mean().backward()
        assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == trained


def test_layers_count_from_the_first_block_through_the_decoder():
    model = encoder()
    layers = {name: model.layer(name) for name, _ in model.named_parameters()}
    assert model.depth == 5 and set(layers.values()) == {1, 2, 3, 4, 5}
    assert layers["down.0.conv1.conv.weight"] == 1 and layers["down.2.norm2.bias"] == 3
    assert layers["up.0.transp_conv.conv.weight"] == 4 and layers["up.1.conv_block.conv2.conv.weight"] == 5


def test_drop_path_is_refused_by_name_before_anything_is_trained():
    model = encoder()
    network = Network(model, linear.build(linear.Config(), model, task(PICTURE)))
    Supervised(network, task(PICTURE), weight_decay=0.05, drop_path=0.0)
    with pytest.raises(UserError, match=r"finetune\.drop_path: is 0\.1, .*unet's blocks have no residual connections"):
        Supervised(network, task(PICTURE), weight_decay=0.05, drop_path=0.1)


@pytest.mark.parametrize(
    ("of", "settings", "message"),
    [
        ((1, (28, 30)), {}, r"encoder\.widths: 3 of them halve an image 2 times, and \(28, 30\) is no multiple of 4"),
        ((1, (16, 16, 6)), {}, r"encoder\.widths: .*\(16, 16, 6\)"),
        ((1, (16, 16)), {"dims": 3}, r"encoder\.dims: 3 axes are more than pictures of \(16, 16\) have"),
    ],
)
def test_images_that_do_not_suit_it_are_refused_by_name(of, settings, message):
    with pytest.raises(UserError, match=message):
        encoder(of, **settings)


def test_an_image_that_the_strides_do_not_divide_is_refused_by_name():
    with pytest.raises(UserError, match=r"encoder\.widths: .*\(18, 16\)"):
        encoder()(image((1, (18, 16))))


@pytest.mark.parametrize(
    ("other", "message"), [((2, (16, 16)), "1 and 2 channels"), ((1, (18, 16)), r"encoder\.widths: .*\(18, 16\)")]
)
def test_further_sources_that_do_not_suit_it_are_refused_by_name(other, message):
    with pytest.raises(UserError, match=message):
        unet.build(Config(widths=WIDTHS), *PICTURE, other)


@pytest.mark.parametrize("widths", [(8,), (8, 12), (0, 8)])
def test_widths_that_make_no_u_net_are_refused(widths):
    with pytest.raises(ValidationError, match="widths"):
        Config(widths=widths)


def test_hidden_patches_are_refused_by_name():
    with pytest.raises(UserError, match="encoder: unet takes no masked images"):
        encoder()(image(PICTURE), keep=torch.zeros(2, 1, dtype=torch.int64))


def test_mae_on_it_is_refused_before_anything_is_trained():
    with pytest.raises(UserError, match="encoder: mae needs one that can skip patches"):
        mae.build(mae.Config(), encoder(), [DataSet(task(PICTURE), "")], 0.05)


# Loading --------------------------------------------------------------------------------------------------------------


def saved(model: UNet, folder: Path) -> StageStorage:
    storage = StageStorage(str(folder), "stage")
    storage.put_weights("parts/encoder.safetensors", model.state_dict())
    storage.put_json("parts/card.json", {"grid": model.grid})
    return storage


@torch.no_grad()
def test_a_network_for_pictures_loads_strictly_into_one_that_sees_volumes_slice_by_slice(tmp_path):
    before, after = encoder(), encoder(VOLUME, dims=2)
    for parameter in before.parameters():
        parameter.normal_()
    report = load_encoder(after, saved(before, tmp_path))
    assert report == {"loaded": len(before.state_dict()), "missing": [], "resized": [], "dropped": []}
    torch.testing.assert_close(after(image(VOLUME)).pyramid[0][..., 3], before(image(VOLUME)[..., 3]).pyramid[0])


@pytest.mark.parametrize("after", [{"widths": (8, 16, 32)}, {"widths": (8, 16)}, {"dims": 3}])
def test_weights_of_another_network_are_never_loaded(after, tmp_path):
    with pytest.raises(UserError, match=r"encoder: the saved weights do not fit the network"):
        load_encoder(encoder(VOLUME, **after), saved(encoder(), tmp_path))


# From a folder to a test score, in this process -----------------------------------------------------------------------


def run(task: dict, head: dict, **settings) -> dict:
    """Fine-tuning from random weights, and test."""
    tree = {
        "task": task,
        "encoder": {"name": "unet", "widths": list(WIDTHS), **settings},
        "pretext": {"name": "none"},
        "finetune": {
            "head": head,
            "epochs": 1,
            "steps": 4,
            "batch": 4,
            "lr": 0.03,
            "validations": 2,
            "layer_decay": 0.9,
        },
        "train": {"workers": 0, "log_steps": 2, "precision": "fp32"},
    }
    outcome = runner.run(validate_experiment(tree), lambda event: None)
    assert [stage["kind"] for stage in outcome["stages"]] == ["finetune", "test"]
    return outcome["stages"][1]


LONG = pytest.mark.slow, pytest.mark.whole


@pytest.mark.parametrize(
    "head",
    [
        pytest.param({"name": "linear", "pool": "cls"}, marks=LONG),
        {"name": "linear", "pool": "mean"},
        pytest.param({"name": "probe"}, marks=LONG),
    ],
)
def test_pictures_are_classified_end_to_end(head, tmp_path, home):
    root = write_chestxray14(tmp_path / "chest", 20, 0, size=32)
    assert 0 <= run({"name": "chestxray14", "root": str(root), "size": 32, "stored": 32}, head)["value"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "head"),
    [
        pytest.param({}, "conv", marks=LONG),
        ({"dims": 2}, "conv"),
        pytest.param({"dims": 2}, "probe", marks=LONG),
    ],
)
def test_volumes_are_segmented_end_to_end(settings, head, tmp_path, home):
    root = write_msd(tmp_path / "hippocampus", 8, 0, shape=(24, 30, 16))
    task = {"name": "msd", "root": str(root), "roi": [24, 28, 12], "percentiles": [0.5, 99.5], "normalise": "zscore"}
    test = run(task, {"name": head}, **settings)
    assert {"test/dice", "test/dice/Anterior", "test/hd95"} <= set(test["summary"]) and 0 <= test["value"] <= 1
