"""MiT, the transformer of UniMiSS (Xie 2022): a pyramid with its own decoder, for pictures and volumes.

Parameters that depend on the number of axes exist once per branch (`models/layers.py`). A network has the branches
that it is built for: one to fine-tune, both to pre-train on both.

Differences from the authors' code: volumes are in RAS order, so the axis that the first convolution does not downsample
is the last; positions keep their grid's axes and are resized along these; eps is 1e-6 in all norms; drop path is
applied.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from premed.config.spec import Spec, preset
from premed.contracts import Encoder, Features, Scale
from premed.errors import UserError
from premed.models.layers import (
    Block,
    PyramidStage,
    branch_name,
    convolution,
    downsample,
    interpolate_positions,
    split_class_token,
    upsample,
)

SIZES = {  # blocks per stage, of the encoder and of the decoder
    "tiny": {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1)},
    "small": {"depths": (2, 3, 4, 3), "decoder_depths": (3, 4, 3)},
}

Count = Annotated[int, Field(ge=1)]
Three = tuple[Count, Count, Count]
Four = tuple[Count, Count, Count, Count]


class Config(Spec):
    """`size: tiny | small` presets the depths; explicit numbers override it. Encoder: fine to coarse; decoder: back."""

    name: Literal["mit"] = "mit"
    widths: Four = (48, 128, 256, 512)
    heads: Four = (1, 2, 4, 8)
    depths: Four = SIZES["small"]["depths"]
    decoder_heads: Three = (8, 4, 2)
    decoder_depths: Three = SIZES["small"]["decoder_depths"]
    reductions: Four = (6, 4, 2, 1)
    """For each encoder stage, how many patches per axis are merged into one key."""
    stem_width: Count = 32
    stem_stride: Three = (2, 2, 1)
    """Stride of the first convolution per axis (pictures: the first two); the stages have 2, 4, 8 and 16 times it."""

    @model_validator(mode="before")
    @classmethod
    def _size(cls, data: Any) -> Any:
        return preset(data, "size", SIZES)

    @model_validator(mode="after")
    def _divides(self) -> "Config":
        for field, widths in {"heads": self.widths, "decoder_heads": self.widths[2::-1]}.items():
            heads = getattr(self, field)
            if any(width % n for width, n in zip(widths, heads, strict=True)):
                raise ValueError(f"{field}: {list(heads)} do not divide the widths {list(widths)}")
        return self

    def strides(self, dims: int) -> list[tuple[int, ...]]:
        """Voxels per patch along each axis: of the stem, then of each stage."""
        return [tuple(edge * 2**i for edge in self.stem_stride[:dims]) for i in range(1 + len(self.widths))]

    def grids(self, size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Patches per axis at each stage for an image of `size`. UserError if `size` does not suit the strides."""
        *_, coarsest = strides = self.strides(len(size))
        if any(n % edge for n, edge in zip(size, coarsest, strict=True)):
            raise UserError(
                f"encoder.stem_stride: {list(self.stem_stride)} makes patches of {coarsest} at the last stage, "
                f"of which {size} is no multiple; choose a roi that is, or a smaller stem_stride"
            )
        grids = [tuple(n // edge for n, edge in zip(size, stride, strict=True)) for stride in strides[1:]]
        if prod(grids[-1]) == 1:
            raise UserError(
                f"encoder.stem_stride: {list(self.stem_stride)} leaves one patch of {size} at the last stage, "
                "which instance norm cannot normalise; choose a larger roi or a smaller stem_stride"
            )
        if any(min(grid) < edge for grid, edge in zip(grids, self.reductions, strict=True)):
            raise UserError(
                f"encoder.reductions: {list(self.reductions)} exceed the patches per axis, {grids}; choose smaller ones"
            )
        return grids


def build(config: Config, channels: int, roi: Sequence[int], *more: tuple[int, Sequence[int]]) -> "MiT":
    """Builds the encoder for images [B, channels, *roi] and for `more` (channels, roi) with any number of axes.

    Raises UserError if images with equally many axes differ in channels: they share one stem.
    """
    inputs = {len(roi): (channels, tuple(roi))}
    for n, size in more:
        config.grids(tuple(size))
        first, _ = inputs.setdefault(len(size), (n, tuple(size)))
        if first != n:
            raise UserError(
                f"pretrain.sources: images of {len(size)} axes have {first} and {n} channels; mit has one stem for both"
            )
    return MiT(config, *inputs.values())


class MiT(Encoder):
    """Maps images [B, C, *S] to Features; see `Encoder.forward`. S may be any multiple of the strides.

    Tokens, grid and class token are those of the decoder's last, finest stage. The pyramid is the stem, the decoder's
    maps, and the encoder's coarsest map. inputs: (channels, roi) per branch; the attributes describe the first.
    """

    decoded = 1

    def __init__(self, config: Config, *inputs: tuple[int, tuple[int, ...]]):
        super().__init__()
        self.config = config
        self.branches = [branch_name(len(roi)) for _, roi in inputs]
        assert len(set(self.branches)) == len(inputs), "one kind of image per number of axes"
        grids = list(zip(*(config.grids(roi) for _, roi in inputs), strict=True))  # by stage, then by branch
        widths, strides = config.widths, config.strides(len(inputs[0][1]))
        self.width, self.patch, self.grid = widths[0], strides[1], grids[0][0]
        self.pyramid = tuple(map(Scale, (config.stem_width, *widths), strides))
        self.depth = sum(config.depths) + sum(config.decoder_depths)

        stems = {
            branch_name(len(roi)): convolution(n, config.stem_width, 7, config.strides(len(roi))[0])
            for n, roi in inputs
        }
        self.stem = nn.ModuleDict(stems)
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.width))
        self.stages, self.decoder = nn.ModuleList(), nn.ModuleList()
        for i, (before, width) in enumerate(pairwise((config.stem_width, *widths))):
            numbers = width, config.heads[i], config.reductions[i]
            blocks = [Block(*numbers, self.branches) for _ in range(config.depths[i])]
            carry = nn.Linear(before, width) if i else nn.Identity()
            self.stages.append(PyramidStage(downsample, before, width, grids[i], carry, blocks))
        for i, (before, width) in enumerate(pairwise(reversed(widths))):
            numbers = width, config.decoder_heads[i], config.reductions[-2 - i]
            blocks = [Block(*numbers, self.branches, bias=False) for _ in range(config.decoder_depths[i])]
            self.decoder.append(PyramidStage(upsample, before, width, grids[-2 - i], nn.Linear(before, width), blocks))
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        init_weights(self)

    def forward(
        self, image: Tensor, *, keep: Tensor | None = None, taps: Sequence[int] = (), keys: Tensor | None = None
    ) -> Features:
        if keep is not None:
            raise UserError("encoder: mit takes no masked images; choose a strategy that hides no patches")
        grids = self.config.grids(tuple(image.shape[2:]))
        scales, states = iter(self.drop_scales(keys)), []
        stem = x = self.stem[branch_name(len(grids[0]))](image)
        summary, encoded = self.cls_token.expand(image.shape[0], -1, -1), []
        for stage, grid in zip(self.stages, grids, strict=True):
            states += stage(x, summary, grid, scales)
            summary, x = split_class_token(states[-1], grid)
            encoded.append(x)
        *skips, coarsest = encoded
        decoded = []
        for stage, grid, skip in zip(self.decoder, grids[-2::-1], reversed(skips), strict=True):
            states += stage(x, summary, grid, scales, skip)
            summary, x = split_class_token(states[-1], grid)
            decoded.append(x)
        last = self.norm(states[-1])
        decoded[-1] = split_class_token(last, grids[0])[1]
        return Features(
            tokens=last[:, 1:],
            grid=grids[0],
            summary=last[:, 0],
            taps={i: states[i][:, 1:] for i in taps},
            pyramid=(stem, *reversed(decoded), coarsest),
        )

    def layer(self, name: str) -> int:
        """Numbers the blocks from the encoder's first to the decoder's last; embeddings count as a stage's first."""
        part, *rest = name.split(".")
        if part == "norm":
            return self.depth + 1
        if part in ("stem", "cls_token"):
            return 0
        depths, stage = (*self.config.depths, *self.config.decoder_depths), int(rest[0])
        stage += len(self.stages) * (part == "decoder")
        if rest[1] != "blocks":
            return sum(depths[:stage]) + 1 if stage else 0
        return sum(depths[:stage]) + int(rest[2]) + 1

    def fit_state(self, state: dict[str, Tensor], grid: tuple[int, ...]) -> tuple[dict[str, Tensor], list[str]]:
        """Resizes positions to this encoder's grids, and drops a branch that it does not have."""
        others = {"2d", "3d"}.difference(self.branches)
        state = {name: value for name, value in state.items() if others.isdisjoint(name.split("."))}
        own, resized = self.state_dict(), []
        for name in sorted(name for name in state if name.endswith(".pos_embed") and name in own):
            old, size = state[name], tuple(own[name].shape[1:-1])
            if old.ndim == own[name].ndim and tuple(old.shape[1:-1]) != size:
                state[name] = interpolate_positions(old.float(), size)
                resized.append(name)
        return state, resized


def init_weights(module: nn.Module) -> None:
    """UniMiSS's initialisation: He (fan out) for convolutions, truncated normal (std 0.02) for matrices, positions and
    class token; transposed convolutions keep torch's."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
    for name, parameter in module.named_parameters():
        if name.endswith(("pos_embed", "cls_token")):
            nn.init.trunc_normal_(parameter, std=0.02)
