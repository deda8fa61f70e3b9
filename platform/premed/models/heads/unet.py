"""nnU-Net's decoder: transposed convolutions, the encoder's maps as skip connections, deep supervision.

Arithmetic is that of dynamic-network-architectures' `UNetDecoder` with one convolution per stage, as nnU-Net's ResEnc
has. Deep supervision (nnU-Net's): in training, coarser stages answer, too, and their loss is on labels of their
resolution. Inference has the full resolution's answer alone.
"""

from itertools import pairwise
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from premed.config.spec import Spec
from premed.contracts import Encoder, Features, Head, Scale, Task
from premed.errors import UserError
from premed.models.convolutions import ConvBlock, ConvBlocks, init_he_weights, upsampling
from premed.models.layers import in_float32

PER_VOXEL = True
"""Labels must be maps."""


class Config(Spec):
    """Widths and number of stages are the encoder's."""

    name: Literal["unet"] = "unet"
    deep_supervision: bool = True
    """In training, coarser stages answer, too; the loss of each counts half of the finer one's, the coarsest's not."""


def build(config: Config, encoder: Encoder, task: Task) -> "UNetDecoder":
    """Builds the head for `task`'s classes. Raises UserError unless the encoder has maps from full resolution on, and
    no decoder of its own."""
    scales = encoder.pyramid[encoder.decoded :: -1]
    if len(scales) < 2 or prod(scales[-1].stride) > 1:
        raise UserError(
            "finetune.head: unet needs an encoder with maps from full resolution on, and no decoder of its own; use "
            "resenc, or the head conv or unetr"
        )
    return UNetDecoder(config, scales, len(task.classes))


class UNetDecoder(Head):
    """Logits [B, classes, *S] at the image's own resolution. scales: of its input maps, coarse to fine."""

    def __init__(self, config: Config, scales: tuple[Scale, ...], num_classes: int):
        super().__init__()
        dims = len(scales[0].stride)
        self.transpconvs, self.stages = nn.ModuleList(), nn.ModuleList()
        for coarse, fine in pairwise(scales):
            by = tuple(a // b for a, b in zip(coarse.stride, fine.stride, strict=True))
            self.transpconvs.append(upsampling(coarse.channels, fine.channels, by))
            self.stages.append(ConvBlocks(ConvBlock(2 * fine.channels, fine.channels, dims, groups=fine.channels)))
        num_answers = max(len(scales) - 2, 1) if config.deep_supervision else 1
        halves = [0.5**i for i in range(num_answers)]
        self.loss_weights = tuple(weight / sum(halves) for weight in halves)
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        widths = [scale.channels for scale in scales[: -num_answers - 1 : -1]]
        self.seg_layers = nn.ModuleList(convolution(width, num_classes, 1) for width in widths)  # fine to coarse
        init_he_weights(self)

    def forward(self, image: Tensor, features: Features) -> Tensor:
        return in_float32(self.seg_layers[0], self.maps(features)[0])

    def answers(self, image: Tensor, features: Features) -> tuple[tuple[float, Tensor], ...]:
        logits = (in_float32(layer, x) for layer, x in zip(self.seg_layers, self.maps(features), strict=False))
        return tuple(zip(self.loss_weights, logits, strict=True))

    def maps(self, features: Features) -> list[Tensor]:
        """The decoder's maps, fine to coarse."""
        x, *skips = features.pyramid[len(self.stages) :: -1]
        maps = []
        for up, stage, skip in zip(self.transpconvs, self.stages, skips, strict=True):
            x = up(x)
            maps.append(x := stage(torch.cat([x, skip], dim=1)))
        return maps[::-1]
