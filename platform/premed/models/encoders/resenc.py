"""nnU-Net's residual encoder (ResEnc; Isensee 2024, "nnU-Net Revisited"), for pictures and volumes.

Names of parameters and arithmetic are those of dynamic-network-architectures' `ResidualEncoder` with nnU-Net's
settings: a stem, then stages of residual blocks, the first at full resolution. `heads/unet.py` is nnU-Net's decoder on
it. Visible patches alone (`keep`) are encoded as by sparse convolutions: `models/convolutions.py`.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from premed.config.spec import Spec, preset
from premed.contracts import Encoder, Features, Scale
from premed.errors import UserError
from premed.models.convolutions import (
    ConvBlock,
    ConvBlocks,
    ResidualBlock,
    init_he_weights,
    to_size,
    visible_patches,
)
from premed.models.patches import take

BLOCKS = (1, 3, 4, 6)  # of nnU-Net's first stages; of each further one 6
GROUPS = 8
SIZES = {"large": {"widths": (32, 64, 128, 256, 320, 320)}}  # nnU-Net's ResEnc-L as OpenMind has it: rois of 160

Width = Annotated[int, Field(ge=GROUPS, multiple_of=GROUPS)]
Count = Annotated[int, Field(ge=1)]


class Config(Spec):
    """The sizes of the network; the defaults are nnU-Net's for volumes of about 96 voxels an edge. `size: large`
    presets the widths of ResEnc-L, for volumes of about 160."""

    name: Literal["resenc"] = "resenc"
    widths: tuple[Width, ...] = Field((32, 64, 128, 256, 320), min_length=2)
    """Channels of each stage, fine to coarse; each stage has half the resolution of the one before. nnU-Net doubles 32
    up to 320 in volumes and 512 in pictures, and halves an axis while at least 4 places are left of it."""
    blocks: tuple[Count, ...] | None = None
    """Residual blocks of each stage. None: nnU-Net's 1, 3, 4, and from then on 6."""
    strides: tuple[tuple[Count, ...], ...] | None = None
    """For each stage but the first, by how much each axis is reduced. None: 2."""
    norm: Literal["instance", "group"] = "instance"
    """instance: nnU-Net's. It takes each channel's mean from each image; group (8 groups) leaves classification more of
    what it reads from the mean of a map."""

    @model_validator(mode="before")
    @classmethod
    def _size(cls, data: Any) -> Any:
        return preset(data, "size", SIZES)

    @model_validator(mode="after")
    def _lengths(self) -> "Config":
        for name, needed in (("blocks", len(self.widths)), ("strides", len(self.widths) - 1)):
            if (given := getattr(self, name)) is not None and len(given) != needed:
                raise ValueError(
                    f"{name} has {len(given)} entries, and with {len(self.widths)} widths it needs {needed}"
                )
        return self


def build(config: Config, channels: int, roi: Sequence[int], *more: tuple[int, Sequence[int]]) -> "ResEnc":
    """Builds the encoder for images [B, channels, *roi]. Raises UserError if the roi does not suit the strides, and for
    `more` data sets of other shapes: it has one grid."""
    if more:
        shapes = " and ".join(f"{n} × {list(size)}" for n, size in ((channels, roi), *more))
        raise UserError(f"pretrain.sources: resenc takes images of one shape, and these are {shapes}; use mit or unet")
    return ResEnc(config, channels, tuple(roi))


class ResEnc(Encoder):
    """Maps images [B, C, *roi] to Features; see `Encoder.forward`.

    The pyramid is the stages' maps; the coarsest one's places are the tokens and the patches that `keep` names, and
    their mean is the summary. It has no decoder.
    """

    takes_keep = True

    def __init__(self, config: Config, channels: int, roi: tuple[int, ...]):
        super().__init__()
        dims, widths = len(roi), config.widths
        steps = [(1,) * dims, *(config.strides or [(2,) * dims] * (len(widths) - 1))]
        scales = [Scale(widths[0], steps[0])]
        for width, step in zip(widths[1:], steps[1:], strict=True):
            if len(step) != dims:
                raise UserError(
                    f"encoder.strides: {step} has {len(step)} axes and the images have {dims}; give as many"
                )
            scales.append(Scale(width, tuple(a * b for a, b in zip(scales[-1].stride, step, strict=True))))
        self.pyramid, self.decoded, (self.width, self.patch) = tuple(scales), len(scales) - 1, scales[-1]
        self.grid = tuple(size // edge for size, edge in zip(roi, self.patch, strict=True))
        if any(size % edge for size, edge in zip(roi, self.patch, strict=True)):
            raise UserError(
                f"encoder.widths: {len(widths)} stages reduce images by {self.patch}, of which the roi {roi} is no "
                "multiple; choose a roi (or size) that is, or fewer widths"
            )
        if config.norm == "instance" and prod(self.grid) == 1:
            raise UserError(
                f"encoder.widths: {len(widths)} stages reduce the roi {roi} to one place, where instance norm leaves "
                "nothing; use fewer widths, or norm: group"
            )
        counts = config.blocks or (*BLOCKS, *[6] * len(widths))[: len(widths)]
        self.depth, self.counts = sum(counts), counts

        def groups(width: int) -> int:
            return width if config.norm == "instance" else GROUPS

        self.stem = ConvBlocks(ConvBlock(channels, widths[0], dims, groups=groups(widths[0])))
        self.stages, before = nn.ModuleList(), widths[0]
        for width, step, count in zip(widths, steps, counts, strict=True):
            first = ResidualBlock(before, width, dims, groups=groups(width), stride=step)
            rest = (
                ResidualBlock(width, width, dims, groups=groups(width), stride=(1,) * dims) for _ in range(count - 1)
            )
            self.stages.append(Stage(first, *rest))
            before = width
        init_he_weights(self)

    def forward(
        self, image: Tensor, *, keep: Tensor | None = None, taps: Sequence[int] = (), keys: Tensor | None = None
    ) -> Features:
        scales, patches = iter(self.drop_scales(keys)), None if keep is None else visible_patches(keep, self.grid)
        visible = None if patches is None else to_size(patches, image.shape[2:])
        x = self.stem(image if visible is None else image.masked_fill(visible == 0, 0), visible)
        maps, states = [], []
        for stage, scale in zip(self.stages, self.pyramid, strict=True):
            if patches is not None:
                visible = to_size(patches, [n // edge for n, edge in zip(image.shape[2:], scale.stride, strict=True)])
            states += stage(x, visible, scales)  # type: ignore[operator]
            maps.append(x := states[-1])
        tokens = x.flatten(2).transpose(1, 2)
        if keep is not None:
            tokens = take(tokens, keep)
        return Features(
            tokens=tokens,
            grid=self.grid,
            summary=tokens.mean(dim=1),
            taps={i: states[i].flatten(2).transpose(1, 2) for i in taps},
            pyramid=tuple(maps),
        )

    def layer(self, name: str) -> int:
        """The stem is 0; the residual blocks are counted through all stages."""
        part, *rest = name.split(".")
        return 0 if part == "stem" else 1 + sum(self.counts[: int(rest[0])]) + int(rest[2])


class Stage(nn.Module):
    """The residual blocks of one resolution."""

    def __init__(self, *blocks: ResidualBlock):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, visible: Tensor | None, scales: Iterator[Tensor | None]) -> list[Tensor]:
        """Returns the output of each block. scales: factors of each block's branches [2, B, 1, 1] (it has one), or
        None."""
        states = []
        for block in self.blocks:
            scale = next(scales)
            states.append(x := block(x, visible, None if scale is None else scale[0]))
        return states
