"""encoders/resenc.py: nnU-Net's maps, visible patches alone, layers, refusals, and from a folder to a test score."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.nnunet_reference import CASES, CHANNELS, fill, image, read, some

from premed.config.compose import validate_experiment
from premed.contracts import Features
from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.errors import UserError
from premed.execution import runner
from premed.models.encoders import resenc
from premed.models.encoders.resenc import Config, ResEnc
from premed.models.heads import conv, linear, probe, unet
from premed.models.patches import patchify

pytest_plugins = ["support.experiment_fixtures"]

PICTURE, VOLUME = (1, (16, 24)), (2, (16, 8, 16))
SMALL: dict[str, Any] = {"widths": (8, 16, 24), "blocks": (1, 2, 1)}


def encoder(of=PICTURE, **settings) -> ResEnc:
    torch.manual_seed(0)
    model = resenc.build(Config(**(SMALL | settings)), *of).eval()
    for name, parameter in model.named_parameters():  # a block begins as its shortcut, which would hide its branch
        if name.endswith("conv2.norm.weight"):
            torch.nn.init.normal_(parameter)
    return model


def images(of, n: int = 2) -> torch.Tensor:
    return torch.randn(n, of[0], *of[1], generator=torch.Generator().manual_seed(1))


def some_patches(model: ResEnc, n: int = 2, number: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(np.prod(model.grid), generator=generator)[:number] for _ in range(n)])


# Maps -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_its_maps_are_those_of_nnu_nets_own_package(name):
    case = CASES[name]
    config = Config(widths=case.widths, blocks=case.blocks, strides=case.strides)
    model = resenc.build(config, CHANNELS, case.roi)
    fill((f"encoder.{name}", parameter) for name, parameter in model.named_parameters())
    for seen, expected in zip(model(image(case)).pyramid, read(name), strict=False):
        np.testing.assert_allclose(some(seen), expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("of", [PICTURE, VOLUME])
@torch.no_grad()
def test_its_features_match_its_attributes(of):
    model = encoder(of)
    features = model(images(of), taps=(0, 2))
    for scale, seen in zip(model.pyramid, features.pyramid, strict=True):
        assert seen.shape == (2, scale.channels, *(n // edge for n, edge in zip(of[1], scale.stride, strict=True)))
    assert features.grid == model.grid == tuple(n // 4 for n in of[1]) and model.depth == 4
    assert torch.equal(features.tokens.transpose(1, 2).unflatten(2, model.grid), features.pyramid[-1])
    torch.testing.assert_close(features.summary, features.pyramid[-1].flatten(2).mean(dim=2))
    assert torch.equal(features.taps[0], features.pyramid[0].flatten(2).transpose(1, 2))
    assert torch.equal(features.taps[2], features.pyramid[1].flatten(2).transpose(1, 2))


def test_without_numbers_it_has_nnu_nets_blocks():
    model = resenc.build(Config(widths=(8, 8, 8, 8, 8)), 1, (16, 32))
    assert [len(stage.blocks) for stage in model.stages] == [1, 3, 4, 6, 6]  # type: ignore[arg-type]


# Visible patches alone ------------------------------------------------------------------------------------------------


def everything(features: Features) -> list[torch.Tensor]:
    assert features.summary is not None
    return [features.tokens, features.summary, *features.taps.values(), *features.pyramid]


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("of", [PICTURE, VOLUME])
@torch.no_grad()
def test_values_of_hidden_voxels_reach_no_feature(of, norm):
    model, image = encoder(of, norm=norm), images(of)
    keep = some_patches(model)
    hidden = ~torch.zeros(2, np.prod(model.grid), dtype=torch.bool).scatter(1, keep, True)
    where = hidden.view(2, 1, *model.grid)
    for axis in range(2, image.ndim):
        where = where.repeat_interleave(4, dim=axis)
    before = everything(model(image, keep=keep, taps=range(4)))
    for value in (1e6, float("nan")):
        after = everything(model(image.masked_fill(where, value), keep=keep, taps=range(4)))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    other = everything(model(image.masked_fill(~where, 0.5), keep=keep))
    assert not torch.equal(before[0], other[0])


@pytest.mark.parametrize("of", [PICTURE, VOLUME])
@torch.no_grad()
def test_maps_are_0_in_hidden_patches_and_tokens_are_the_visible_ones_in_order(of):
    model = encoder(of)
    keep = some_patches(model)
    features = model(images(of), keep=keep)
    for scale, seen in zip(model.pyramid, features.pyramid, strict=True):
        edges = tuple(a // b for a, b in zip(model.patch, scale.stride, strict=True))
        patches = patchify(seen, edges)
        for i in range(2):
            shown = patches[i].abs().sum(dim=1) > 0
            assert shown.nonzero().flatten().tolist() == sorted(keep[i].tolist())
    coarsest = features.pyramid[-1].flatten(2).transpose(1, 2)
    assert torch.equal(
        features.tokens, torch.stack([rows[places] for rows, places in zip(coarsest, keep, strict=True)])
    )


@pytest.mark.parametrize("of", [PICTURE, VOLUME])
@torch.no_grad()
def test_with_all_patches_visible_it_is_the_dense_network(of):
    model = encoder(of)
    all_of_them = torch.arange(np.prod(model.grid)).expand(2, -1)
    for seen, dense in zip(everything(model(images(of), keep=all_of_them)), everything(model(images(of))), strict=True):
        torch.testing.assert_close(seen, dense, rtol=1e-4, atol=1e-5)


# Layers, drop path, refusals ------------------------------------------------------------------------------------------


def test_layers_count_from_the_stem_through_all_blocks():
    model = encoder()
    layers = {name: model.layer(name) for name, _ in model.named_parameters()}
    assert {layers[name] for name in layers if name.startswith("stem")} == {0}
    assert layers["stages.1.blocks.1.conv1.conv.weight"] == 3 and layers["stages.2.blocks.0.skip.1.conv.weight"] == 4
    assert set(layers.values()) == set(range(model.depth + 1))


def test_drop_path_is_each_samples_own():
    model, image, keys = encoder().train(), images(PICTURE, 6), torch.arange(6) * 977
    model.drop_path = 0.6
    together = model(image, keys=keys).tokens
    apart = torch.cat([model(image[i : i + 1], keys=keys[i : i + 1]).tokens for i in range(6)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    differs = (together - model(image).tokens).abs().amax(dim=(1, 2)) > 1e-3
    assert differs.any()
    assert torch.equal(model.eval()(image, keys=keys).tokens, model(image).tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (8, 16, 24, 32, 40), "blocks": None}, r"encoder\.widths: 5 stages .* \(16, 16\), of which the roi"),
        ({"strides": ((2, 2, 1), (2, 2, 2))}, r"encoder\.strides: \(2, 2, 1\) has 3 axes and the images have 2"),
        ({"strides": ((4, 4), (4, 6))}, r"encoder\.widths: .* to one place.*norm: group"),
    ],
)
def test_a_network_that_does_not_suit_the_images_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        encoder(**settings)


def test_other_numbers_of_blocks_than_of_widths_are_refused_as_they_are_read():
    with pytest.raises(ValueError, match="blocks has 2 entries, and with 3 widths it needs 3"):
        Config(widths=(8, 8, 8), blocks=(1, 1))


def test_images_of_several_shapes_are_refused_with_what_takes_them():
    with pytest.raises(UserError, match=r"pretrain\.sources: resenc takes images of one shape.*use mit or unet"):
        resenc.build(Config(), *PICTURE, (1, (32, 32)))


# Heads ----------------------------------------------------------------------------------------------------------------


def task(labels=(), classes=("background", "a", "b")) -> Any:
    return SimpleNamespace(classes=classes, channels=1, labels=labels, exclusive=True)


@pytest.mark.parametrize("head", [linear, conv, unet])
def test_every_weight_takes_part_in_what_each_head_answers(head):
    model, image = encoder().train(), images(PICTURE)
    built = head.build(head.Config(), model, task())
    torch.nn.init.normal_(next(p for p in built.parameters() if p.ndim > 1))
    sum(logits.square().mean() for _, logits in built.answers(image, model(image))).backward()
    assert {name for part in (model, built) for name, p in part.named_parameters() if p.grad is None} == set()


@pytest.mark.parametrize(("labels", "rows"), [((), 1), ((0, 1, 2), 24)])
def test_a_probe_reads_an_image_s_mean_or_its_patches(labels, rows):
    model, image = encoder(), images(PICTURE)
    head = probe.build(probe.Config(), model, task(labels))
    features = model(image)
    assert head.rows(features).shape == (2, rows, 24)
    assert head(image, features).shape == ((2, 3, 16, 24) if labels else (2, 3))


# From a folder to a test score, in this process -----------------------------------------------------------------------

TRAINING = {"epochs": 1, "steps": 4, "batch": 4, "lr": 0.03, "validations": 2}


def run(task: dict, head: str) -> list[dict]:
    """MAE, fine-tuning and test."""
    tree = {
        "task": task,
        "encoder": {"name": "resenc", **SMALL},
        "pretext": {"name": "mae", "decoder_width": 16},
        "pretrain": TRAINING,
        "finetune": TRAINING | {"head": {"name": head}, "layer_decay": 0.9, "drop_path": 0.1},
        "train": {"workers": 0, "log_steps": 2, "precision": "fp32"},
    }
    return runner.run(validate_experiment(tree), lambda event: None)["stages"]


@pytest.mark.slow
def test_volumes_are_pre_trained_on_and_segmented_end_to_end(tmp_path, home):
    root = write_msd(tmp_path / "hippocampus", 8, 0, shape=(24, 30, 16))
    task = {"name": "msd", "root": str(root), "roi": [24, 28, 12], "percentiles": [0.5, 99.5], "normalise": "zscore"}
    pretrain, finetune, test = run(task, "unet")
    assert {"loss", "gate"} <= {name.rpartition("/")[2] for name in pretrain["summary"]}
    assert finetune["loaded"]["encoder"]["missing"] == [] and finetune["loaded"]["encoder"]["dropped"] == []
    assert {"test/dice", "test/dice/Anterior", "test/hd95"} <= set(test["summary"]) and 0 <= test["value"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "probe"])
def test_pictures_are_pre_trained_on_and_classified_end_to_end(head, tmp_path, home):
    root = write_chestxray14(tmp_path / "chest", 20, 0, size=32)
    stages = run({"name": "chestxray14", "root": str(root), "size": 32, "stored": 32}, head)
    assert 0 <= stages[-1]["value"] <= 1
