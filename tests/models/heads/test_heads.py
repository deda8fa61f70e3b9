"""heads/: the linear layer is timm's and MAE's, UNETR is MONAI's, conv ends at full resolution."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from premed.config.plugins import plugin
from premed.contracts import Encoder, Features, Scale
from premed.errors import UserError
from premed.models.encoders import mit, vit
from premed.models.heads import conv, linear, unetr
from premed.training.setup import refuse_labels


def task(dims: int, channels=1, classes=("background", "a", "b")) -> Any:
    return SimpleNamespace(dims=dims, channels=channels, classes=classes)


def encoder(roi, patch: int | tuple[int, ...] = 16, depth=12, width=24, channels=1) -> Encoder:
    torch.manual_seed(0)
    return vit.build(vit.Config(width=width, depth=depth, heads=2, patch=patch), channels, roi).eval()


# UNETR ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi", [(48, 32), (32, 48, 32)])
@torch.no_grad()
def test_unetr_fed_with_monais_states_and_weights_gives_monais_answer(roi):
    from monai.networks.nets import unetr as monai_unetr

    torch.manual_seed(1)
    sizes: dict[str, Any] = {"feature_size": 4, "hidden_size": 24, "num_heads": 2}
    reference = monai_unetr.UNETR(in_channels=2, out_channels=3, img_size=roi, spatial_dims=len(roi), **sizes).eval()
    head = unetr.build(unetr.Config(feature_size=4), encoder(roi, channels=2), task(len(roi), channels=2)).eval()
    weights = {name: value for name, value in reference.state_dict().items() if not name.startswith("vit.")}
    head.load_state_dict(weights)
    image = torch.randn(2, 2, *roi)
    tokens, states = reference.vit(image)
    features = Features(tokens, tuple(n // 16 for n in roi), taps={i: states[i] for i in head.taps})
    assert head.taps == (3, 6, 9)
    torch.testing.assert_close(head(image, features), reference(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("patch", "depth", "taps"),
    [(4, 2, (1,)), (4, 5, (2,)), (8, 3, (1, 2)), (8, 6, (2, 4)), (16, 4, (1, 2, 3)), (32, 5, (1, 2, 3, 4))],
)
@pytest.mark.parametrize("dims", [2, 3])
def test_unetr_answers_at_full_resolution_whatever_the_patch(patch, depth, taps, dims):
    roi = (2 * patch, *[patch] * (dims - 1)) if patch > 8 else (2 * patch,) * dims
    model = encoder(roi, patch, depth)
    head = unetr.build(unetr.Config(feature_size=2), model, task(dims))
    image = torch.randn(2, 1, *roi)
    with torch.no_grad():
        logits = head(image, model(image, taps=head.taps))
    assert head.taps == taps
    assert logits.shape == (2, 3, *roi) and logits.isfinite().all()


def test_every_weight_of_unetr_and_of_the_encoder_takes_part():
    model = encoder((32, 32), patch=8, depth=3)
    head = unetr.build(unetr.Config(feature_size=2), model, task(2))
    image = torch.randn(2, 1, 32, 32)
    head(image, model(image, taps=head.taps)).square().mean().backward()
    unused = {name for part in (model, head) for name, p in part.named_parameters() if p.grad is None}
    assert unused == set()


@pytest.mark.parametrize(
    ("patch", "depth", "message"),
    [
        (2, 12, r"encoder\.patch: .*power of two"),
        (6, 12, r"encoder\.patch: .*power of two"),
        ((8, 4), 12, r"encoder\.patch: .*power of two"),
        (16, 3, r"encoder\.depth: 3 is too shallow.* at least 4"),
    ],
)
def test_an_encoder_that_does_not_suit_unetr_is_refused_by_name(patch, depth, message):
    with pytest.raises(UserError, match=message):
        unetr.build(unetr.Config(), encoder((48, 48), patch, depth), task(2))


# Linear ---------------------------------------------------------------------------------------------------------------


def features() -> Features:
    torch.manual_seed(0)
    return Features(tokens=torch.randn(2, 6, 24), grid=(2, 3), summary=torch.randn(2, 24))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_linear_is_one_layer_on_the_class_token_or_the_mean_token(pool):
    head = linear.build(linear.Config(pool=pool), encoder((32, 32), patch=8, depth=1), task(2))
    seen = features()
    pooled = seen.summary if pool == "cls" else seen.tokens.sum(dim=1) / 6
    assert pooled is not None
    expected = pooled @ head.fc.weight.T + head.fc.bias
    torch.testing.assert_close(head(torch.empty(0), seen), expected)
    assert expected.shape == (2, 3)


def test_linear_starts_from_an_even_answer():
    head = linear.Linear(linear.Config(), 24, 3)
    assert head(torch.empty(0), features()).abs().max() < 1e-3


def test_an_encoder_without_a_class_token_is_refused_with_a_remedy():
    seen = features()
    seen.summary = None
    with pytest.raises(UserError, match=r"finetune\.head\.pool.*pool: mean"):
        linear.Linear(linear.Config(), 24, 3)(torch.empty(0), seen)
    linear.Linear(linear.Config(pool="mean"), 24, 3)(torch.empty(0), seen)


# Conv -----------------------------------------------------------------------------------------------------------------


def pyramid(roi, channels=1, stem_stride=(2, 2, 1)) -> Encoder:
    torch.manual_seed(0)
    numbers = {"widths": (8, 16, 16, 32), "heads": (1, 1, 2, 2), "decoder_heads": (1, 1, 1), "stem_width": 4}
    config = mit.Config.model_validate({"size": "tiny", "stem_stride": stem_stride, **numbers})
    return mit.build(config, channels, roi).eval()


@pytest.mark.parametrize("stem_stride", [(2, 2, 1), (1, 1, 1)])
@pytest.mark.parametrize("roi", [(64, 32), (32, 64, 16)])
def test_conv_answers_at_full_resolution_and_every_weight_takes_part(roi, stem_stride):
    model = pyramid(roi, channels=2, stem_stride=stem_stride)
    head = conv.build(conv.Config(feature_size=2), model, task(len(roi), channels=2))
    image = torch.randn(2, 2, *roi)
    logits = head(image, model(image))
    assert logits.shape == (2, 3, *roi) and logits.isfinite().all()
    logits.square().mean().backward()
    assert {name for part in (model, head) for name, p in part.named_parameters() if p.grad is None} == set()


def test_conv_reads_the_finest_decoded_map_and_the_early_ones_beside_it():
    model = pyramid((64, 32))
    head = conv.build(conv.Config(), model, task(2))
    seen = model(torch.randn(2, 1, 64, 32))
    maps = tuple(part.detach().requires_grad_() for part in seen.pyramid)
    head(torch.empty(0), Features(seen.tokens, seen.grid, pyramid=maps)).square().mean().backward()
    assert [part.grad is not None for part in maps] == [True, True, False, False, False]


def test_conv_is_one_layer_where_the_decoder_ends_at_full_resolution():
    """As a U-Net's does: its decoder has made even the finest map."""
    other: Any = SimpleNamespace(pyramid=(Scale(6, (1, 1)), Scale(9, (2, 2))), decoded=0)
    head = conv.build(conv.Config(), other, task(2))
    maps = (torch.randn(2, 6, 8, 8), torch.randn(2, 9, 4, 4))
    weight, bias = (p.detach() for p in head.parameters())
    expected = torch.einsum("bchw,kc->bkhw", maps[0], weight[..., 0, 0]) + bias[:, None, None]
    torch.testing.assert_close(head(torch.empty(0), Features(torch.empty(0), (8, 8), pyramid=maps)), expected)


