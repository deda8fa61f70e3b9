"""Weights that others trained: fine-tuning starts from a public encoder, from a file or the Hugging Face hub.

`model` is an entry of `models/public_encoders.py` or a name of timm's: it says how the pixels were normalised that the
weights were trained on, and of what licence they are. The encoder is `timm` (pictures; `common/timm_weights.py`), or
`vit` (pictures and volumes) for plain ViTs (`common/vit_weights.py`). Nothing is trained.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat
from torch import Tensor

from premed.config.spec import Spec, runtime_field
from premed.contracts import Encoder, Task
from premed.errors import UserError
from premed.models import pretrained
from premed.models.encoders.timm import TimmEncoder
from premed.models.encoders.vit import ViT
from premed.models.public_encoders import named_encoder, origin, provenance
from premed.paths import expand_path
from premed.pretext.common import timm_weights, vit_weights


class Config(Spec):
    """A public encoder's weights, from a file, or from the hub where its authors offer them there."""

    name: Literal["pretrained"] = "pretrained"
    model: str
    """A public encoder (docs/public-encoders.md), or timm's name of a model."""
    weights: Path | None = runtime_field(None)
    """A file, read on this machine alone; the stage's digest depends on its content. None: from the hub."""
    mean: tuple[float, float, float] | None = None
    """Of the pixels in [0, 1] that the weights were trained on, per channel; None: the model's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None


build = None
"""Nothing is trained; `weights` returns pre-trained weights."""


def content(config: Config) -> str:
    """Returns the SHA-256 of the file with the weights."""
    return pretrained.sha256(weights_file(config))


def weights_file(config: Config) -> Path:
    """Returns the path of the file with the weights; downloads it from the hub if none is set."""
    if config.weights is not None:
        return expand_path(config.weights, "pretext.weights")
    if (hub := origin(config.model).hub) is None:
        raise UserError(f"pretext.model: {config.model} is not on the hub; give a file: pretext.weights=FILE")
    return pretrained.download(config.model, *hub)


def weights(config: Config, encoder: Encoder, task: Task) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the encoder's state, made to fit encoder and task, and a report with what is to be known of it."""
    about = origin(config.model)
    refuse_other_network(config.model, encoder)
    where = f"pretext.model: {config.model}" if config.weights is None else f"pretext.weights: {config.weights}"
    path = weights_file(config)
    state = pretrained.read_weights(path)
    mean_std = config.mean or about.mean, config.std or about.std
    if isinstance(encoder, TimmEncoder):
        fitting, report = timm_weights.fitted(where, state, encoder, task, mean_std)
    elif isinstance(encoder, ViT):
        named = pretrained.model_info(named_encoder(config.model, "pretext.model").timm)
        fitting, report = vit_weights.fitted(where, state, encoder, task, named, mean_std)
    else:
        raise UserError("encoder: these weights are for the encoders timm (pictures) and vit; use one of them")
    made = {"file": path.name, "sha256": pretrained.sha256(path), "model": config.model}
    return fitting, made | provenance(config.model, mean_std) | report


def refuse_other_network(model: str, encoder: Encoder) -> None:
    """Raises UserError if `model` is another network than the encoder's: names and shapes do not show all of it (rotary
    positions, the number of heads)."""
    if not isinstance(encoder, TimmEncoder):
        return
    theirs, ours = (named_encoder(name, "pretext.model") for name in (model, encoder.config.model))
    if (theirs.timm.partition(".")[0], theirs.args) != (ours.timm.partition(".")[0], ours.args):
        raise UserError(
            f"pretext.model: {model} is another network than the encoder's, {encoder.config.model}; "
            f"set encoder.model={model}"
        )
