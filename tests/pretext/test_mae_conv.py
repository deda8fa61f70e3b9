"""pretext/mae.py on a convolutional encoder: the loss, what it cannot see, the gate, killed and gone on with."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.stages import jobs, outcome
from support.stages import run as run_stage

from premed.contracts import Batch, DataSet
from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.models.encoders import resenc, vit
from premed.models.patches import patchify, take
from premed.pretext import mae
from premed.pretext.mae import MAE, Config, ConvDecoder
from premed.rng import sample_keys

ROIS = [(32, 24), (16, 24, 16)]


class Images:
    """The little of a task that MAE asks for; a sample's tile is drawn from its number."""

    def __init__(self, roi: tuple[int, ...], channels: int):
        self.roi, self.channels = roi, channels

    def tiles(self, sample) -> list[np.ndarray]:
        rng = np.random.default_rng(sample.number)
        return [rng.normal(size=(self.channels, *self.roi)).astype(np.float32)]


def samples(start: int, stop: int) -> list:
    cases = [SimpleNamespace(name=f"case{i}", patient=f"patient{i}") for i in range(start, stop)]
    return [SimpleNamespace(number=i, case=case) for i, case in zip(range(start, stop), cases, strict=True)]


def objective(roi=(32, 24), channels=1, encoder=None, **changes) -> MAE:
    torch.manual_seed(0)
    config = resenc.Config(widths=(8, 16, 24, 32), blocks=(1, 1, 1, 1))
    model = mae.build(
        Config(decoder_width=24, **changes),
        encoder or resenc.build(config, channels, roi),
        [DataSet(Images(roi, channels), "")],  # type: ignore[arg-type]
        0.05,
    )
    for name, parameter in model.named_parameters():  # a block begins as its shortcut, and a prediction near 0
        if name.endswith(("conv2.norm.weight", "predict.weight")):
            torch.nn.init.normal_(parameter)
    return model


def keys(n: int) -> torch.Tensor:
    return torch.from_numpy(sample_keys(0, "pretrain", 0, np.arange(n)))


@pytest.mark.parametrize("roi", ROIS)
@pytest.mark.parametrize("channels", [1, 2])
@torch.no_grad()
def test_the_loss_is_the_mean_over_hidden_patches_of_the_predicted_image_s_distance_to_normalised_ones(roi, channels):
    model, image = objective(roi, channels), 3 + 5 * torch.randn(3, channels, *roi)
    keep, hide = model.mask(keys(3))
    pictures = []
    model.decoder.predict.register_forward_hook(lambda module, given, picture: pictures.append(picture))
    losses = model.losses(image, keys(3))[0]
    assert pictures[0].shape == image.shape
    for each, predicted, hidden, loss in zip(image, pictures[0], hide, losses, strict=True):
        truth, guess = (patchify(x[None], model.encoder.patch)[0].double() for x in (each, predicted))
        truth = (truth - truth.mean(1, keepdim=True)) / (truth.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        assert loss.item() == pytest.approx((guess - truth)[hidden].square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("roi", ROIS)
def test_the_prediction_does_not_see_the_hidden_patches_and_sees_the_others(roi, monkeypatch):
    model, image = objective(roi), torch.randn(2, 1, *roi, requires_grad=True)
    target = model.target(image).detach()
    monkeypatch.setattr(model, "target", lambda image: target)
    losses = model.losses(image, keys(2))[0]
    losses.sum().backward()
    keep, hide = model.mask(keys(2))
    gradient = patchify(image.grad, model.encoder.patch)  # type: ignore[arg-type]
    assert not take(gradient, hide).any() and take(gradient, keep).any(dim=2).all()
    rows = patchify(image.detach(), model.encoder.patch)
    rows = rows.scatter(1, hide[..., None].expand(-1, -1, rows.shape[2]), float("nan"))
    unseen = mae.unpatchify(rows, model.encoder.grid, model.encoder.patch)
    assert torch.equal(model.losses(unseen, keys(2))[0], losses)


@pytest.mark.parametrize("roi", ROIS)
def test_masks_and_gate_are_those_of_a_vit_of_the_same_patch(roi):
    convolutional = objective(roi)
    torch.manual_seed(0)
    plain = vit.build(vit.Config(width=24, depth=1, heads=2, patch=8), 1, roi)
    transformer = objective(roi, encoder=plain, decoder_heads=2)
    assert isinstance(convolutional.decoder, ConvDecoder) and not isinstance(transformer.decoder, ConvDecoder)
    gates = []
    for model in (convolutional, transformer):
        model.on_start(samples(0, 5))
        gates.append([row["gate"] for row in model.measure(samples(5, 8))])
    assert gates[0] == gates[1]
    assert all(torch.equal(a, b) for a, b in zip(convolutional.mask(keys(4)), transformer.mask(keys(4)), strict=True))


def test_every_weight_is_learnt_and_norms_and_biases_do_not_decay():
    model = objective()
    model(Batch(torch.randn(2, 1, 32, 24), keys(2), ("a", "b")), 0.0)[0].backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == set()
    learnt = {id(p) for group in model.param_groups() for p in group["params"]}
    assert learnt == {id(p) for p in model.parameters()}


def test_its_first_predictions_are_near_the_targets_mean():
    torch.manual_seed(0)
    encoder = resenc.build(resenc.Config(widths=(8, 16, 24, 32)), 1, (32, 24))
    model = mae.build(Config(), encoder, [DataSet(Images((32, 24), 1), "")], 0.05)  # type: ignore[arg-type]
    assert model.losses(torch.randn(4, 1, 32, 24), keys(4))[0].mean().item() == pytest.approx(1, abs=0.02)


@torch.no_grad()
def test_reconstructions_show_the_visible_patches_exactly():
    model, image = objective(), torch.randn(3, 1, 32, 24)
    original, masked, predicted, mean_patch = model.reconstruct(image, keys(3))
    keep, hide = model.mask(keys(3))
    for picture in (masked, predicted, mean_patch):
        assert torch.equal(*(take(patchify(x, model.encoder.patch), keep) for x in (picture, original)))
    assert take(patchify(masked, model.encoder.patch), hide).isnan().all() and predicted.isfinite().all()


# From one process to the next -----------------------------------------------------------------------------------------


def volumes(folder) -> dict:
    root = write_msd(folder / "hippocampus", 8, 0, shape=(24, 30, 16))
    return {"name": "msd", "root": str(root), "roi": [24, 28, 12], "percentiles": [0.5, 99.5], "normalise": "zscore"}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["mae", "classification", "segmentation"])
def test_a_killed_training_goes_on_as_if_nothing_had_been(what, tmp_path):
    chest = write_chestxray14(tmp_path / "chest", 20, 0, size=32)
    changes: dict = {"encoder": {"name": "resenc", "widths": [8, 16, 24, 24][: 4 - (what == "segmentation")]}}
    if what != "mae":
        changes |= {"pretext": {"name": "none"}, "pretrain": None}
    if what == "segmentation":
        finetune = {"head": {"name": "unet"}, "augment": {"scale": None}}
        changes |= {"task": volumes(tmp_path), "finetune": finetune}
    kind = "pretrain" if what == "mae" else "finetune"
    killed, whole = (jobs(chest, tmp_path / each, **changes)[kind] for each in ("killed", "whole"))
    assert run_stage(killed, kill="saved 4") == [-9] and run_stage(killed) == [0]
    assert run_stage(whole) == [0]
    assert outcome(killed) == outcome(whole)
