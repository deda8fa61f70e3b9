"""ImageNet weights: fine-tuning starts from a timm ViT, from the Hugging Face hub or a file. Nothing is trained.

`pretrained` does the same, and more, for the weights of others; this is its older name, with the encoder `vit` alone.
The rules by which weights are made to fit are in `common/vit_weights.py`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat
from torch import Tensor

from premed.config.spec import Spec, runtime_field
from premed.contracts import Encoder, Task
from premed.errors import UserError
from premed.models import pretrained
from premed.models.encoders.vit import ViT
from premed.models.public_encoders import provenance
from premed.paths import expand_path
from premed.pretext.common.vit_weights import fitted, refuse_shape


class Config(Spec):
    """Weights by timm's model name, from the hub; or from a file, which is assumed to be of that model."""

    name: Literal["imagenet"] = "imagenet"
    model: str = "vit_base_patch16_224.augreg_in1k"
    """Also gives the normalisation that a file's weights were trained with, unless `mean` and `std` are set."""
    weights: Path | None = runtime_field(None)
    """A file, read on this machine alone; the stage's digest depends on its content."""
    mean: tuple[float, float, float] | None = None
    """Of the pixels in [0, 1], per channel; None: the model's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None


build = None
"""Nothing is trained; `weights` returns pre-trained weights."""


def content(config: Config) -> str:
    """Returns the SHA-256 of the file with the weights."""
    return pretrained.sha256(weights_file(config))


def weights_file(config: Config) -> Path:
    """Returns the path of the file with the weights; downloads it from the hub if none is set."""
    return (
        pretrained.download(config.model) if config.weights is None else expand_path(config.weights, "pretext.weights")
    )


def weights(config: Config, encoder: Encoder, task: Task) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the encoder's state, converted from the file by the rules above, and a report of the changes."""
    if not isinstance(encoder, ViT):
        raise UserError("encoder: imagenet's weights are a vision transformer's; use vit")
    named = pretrained.model_info(config.model)
    where = f"pretext.weights: {config.weights}"
    if config.weights is None:  # refuse before downloading
        where = f"pretext.model: {config.model}"
        pretrained.refuse_variants(named.names, where)
        refuse_shape(where, encoder, named.width, named.depth, named.heads)
    path = weights_file(config)
    mean_std = config.mean or named.mean, config.std or named.std
    state, report = fitted(where, pretrained.read_weights(path), encoder, task, named, mean_std)
    made = {"file": path.name, "sha256": pretrained.sha256(path), "model": config.model}
    return state, made | provenance(config.model, mean_std) | report
