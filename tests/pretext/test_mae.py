"""pretext/mae.py: the paper's loss, its masks, and the gate."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.suite import examples

from premed.contracts import Batch, DataSet
from premed.errors import UserError
from premed.models.encoders import vit
from premed.models.patches import patchify, take
from premed.pretext import mae
from premed.pretext.mae import MAE, Config
from premed.rng import sample_keys

SMALL = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
ROIS = [(32, 24), (16, 24, 16)]


class Images:
    """The little of a task that MAE asks for; a sample's tiles are drawn from its number."""

    def __init__(self, roi: tuple[int, ...], channels: int):
        self.roi, self.channels = roi, channels

    def tiles(self, sample) -> list[np.ndarray]:
        rng = np.random.default_rng(sample.number)
        return [rng.normal(size=(self.channels, *self.roi)).astype(np.float32) for _ in range(1 + sample.number % 3)]


def samples(start: int, stop: int) -> list:
    cases = [SimpleNamespace(name=f"case{i}", patient=f"patient{i}") for i in range(start, stop)]
    return [SimpleNamespace(number=i, case=case) for i, case in zip(range(start, stop), cases, strict=True)]


def objective(roi=(32, 24), channels=1, patch=8, **changes) -> MAE:
    torch.manual_seed(0)
    encoder = vit.build(vit.Config(width=24, depth=2, heads=2, patch=patch), channels, roi)
    return mae.build(Config.model_validate(SMALL | changes), encoder, [DataSet(Images(roi, channels), "")], 0.05)  # type: ignore[arg-type]


