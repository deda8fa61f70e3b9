"""What tests of public encoders of volumes share: a task, small networks, and an encoder with a file's weights."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.volume_checkpoints import (
    PRIMUS,
    WIDTH,
)

from premed.config.image_processing import Preprocessing
from premed.errors import UserError
from premed.models.encoders import swin, vit
from premed.pretext import pretrained

ROI = (64, 32, 32)
CT = Preprocessing(dims=3, normalise="window", window=(-175, 250), spacing=(1.5, 1.5, 1.5))


PRIMUS_M: Any = vit.Config.model_validate(PRIMUS)


def task_of(channels=1, roi=ROI, preprocessing=CT) -> Any:
    return SimpleNamespace(name="organs", dims=len(roi), channels=channels, roi=roi, preprocessing=preprocessing)


def on_meta(module, config, channels, roi):
    with torch.device("meta"):
        return module.build(config, channels, roi)


def brought(model, file, config, channels=1, roi=ROI, module: Any = swin):
    """An encoder with the file's weights, in evaluation, and the report."""
    settings = pretrained.Config(model=model, weights=file)
    state, report = pretrained.weights(settings, on_meta(module, config, channels, roi), task_of(channels, roi))
    encoder = module.build(config, channels, roi)
    encoder.load_state_dict(state)
    json.dumps(report)
    return encoder.eval(), report


def small(v2=False, **more) -> swin.Config:
    return swin.Config(width=WIDTH, v2=v2, **more)


def refused(words, model, file, config, **settings):
    """Asserts that a file is refused in one line, with these words."""
    with pytest.raises(UserError, match=words) as caught:
        brought(model, file, config, **settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
