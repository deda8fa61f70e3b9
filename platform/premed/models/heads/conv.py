"""A convolutional segmentation head for encoders with their own decoder.

It starts from the decoder's finest map, takes finer, earlier maps as skip connections (UNETR's blocks, from MONAI), and
upsamples to full resolution.
"""

from itertools import pairwise
from math import prod
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from premed.config.spec import Spec
from premed.contracts import Encoder, Features, Head, Scale, Task
from premed.errors import UserError
from premed.models.layers import in_float32

PER_VOXEL = True
"""Labels must be maps."""


class Config(Spec):
    """`feature_size`: channels at full resolution, if no feature map is that fine."""

    name: Literal["conv"] = "conv"
    feature_size: int = Field(default=16, ge=1)


def build(config: Config, encoder: Encoder, task: Task) -> "Conv":
    """Builds the head for `task`'s classes. Raises UserError if the encoder has no feature maps."""
    if not encoder.pyramid:
        raise UserError("finetune.head: conv needs feature maps, and this encoder has none; use unetr")
    return Conv(config, encoder.pyramid[encoder.decoded :: -1], len(task.classes))


class Conv(Head):
    """Logits [B, classes, *S] at the image's own resolution. scales: of its input maps, coarse to fine."""

    def __init__(self, config: Config, scales: tuple[Scale, ...], num_classes: int):
        from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetResBlock, get_conv_layer
        from monai.networks.blocks.unetr_block import UnetrUpBlock

        super().__init__()
        finest, dims, size = scales[-1], len(scales[-1].stride), scales[-1].channels
        self.ups = nn.ModuleList()
        for coarse, fine in pairwise(scales):
            by = tuple(a // b for a, b in zip(coarse.stride, fine.stride, strict=True))
            self.ups.append(UnetrUpBlock(dims, coarse.channels, fine.channels, 3, by, "instance", res_block=True))
        self.last = nn.Identity()
        if prod(finest.stride) > 1:
            size = config.feature_size
            up = get_conv_layer(dims, finest.channels, size, finest.stride, finest.stride, is_transposed=True)
            self.last = nn.Sequential(up, UnetResBlock(dims, size, size, 3, 1, "instance"))
        self.out = UnetOutBlock(dims, size, num_classes)

    def forward(self, image: Tensor, features: Features) -> Tensor:
        x, *skips = features.pyramid[len(self.ups) :: -1]
        for up, skip in zip(self.ups, skips, strict=True):
            x = up(x, skip)
        return in_float32(self.out, self.last(x))
