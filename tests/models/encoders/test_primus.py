"""encoders/vit.py with the options of Primus: equal to its own package's; rotary positions; hidden voxels; MAE."""

from typing import Any

import numpy as np
import pytest
import torch
from support.primus_reference import (
    CASES,
    CHANNELS,
    DEPTH,
    HEADS,
    NUM_CLASSES,
    VISIBLE,
    WIDTH,
    Case,
    fill,
    image,
    read,
    some,
)

from premed.models.encoders import vit
from premed.models.encoders.vit import Config, ViT
from premed.models.heads import patch_decoder


def config(size: str = "primus-s", **changes: Any) -> Config:
    return Config.model_validate({"size": size, "width": WIDTH, "depth": DEPTH, "heads": HEADS, **changes})


def encoder(roi=(16, 24, 32), channels=CHANNELS, **changes) -> ViT:
    torch.manual_seed(0)
    return vit.build(config(**changes), channels, roi).eval()


def task(dims: int = 3) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(dims=dims, channels=CHANNELS, classes=tuple("abc"[:NUM_CLASSES]))


# Equal to dynamic-network-architectures -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_features_and_logits_are_those_of_its_own_package(name):
    case: Case = CASES[name]
    model = encoder(case.roi, patch=case.patch, registers=case.registers, stem=case.stem)
    head = patch_decoder.build(patch_decoder.Config(), model, task())
    fill(model.named_parameters())
    fill((f"head.{name}", parameter) for name, parameter in head.named_parameters())
    features = model(image(case), keep=VISIBLE if case.masked else None)
    outputs = [features.tokens] if case.masked else [features.tokens, head(image(case), features)]
    assert len(outputs) == len(read(name))
    for seen, expected in zip(outputs, read(name), strict=True):
        np.testing.assert_allclose(some(seen), expected, rtol=1e-4, atol=2e-5)
