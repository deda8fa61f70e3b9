"""Primus' decoder (Wald 2025): transposed convolutions from the last tokens to full resolution, and nothing beside.

So all that is seen of an image passes through the transformer, unlike in UNETR, whose convolutions read the image, too.
Names and arithmetic are those of dynamic-network-architectures' `PatchDecode`, its `up_projection`.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from premed.config.spec import Spec
from premed.contracts import Encoder, Features, Head, Task
from premed.errors import UserError
from premed.models.convolutions import init_he_convolutions, upsampling
from premed.models.layers import in_float32

EPS = 1e-6


PER_VOXEL = True
"""Labels must be maps."""


class Config(Spec):
    """It has no fields of its own: the channels shrink by the same factor at each doubling of the resolution."""

    name: Literal["patch_decoder"] = "patch_decoder"


def build(config: Config, encoder: Encoder, task: Task) -> "PatchDecoder":
    """Builds the head for `task`'s classes. Raises UserError if the encoder does not suit it."""
    if encoder.pyramid:
        raise UserError(
            "finetune.head: patch_decoder needs one grid in all blocks, and this encoder has several; use conv"
        )
    levels = max(encoder.patch).bit_length() - 1
    if levels < 1 or any(edge & (edge - 1) for edge in encoder.patch):
        raise UserError(f"encoder.patch: {encoder.patch} does not suit the head patch_decoder; use powers of two")
    return PatchDecoder(encoder, len(task.classes), levels)


class PatchDecoder(Head):
    """Logits [B, classes, *S] at the image's own resolution."""

    def __init__(self, encoder: Encoder, num_classes: int, levels: int):
        super().__init__()
        self.grid = encoder.grid
        factor = (encoder.width / (2 * num_classes)) ** (1 / levels)
        widths = [encoder.width, *(multiple_of_8(encoder.width / factor ** (i + 1)) for i in range(levels - 1))]
        # an axis with a smaller patch is doubled later, or not at all in the first stages
        strides = [[2 if edge >> i > 1 else 1 for edge in encoder.patch] for i in reversed(range(levels))]
        stages: list[nn.Module] = [
            nn.Sequential(upsampling(before, after, stride), ChannelNorm(after), nn.GELU())
            for before, after, stride in zip(widths, widths[1:], strides, strict=False)
        ]
        stages.append(upsampling(widths[-1], num_classes, strides[-1]))
        self.decode = nn.Sequential(*stages)
        init_he_convolutions(self)

    def forward(self, image: Tensor, features: Features) -> Tensor:
        x = self.decode[:-1](features.tokens.transpose(1, 2).unflatten(2, self.grid))
        return in_float32(self.decode[-1], x)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map [B, C, *S], at each place by itself."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)


def multiple_of_8(channels: float) -> int:
    """The nearest one, from 8 on; halves upwards, as the reference rounds."""
    return max(8, 8 * round((channels + 1e-6) / 8))
