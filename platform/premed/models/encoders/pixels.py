"""The downsampled, flattened image: an encoder without parameters, for a baseline without a network."""

from collections.abc import Sequence
from math import prod
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from premed.config.spec import Spec
from premed.contracts import Encoder, Features
from premed.errors import UserError


class Config(Spec):
    """`edge`: values per axis after average pooling, at most the image's own (None: 32 in 2D, 16 in 3D)."""

    name: Literal["pixels"] = "pixels"
    edge: int | None = Field(default=None, ge=1)


def build(config: Config, channels: int, roi: Sequence[int], *more: tuple[int, Sequence[int]]) -> "Pixels":
    """Builds the encoder for images [B, channels, *roi]. It ignores `more`: it has nothing to pre-train."""
    return Pixels(config, channels, tuple(roi))


class Pixels(Encoder):
    """Maps images [B, C, *S] to one token, also the summary: the pooled values, channel by channel."""

    depth = 0

    def __init__(self, config: Config, channels: int, roi: tuple[int, ...]):
        super().__init__()
        edge = config.edge or (32 if len(roi) == 2 else 16)
        self.size = tuple(min(edge, size) for size in roi)
        self.width, self.patch, self.grid = channels * prod(self.size), roi, (1,) * len(roi)

    def forward(
        self, image: Tensor, *, keep: Tensor | None = None, taps: Sequence[int] = (), keys: Tensor | None = None
    ) -> Features:
        if keep is not None:
            raise UserError("encoder: pixels takes no masked images; choose a strategy that hides no patches")
        average = F.adaptive_avg_pool2d if len(self.size) == 2 else F.adaptive_avg_pool3d
        summary = average(image, self.size).flatten(1)  # type: ignore[arg-type]
        return Features(tokens=summary[:, None], grid=self.grid, summary=summary)

    def layer(self, name: str) -> int:
        raise AssertionError("it has no parameters")
