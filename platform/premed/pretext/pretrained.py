"""Weights that others trained: fine-tuning starts from a public encoder, from a file or the Hugging Face hub.

`model` is an entry of `models/public_encoders.py` or a name of timm's: it says how the pixels were normalised that the
weights were trained on, and of what licence they are. The encoder is `timm` (pictures; `common/timm_weights.py`), or
`vit` (pictures and volumes) for plain ViTs (`common/vit_weights.py`). Or it is an entry of `models/public_volumes.py`,
for the encoders `resenc` and `swin` (`common/volume_weights.py`). Nothing is trained.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat
from torch import Tensor

from premed.config.spec import Spec, runtime_field
from premed.contracts import Encoder, Task
from premed.errors import Finding, UserError
from premed.models import pretrained
from premed.models.encoders.timm import TimmEncoder
from premed.models.encoders.vit import ViT
from premed.models.public_encoders import PUBLIC_ENCODERS, named_encoder, origin, provenance
from premed.models.public_volumes import PUBLIC_VOLUME_ENCODERS, volume_provenance
from premed.paths import expand_path
from premed.pretext.common import timm_weights, vit_weights, volume_weights


class Config(Spec):
    """A public encoder's weights, from a file, or from the hub where its authors offer them there."""

    name: Literal["pretrained"] = "pretrained"
    model: str
    """A public encoder (docs/public-encoders.md), or timm's name of a model."""
    weights: Path | None = runtime_field(None)
    """A file, read on this machine alone; the stage's digest depends on its content. None: from the hub."""
    mean: tuple[float, float, float] | None = None
    """Of the pixels in [0, 1] that the weights were trained on, per channel; None: the model's. Pictures only."""
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
    volumes = PUBLIC_VOLUME_ENCODERS.get(config.model)
    if (hub := (volumes or origin(config.model)).hub) is None:
        raise UserError(f"pretext.model: {config.model} is not on the hub; give a file: pretext.weights=FILE")
    return pretrained.download(config.model, *hub)


def weights(config: Config, encoder: Encoder, task: Task) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the encoder's state, made to fit encoder and task, and a report with what is to be known of it."""
    where = f"pretext.model: {config.model}" if config.weights is None else f"pretext.weights: {config.weights}"
    if config.model in PUBLIC_VOLUME_ENCODERS:
        return weights_of_volumes(where, config, encoder, task)
    about = origin(config.model)
    refuse_other_network(config.model, encoder)
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


def weights_of_volumes(
    where: str, config: Config, encoder: Encoder, task: Task
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`weights`, of an encoder of volumes."""
    if config.mean or config.std:
        raise UserError(f"pretext: mean and std are for pictures, and {config.model} is for volumes; leave them out")
    volume_weights.refuse_other_network(encoder, task, config.model, PUBLIC_VOLUME_ENCODERS[config.model])
    path = weights_file(config)
    fitting, report = volume_weights.fitted(where, *pretrained.read_checkpoint(path), encoder, task, config.model)
    made = {"file": path.name, "sha256": pretrained.sha256(path), "model": config.model}
    return fitting, made | volume_provenance(config.model) | report


def preparation_notes(config: Config, task: Task) -> Iterator[Finding]:
    """Notes on a task whose images the weights may have been trained on, and on one that prepares volumes otherwise.

    Of pictures, the difference in preparation is folded into the stem.
    """
    known = PUBLIC_VOLUME_ENCODERS.get(config.model) or PUBLIC_ENCODERS.get(config.model)
    if known is not None and task.name in known.overlapping_tasks:
        what = f"{config.model} was trained on images of {task.name}, maybe those of test: scores may be too good"
        yield Finding("note", "pretext.model", what)
    if (entry := PUBLIC_VOLUME_ENCODERS.get(config.model)) is None or task.dims != 3:
        return
    for field, own, theirs in entry.preparation.differences(task.preprocessing):
        what = f"is {own}, and the weights of {config.model} were trained with {theirs}: task.{field}={theirs} is alike"
        yield Finding("note", f"task.{field}", what)
    if task.channels != 1:
        what = f"has {task.channels} channels, and the weights of {config.model} were trained with 1: they share it"
        yield Finding("note", f"task {task.name}", what)


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
