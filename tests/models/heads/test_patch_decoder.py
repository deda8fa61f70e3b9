"""heads/patch_decoder.py: full resolution from tokens alone, channels, refusals. Its equality with Primus' own package:
tests/models/encoders/test_primus.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from premed.errors import UserError
from premed.models.encoders import resenc, vit
from premed.models.heads import patch_decoder


def encoder(roi=(16, 24, 32), patch: int | tuple[int, ...] = 8, width=48):
    torch.manual_seed(0)
    return vit.build(vit.Config(width=width, depth=1, heads=2, patch=patch), 1, roi).eval()


def head(model, num_classes: int = 3) -> patch_decoder.PatchDecoder:
    task: Any = SimpleNamespace(classes=tuple(range(num_classes)))
    return patch_decoder.build(patch_decoder.Config(), model, task).eval()


@pytest.mark.parametrize(
    ("roi", "patch"),
    [((16, 24, 32), 8), ((32, 48), 16), ((16, 16, 12), (8, 8, 4)), ((16, 16, 3), (8, 8, 1)), ((8, 6), 2)],
)
@torch.no_grad()
def test_a_patch_s_logits_come_from_its_token_alone_at_full_resolution(roi, patch):
    model = encoder(roi, patch)
    decoder, image = head(model), torch.randn(2, 1, *roi)
    features = model(image)
    logits = decoder(image, features)
    assert logits.shape == (2, 3, *roi)
    features.tokens = features.tokens.index_fill(1, torch.tensor([0]), 1.0)
    changed = (decoder(image + 1, features) != logits).any(dim=1)
    corner = tuple(slice(edge) for edge in model.patch)
    assert changed[:, *corner].all() and changed.sum() == changed[:, *corner].numel()


def test_channels_shrink_by_one_factor_to_multiples_of_8():
    convolutions = [part for part in head(encoder(width=864, roi=(8, 8, 8)), 2).modules() if hasattr(part, "stride")]
    assert [part.out_channels for part in convolutions] == [144, 24, 2]


def test_every_weight_takes_part():
    model = encoder()
    decoder, image = head(model), torch.randn(2, 1, 16, 24, 32)
    decoder(image, model(image)).square().mean().backward()
    assert {name for name, parameter in decoder.named_parameters() if parameter.grad is None} == set()


@torch.no_grad()
def test_logits_are_not_rounded_to_the_eight_bits_of_bf16():
    model, image = encoder(), torch.randn(1, 1, 16, 24, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(model)(image, model(image))
    assert logits.dtype == torch.float32 and (logits != logits.bfloat16().float()).float().mean() > 0.9


@pytest.mark.parametrize("patch", [6, 1, (8, 8, 3)])
def test_a_patch_that_doubling_does_not_reach_is_refused_by_name(patch):
    with pytest.raises(UserError, match=r"encoder\.patch: .*patch_decoder; use powers of two"):
        head(encoder((24, 24, 24), patch))


def test_an_encoder_with_several_grids_is_refused_with_the_head_that_suits():
    with pytest.raises(UserError, match=r"finetune\.head: patch_decoder needs one grid.*use conv"):
        head(resenc.build(resenc.Config(widths=(8, 16)), 1, (16, 16)))