def test_an_encoder_that_does_not_suit_a_segmentation_head_is_refused_by_name():
    with pytest.raises(UserError, match=r"finetune\.head: conv needs feature maps.*use unetr"):
        conv.build(conv.Config(), encoder((32, 32)), task(2))
    with pytest.raises(UserError, match=r"finetune\.head: unetr needs one grid.*use conv"):
        unetr.build(unetr.Config(), pyramid((64, 32)), task(2))


@pytest.mark.parametrize("head", ["conv", "linear", "patch_decoder", "unet", "unetr", "probe"])
@pytest.mark.parametrize("labels", [(), (0, 1)])
def test_a_head_is_for_labels_of_images_or_for_maps(head, labels):
    per_voxel = getattr(plugin("heads", {"name": head}), "PER_VOXEL", None)
    other = SimpleNamespace(labels=labels)
    if head == "probe" or (head == "linear") == (labels == ()):
        refuse_labels(head, per_voxel, other)
        return
    with pytest.raises(UserError, match=f"finetune.head: {head} answers (per voxel|for a whole image), and labels are"):
        refuse_labels(head, per_voxel, other)


# All ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv", "linear", "unetr"])
def test_a_head_is_found_by_its_name_and_takes_no_unknown_setting(name):
    module = plugin("heads", {"name": name})
    assert module.Config().name == name
    with pytest.raises(ValueError, match="pools"):
        module.Config(pools="cls")


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "config"), [(unetr, unetr.Config(feature_size=2)), (linear, linear.Config())])
@torch.no_grad()
def test_logits_are_not_rounded_to_the_eight_bits_of_bf16(head, config):
    """In which images that a network tells apart tie: the AUC of one that has learnt little becomes 0.500."""
    model = encoder((16, 16), 8, 3)
    built = head.build(config, model, task(2))
    images = torch.randn(8, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        features = model(images, taps=built.taps)
        logits = built(images, features)
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9
    if head is linear:
        torch.testing.assert_close(logits, built(images, features), rtol=0, atol=0)


def test_an_image_classifier_in_bf16_ranks_images_as_in_float32():
    torch.manual_seed(0)
    model = encoder((16, 16), 8, 3)
    head = linear.build(linear.Config(pool="mean"), model, task(2, classes=("a",)))
    with torch.no_grad():
        head.fc.bias.fill_(1.0)  # far from the small differences between images
        tokens = torch.randn(200, 4, 24)
        exact = head(tokens, Features(tokens, (2, 2)))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = head(tokens, Features(tokens, (2, 2)))
    assert torch.equal(exact.flatten().argsort(), rounded.flatten().argsort())
