"""UNETR (Hatamizadeh 2022): a convolutional decoder on a transformer's hidden states, 2D or 3D, of MONAI's blocks.

For patch 16 and 12 blocks this is MONAI's `UNETR`, with the same weight names: it takes the outputs of blocks 3, 6 and
9 (counted from 0) and the normalised last tokens. A patch of 2^k has k levels; the k - 1 blocks are evenly spaced.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from premed.config.spec import Spec
from premed.contracts import Encoder, Features, Head, Task
from premed.errors import UserError
from premed.models.layers import in_float32

PER_VOXEL = True
"""Labels must be maps."""


class Config(Spec):
    """`feature_size`: channels at full resolution, doubled at each coarser level (SelfMedMAE: 16)."""

    name: Literal["unetr"] = "unetr"
    feature_size: int = Field(default=16, ge=1)


def build(config: Config, encoder: Encoder, task: Task) -> "UNETR":
    """Builds the head for `task`'s classes. Raises UserError if the encoder does not suit it."""
    if encoder.pyramid:
        raise UserError("finetune.head: unetr needs one grid in all blocks, and this encoder has several; use conv")
    edges = set(encoder.patch)
    levels = max(edges).bit_length() - 1
    if len(edges) != 1 or 2**levels != max(edges) or levels < 2:
        raise UserError(
            f"encoder.patch: {encoder.patch} does not suit the head unetr; use one power of two of at least 4"
        )
    if encoder.depth < levels:
        raise UserError(
            f"encoder.depth: {encoder.depth} is too shallow for unetr at patch {max(edges)}; use at least {levels}"
        )
    return UNETR(config, encoder, task.channels, len(task.classes), levels)


class UNETR(Head):
    """Logits [B, classes, *S] at the image's own resolution."""

    decoder2: nn.Module

    def __init__(self, config: Config, encoder: Encoder, channels: int, num_classes: int, levels: int):
        from monai.networks.blocks.dynunet_block import UnetOutBlock
        from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock

        super().__init__()
        self.levels, self.grid = levels, encoder.grid
        self.taps = tuple(encoder.depth * i // levels for i in range(1, levels))
        dims, size = len(encoder.grid), config.feature_size
        same = {"kernel_size": 3, "norm_name": "instance", "res_block": True}
        up = {"upsample_kernel_size": 2, **same}
        self.encoder1 = UnetrBasicBlock(dims, channels, size, stride=1, **same)
        for i in range(1, levels):  # encoder2, encoder3, …: tokens to maps at 1/2, 1/4, … of the resolution
            block = UnetrPrUpBlock(
                dims, encoder.width, size * 2**i, num_layer=levels - 1 - i, stride=1, conv_block=True, **up
            )
            self.add_module(f"encoder{i + 1}", block)
        for i in range(levels):  # decoder{levels + 1}, …, decoder2: from coarse to fine
            coarse = encoder.width if i == levels - 1 else size * 2 ** (i + 1)
            self.add_module(f"decoder{i + 2}", UnetrUpBlock(dims, coarse, size * 2**i, **up))
        self.out = UnetOutBlock(dims, size, num_classes)

    def forward(self, image: Tensor, features: Features) -> Tensor:
        x = self.to_map(features.tokens)
        for i in reversed(range(1, self.levels)):
            skip = getattr(self, f"encoder{i + 1}")(self.to_map(features.taps[self.taps[i - 1]]))
            x = getattr(self, f"decoder{i + 2}")(x, skip)
        return in_float32(self.out, self.decoder2(x, self.encoder1(image)))

    def to_map(self, tokens: Tensor) -> Tensor:
        """Reshapes tokens [B, L, D] to a map [B, D, *grid]."""
        return tokens.transpose(1, 2).unflatten(2, self.grid)
