"""HSSL's network: a U-Net (Ronneberger 2015), encoder and decoder, of MONAI's blocks, for pictures and volumes.

HSSL's widths and blocks are not public; these are ours. Norms are group norms, not a U-Net's instance
norms: those remove each channel's mean from each image, and classification reads the mean of a map.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from premed.config.spec import Spec
from premed.contracts import Encoder, Features, Scale
from premed.errors import UserError

GROUPS = 8  # of the norms

Width = Annotated[int, Field(ge=GROUPS, multiple_of=GROUPS)]


class Config(Spec):
    """`widths`: channels at each resolution, fine to coarse; each resolution is half the one before."""

    name: Literal["unet"] = "unet"
    widths: tuple[Width, ...] = Field((32, 64, 128, 256, 512), min_length=2)
    dims: Literal[2, 3] | None = None
    """2: a 2D network, which takes volumes slice by slice along their last axis. None: the images' number of axes."""


def build(config: Config, channels: int, roi: Sequence[int], *more: tuple[int, Sequence[int]]) -> "UNet":
    """Builds the encoder for images [B, channels, *roi]. Raises UserError if `more` (channels, roi) do not fit it."""
    encoder = UNet(config, channels, tuple(roi))
    for others, size in more:
        if others != channels:
            raise UserError(f"encoder: unet has one first layer, and its sources have {channels} and {others} channels")
        encoder.grid_of(tuple(size))
    return encoder


class UNet(Encoder):
    """Maps images [B, C, *S] to Features; see `Encoder.forward`. S may be any multiple of the strides.

    Tokens and grid are those of the encoder's coarsest map, and their mean is the summary: classification does not use
    the decoder. The pyramid is the decoder's maps, the finest on the image's grid, and the coarsest map.
    """

    decoded = 0

    def __init__(self, config: Config, channels: int, roi: tuple[int, ...]):
        from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock

        super().__init__()
        self.dims, self.num_levels = config.dims or len(roi), len(config.widths)
        strides = [(2**level,) * self.dims + (1,) * (len(roi) - self.dims) for level in range(self.num_levels)]
        self.width, self.patch, self.grid = config.widths[-1], strides[-1], self.grid_of(roi)
        self.pyramid, self.depth = tuple(map(Scale, config.widths, strides)), 2 * self.num_levels - 1

        norm = ("group", {"num_groups": GROUPS})
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (before, width) in enumerate(pairwise((channels, *config.widths))):
            self.down.append(UnetBasicBlock(self.dims, before, width, 3, 2 if level else 1, norm))
        for before, width in pairwise(reversed(config.widths)):
            self.up.append(UnetUpBlock(self.dims, before, width, 3, 1, 2, norm))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, a=0.01)  # He initialisation for the blocks' leaky ReLU

    def grid_of(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of the coarsest map for an image of `size`. Raises UserError if `size` does not suit the strides."""
        if len(size) < self.dims:
            raise UserError(f"encoder.dims: {self.dims} axes are more than pictures of {size} have; choose 2")
        stride = 2 ** (self.num_levels - 1)
        if any(n % stride for n in size[: self.dims]):
            raise UserError(
                f"encoder.widths: {self.num_levels} of them halve an image {self.num_levels - 1} times, and {size} is "
                f"no multiple of {stride}; choose a roi (or size) that is, or fewer widths"
            )
        return tuple(n // stride if axis < self.dims else n for axis, n in enumerate(size))

    def forward(
        self, image: Tensor, *, keep: Tensor | None = None, taps: Sequence[int] = (), keys: Tensor | None = None
    ) -> Features:
        if keep is not None:
            raise UserError("encoder: unet takes no masked images; choose a strategy that hides no patches")
        grid = self.grid_of(tuple(image.shape[2:]))
        sliced = len(grid) > self.dims
        x = image.movedim(-1, 1).flatten(0, 1) if sliced else image  # all slices as one batch of pictures
        states = []
        for block in self.down:
            states.append(x := block(x))
        for level, block in enumerate(self.up, start=2):
            states.append(x := block(x, states[self.num_levels - level]))
        if sliced:
            # not len(image), which would fix the batch size of an exported network
            states = [state.unflatten(0, (-1, grid[-1])).movedim(1, -1) for state in states]
        tokens = states[self.num_levels - 1].flatten(2).transpose(1, 2)
        return Features(
            tokens=tokens,
            grid=grid,
            summary=tokens.mean(dim=1),
            taps={i: states[i].flatten(2).transpose(1, 2) for i in taps},
            pyramid=tuple(states[: self.num_levels - 2 : -1]),
        )

    def layer(self, name: str) -> int:
        """Numbers the blocks from the encoder's first, which is layer 1, to the decoder's last."""
        part, number, *_ = name.split(".")
        return int(number) + 1 + (self.num_levels if part == "up" else 0)

    @property
    def drop_path(self) -> float:  # type: ignore[override]
        """Always 0: the blocks have no residual connection that would remain if the branch were dropped."""
        return 0.0

    @drop_path.setter
    def drop_path(self, rate: float) -> None:
        if rate:
            raise UserError(
                f"finetune.drop_path: is {rate:g}, and unet's blocks have no residual connections; set it to 0"
            )