def keys(n: int, epoch: int = 0, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(sample_keys(seed, "pretrain", epoch, np.arange(n)))


# Masks ----------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=examples(60))
@given(
    grid=st.lists(st.integers(1, 6), min_size=2, max_size=3), ratio=st.floats(0, 1, exclude_min=True, exclude_max=True)
)
def test_as_many_patches_are_hidden_as_the_paper_hides(grid, ratio):
    num_patches = math.prod(grid)
    visible = int(num_patches * (1 - ratio))
    if not 0 < visible < num_patches:
        with pytest.raises(UserError, match=r"pretext\.mask_ratio"):
            objective(tuple(2 * n for n in grid), patch=2, mask_ratio=ratio)
    else:
        keep, hide = objective(tuple(2 * n for n in grid), patch=2, mask_ratio=ratio).mask(keys(2))
        assert keep.shape == (2, visible) and hide.shape == (2, num_patches - visible)
        assert torch.cat([keep, hide], dim=1).sort(dim=1).values.tolist() == [list(range(num_patches))] * 2


@pytest.mark.parametrize(("ratio", "left"), [(0.999, 0), (1e-20, 12)])
def test_a_mask_that_hides_nothing_or_everything_is_refused_by_name(ratio, left):
    with pytest.raises(UserError, match=rf"pretext\.mask_ratio: .*12 patches leaves {left} visible"):
        objective(mask_ratio=ratio)


@pytest.mark.parametrize("ratio", [0, 1, -0.5])
def test_a_ratio_that_is_none_is_refused_as_it_is_read(ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        Config(mask_ratio=ratio)


def test_masks_differ_by_sample_epoch_and_seed_and_are_the_same_again():
    model = objective((64, 64))
    masks = [*model.mask(keys(4))[0], *model.mask(keys(4, epoch=1))[0], *model.mask(keys(4, seed=1))[0]]
    assert len({tuple(sorted(mask.tolist())) for mask in masks}) == 12
    again = [model.mask(keys(4)[i : i + 1])[0][0] for i in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(again, masks, strict=False))


def test_every_patch_is_hidden_equally_often():
    model = objective((32, 32))
    hidden = model.mask(keys(4000))[1]
    assert stats.chisquare(np.bincount(hidden.ravel(), minlength=16)).pvalue > 1e-3


# The loss -------------------------------------------------------------------------------------------------------------


def plain_loss(model: MAE, image: torch.Tensor, keep: torch.Tensor) -> float:
    """The paper's formula for one image [C, *S] that shows the patches `keep`: in the image's order, patch by patch."""
    patches = patchify(image[None], model.encoder.patch)[0]
    seen = model.encoder(image[None], keep=keep[None])
    embedded = model.decoder.embed(seen.tokens)[0]
    x = model.decoder.mask_token[0].repeat(len(patches), 1)
    for row, place in enumerate(keep.tolist()):
        x[place] = embedded[row]
    x = torch.cat([model.decoder.embed(seen.summary), x]) + model.decoder.positions[0]
    for block in model.decoder.blocks:
        x = block(x[None])[0]
    predictions = model.decoder.predict(model.decoder.norm(x))[1:]
    total, count = 0.0, 0
    for place in range(len(patches)):
        if place in keep.tolist():
            continue
        values, predicted = patches[place].tolist(), predictions[place].tolist()
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        for value, guess in zip(values, predicted, strict=True):
            total += (guess - (value - mean) / math.sqrt(variance + 1e-6)) ** 2
            count += 1
    return total / count


@pytest.mark.parametrize("roi", ROIS)
@pytest.mark.parametrize("channels", [1, 2])
@torch.no_grad()
def test_the_loss_is_the_papers_formula(roi, channels):
    model, image = objective(roi, channels), 3 + 5 * torch.randn(3, channels, *roi)
    torch.nn.init.normal_(model.decoder.predict.bias)  # the formula holds whatever the weights
    expected = [plain_loss(model, image[i], keep) for i, keep in enumerate(model.mask(keys(3))[0])]
    np.testing.assert_allclose(model.losses(image, keys(3))[0], expected, rtol=1e-4)
    loss, _ = model(Batch(image, keys(3), ("a", "b", "c")), 0.0)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("roi", ROIS)
def test_no_gradient_reaches_the_visible_patches_targets(roi, monkeypatch):
    model, image = objective(roi), torch.randn(2, 1, *roi)
    target = model.target(image).requires_grad_()
    monkeypatch.setattr(model, "target", lambda image: target)
    model.losses(image, keys(2))[0].sum().backward()
    keep, hide = model.mask(keys(2))
    assert target.grad is not None
    assert not take(target.grad, keep).any() and take(target.grad, hide).all()


@pytest.mark.parametrize("roi", ROIS)
def test_the_prediction_does_not_see_the_hidden_patches(roi, monkeypatch):
    model, image = objective(roi), torch.randn(2, 1, *roi, requires_grad=True)
    target = model.target(image).detach()
    monkeypatch.setattr(model, "target", lambda image: target)
    model.losses(image, keys(2))[0].sum().backward()
    keep, hide = model.mask(keys(2))
    gradient = patchify(image.grad, model.encoder.patch)  # type: ignore[arg-type]
    assert not take(gradient, hide).any() and take(gradient, keep).any(dim=2).all()


def test_black_images_give_finite_losses_and_gradients():
    model = objective()
    loss, _ = model(Batch(torch.zeros(2, 1, 32, 24), keys(2), ("a", "b")), 0.0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_loss_is_a_float32_number_under_bf16_too():
    model, image = objective(), torch.randn(2, 1, 32, 24)
    exact = model.losses(image, keys(2))[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.losses(image, keys(2))[0]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)


# What is learnt -------------------------------------------------------------------------------------------------------


def test_every_weight_is_learnt_but_the_positions():
    model = objective()
    learnt = {id(p) for group in model.param_groups() for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) not in learnt}
    assert names == {"encoder.pos_embed"} and not model.encoder.pos_embed.requires_grad
    model(Batch(torch.randn(2, 1, 32, 24), keys(2), ("a", "b")), 0.0)[0].backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == names


def test_biases_and_norms_do_not_decay():
    model = objective()
    decaying, free = model.param_groups()
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert not {id(p) for p in decaying["params"]} & {id(p) for p in free["params"]}
    named = {name for name, p in model.named_parameters() if any(p is some for some in free["params"])}
    assert named == {name for name, _ in model.named_parameters() if name.endswith(".bias") or "norm" in name}


@pytest.mark.parametrize(
    ("roi", "changes", "message"),
    [
        ((32, 24), {"decoder_width": 24, "decoder_heads": 5}, r"pretext\.decoder_width: 24 .* decoder_heads 5"),
        ((16, 16, 16), {"decoder_width": 256, "decoder_heads": 8}, r"pretext\.decoder_width: 256 .*multiple of 6"),
    ],
)
def test_a_decoder_width_that_cannot_be_split_is_refused_by_name(roi, changes, message):
    with pytest.raises(UserError, match=message):
        objective(roi, **changes)


# The gate -------------------------------------------------------------------------------------------------------------


def normalised(tile: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """[L, P], each patch with mean 0 and variance 1."""
    patches = patchify(torch.from_numpy(tile)[None], patch)[0].numpy().astype(np.float64)
    return (patches - patches.mean(1, keepdims=True)) / np.sqrt(patches.var(1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("roi", ROIS)
def test_the_gate_is_the_loss_of_the_mean_training_patch_on_vals_hidden_patches(roi, monkeypatch):
    model, train, val = objective(roi, channels=2), samples(0, 7), samples(7, 11)
    model.on_start(train)
    tiles = [tile for sample in train for tile in model.task.tiles(sample)]
    mean = np.mean([normalised(tile, model.encoder.patch) for tile in tiles], axis=0)
    masks = []
    mask = model.mask
    monkeypatch.setattr(model, "mask", lambda of: masks.append(mask(of)) or masks[-1])
    rows = model.measure(val)
    hidden = iter(masks[0][1].numpy())
    for row, sample in zip(rows, val, strict=True):
        targets = [(normalised(tile, model.encoder.patch), next(hidden)) for tile in model.task.tiles(sample)]
        expected = np.mean([np.mean((mean[hide] - target[hide]) ** 2) for target, hide in targets])
        assert row["gate"] == pytest.approx(expected, rel=1e-5)


def test_the_gate_looks_at_no_more_training_images_than_asked_for():
    few, all_of_few = objective(gate_images=3), objective()
    few.on_start(samples(0, 9))
    all_of_few.on_start(samples(0, 3))
    assert torch.equal(few.mean_patch, all_of_few.mean_patch)


def test_a_network_that_predicts_the_mean_patch_is_at_the_gate(monkeypatch):
    model = objective()
    model.on_start(samples(0, 5))
    monkeypatch.setattr(model.decoder, "forward", lambda features, keep, hide: model.mean_patch[hide])
    summary = model.summary(model.measure(samples(5, 8)))
    assert summary["loss"] == pytest.approx(summary["gate"]) and set(summary) == {"loss", "gate"}


def test_val_hides_other_patches_in_each_case_and_tile_and_the_same_ones_each_time(monkeypatch):
    model, seen = objective((64, 64)), []
    mask = model.mask
    monkeypatch.setattr(model, "mask", lambda of: seen.append(mask(of)) or seen[-1])
    first, again = model.measure(samples(0, 6)), model.measure(samples(0, 6))
    assert first == again
    assert len({tuple(sorted(row)) for row in seen[0][1].tolist()}) == len(seen[0][1]) == 12


def test_a_cases_row_is_the_same_whoever_is_measured_beside_it(monkeypatch):
    model, val = objective(), samples(0, 6)
    model.on_start(val)
    together = model.measure(val)
    monkeypatch.setattr(mae, "CHUNK", 2)
    for sample, row in zip(val, together, strict=True):
        (alone,) = model.measure([sample])
        assert (alone["case"], alone["patient"]) == (sample.case.name, sample.case.patient)
        assert (alone["loss"], alone["gate"]) == pytest.approx((row["loss"], row["gate"]), rel=1e-5)


# Reconstructions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi", ROIS)
@torch.no_grad()
def test_reconstructions_show_the_visible_patches_exactly(roi):
    model, image = objective(roi, channels=2), torch.randn(3, 2, *roi)
    original, masked, predicted, mean_patch = model.reconstruct(image, keys(3))
    assert torch.equal(original, image)
    keep, hide = model.mask(keys(3))
    seen = take(patchify(image, model.encoder.patch), keep)
    for picture in (masked, predicted, mean_patch):
        assert picture.shape == image.shape
        assert torch.equal(take(patchify(picture, model.encoder.patch), keep), seen)
    assert take(patchify(masked, model.encoder.patch), hide).isnan().all()
    assert predicted.isfinite().all() and mean_patch.isfinite().all()


@torch.no_grad()
def test_a_perfect_prediction_reconstructs_the_image(monkeypatch):
    model, image = objective(), 9 + 4 * torch.randn(2, 1, 32, 24)
    target = model.target(image)
    monkeypatch.setattr(model.decoder, "forward", lambda features, keep, hide: take(target, hide))
    torch.testing.assert_close(model.reconstruct(image, keys(2))[2], image, rtol=1e-4, atol=1e-4)


def test_a_picture_of_reconstructions_is_written(tmp_path):
    model = objective((16, 16, 16))
    (path,) = model.pictures(samples(0, 2), tmp_path)
    assert path.parent == tmp_path and path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("roi", ROIS)
def test_the_film_shows_each_step_s_prediction_of_the_same_cases_beside_the_mean_patch(roi, tmp_path, monkeypatch):
    model, drawn = objective(roi), []
    monkeypatch.setattr("premed.data.figures.reconstruction", lambda *given: drawn.append(given) or given[0])
    model.mean_patch.fill_(0.5)
    early = model.snapshot(samples(0, 5))
    torch.nn.init.constant_(model.decoder.predict.bias, 2.0)
    late = model.snapshot(samples(0, 5))
    (path,) = model.progress_pictures(samples(0, 5), {20: late, 10: early}, tmp_path)
    _, cases, _, steps = drawn[0]
    assert path == tmp_path / "progress.png" and steps == [10, 20] and [case[0] for case in cases] == ["case0", "case1"]
    for (name, original, masked, first, second, mean_patch), sample in zip(cases, samples(0, 2), strict=True):
        hidden = np.isnan(masked)
        assert (first == early[name].numpy()).all() and (second == late[name].numpy()).all()
        assert (first[~hidden] == original[~hidden]).all() and (first[hidden] != second[hidden]).all()
        patches, mean = (patchify(torch.from_numpy(x)[None, None], model.encoder.patch) for x in (original, mean_patch))
        restored = patches.mean(-1, keepdim=True) + 0.5 * patches.std(-1, keepdim=True, correction=0)
        mask = patchify(torch.from_numpy(hidden)[None, None].float(), model.encoder.patch).bool()
        torch.testing.assert_close(mean[mask], restored.expand_as(mean)[mask], rtol=1e-4, atol=1e-4)
        assert sample.case.name == name
