"""Swin UNETR's encoder (Hatamizadeh 2022, Tang 2022): MONAI's 3D Swin transformer, for pictures and volumes.

The transformer is MONAI's own `SwinTransformer`; `skips` are the convolutions by which Swin UNETR hands its maps to the
decoder. Parts are saved under the names of MONAI's `SwinUNETR`, and with the head `conv` this is that network. What is
added: drop path by the samples' keys, and the states of blocks (`taps`).
"""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from premed.config.spec import Spec
from premed.contracts import Encoder, Features, Scale
from premed.errors import UserError

STAGES = 4  # MONAI's network has no other number
EDGE = 2**5  # voxels per place of the coarsest map

Count = Annotated[int, Field(ge=1)]
Four = tuple[Count, Count, Count, Count]


class Config(Spec):
    """The sizes of the network; the defaults are Swin UNETR's, of which there are public weights."""

    name: Literal["swin"] = "swin"
    width: Count = 48
    """Channels of the finest map, which has half the images' resolution; each of the four stages doubles them (MONAI:
    feature_size)."""
    depths: Four = (2, 2, 2, 2)
    """Blocks of each stage, fine to coarse."""
    heads: Four = (3, 6, 12, 24)
    window: Count = 7
    """Edge of the windows in which a block attends, in places of its map."""
    v2: bool = False
    """A residual convolution before each stage (Swin UNETR-V2, He 2023; MONAI: use_v2)."""
    skips: bool = True
    """Swin UNETR's convolutions of the image and of the maps for the decoder, which then starts at full resolution.
    Without them the maps are the transformer's own, of half the resolution at the most. Classification uses none."""

    @model_validator(mode="after")
    def _divides(self) -> "Config":
        widths = [self.width * 2**i for i in range(STAGES)]
        if any(width % n for width, n in zip(widths, self.heads, strict=True)):
            raise ValueError(f"heads: {list(self.heads)} do not divide the widths of the stages, {widths}")
        return self


def build(config: Config, channels: int, roi: Sequence[int], *more: tuple[int, Sequence[int]]) -> "Swin":
    """Builds the encoder for images [B, channels, *roi]. Raises UserError if the roi does not suit it, and for `more`
    data sets of other shapes."""
    if more:
        shapes = " and ".join(f"{n} × {list(size)}" for n, size in ((channels, roi), *more))
        raise UserError(f"pretrain.sources: swin takes images of one shape, and these are {shapes}; use mit or unet")
    return Swin(config, channels, tuple(roi))


class Swin(Encoder):
    """Maps images [B, C, *roi] to Features; see `Encoder.forward`.

    Tokens are the places of the transformer's coarsest map, and their mean is the summary. All its maps are normalised
    over the channels, as Swin UNETR has them. The encoder has no decoder.
    """

    def __init__(self, config: Config, channels: int, roi: tuple[int, ...]):
        from monai.networks.nets.swin_unetr import SwinTransformer

        super().__init__()
        dims, width = len(roi), config.width
        self.grid, self.patch = tuple(size // EDGE for size in roi), (EDGE,) * dims
        if any(size % EDGE for size in roi) or (config.skips and prod(self.grid) == 1):
            raise UserError(
                f"encoder: swin halves images five times, and the roi {roi} is no multiple of {EDGE}, or leaves one "
                f"place, which instance norm cannot normalise; choose a roi (or size) of multiples of {EDGE}"
            )
        self.width, self.depth, self.depths = 2**STAGES * width, sum(config.depths), config.depths
        with OnTheCpu():
            self.swinViT = SwinTransformer(
                channels,
                width,
                window_size=(config.window,) * dims,
                patch_size=(2,) * dims,
                depths=config.depths,
                num_heads=config.heads,
                spatial_dims=dims,
                use_v2=config.v2,
            )
        self.blocks = tuple(block for i in range(STAGES) for block in self.stage(i).blocks)
        for block in self.blocks:
            block.drop_path = DropPath()
        maps = [(width, 2), *((width * 2**i, 2 ** (i + 1)) for i in range(1, STAGES + 1))]
        self.skips = ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10") if config.skips else ()
        if self.skips:
            from monai.networks.blocks.unetr_block import UnetrBasicBlock

            inputs = (channels, width, 2 * width, 4 * width, 16 * width)
            for name, before, after in zip(self.skips, inputs, (width, *inputs[1:]), strict=True):
                self.add_module(name, UnetrBasicBlock(dims, before, after, 3, 1, "instance", res_block=True))
            maps.insert(0, (width, 1))
        self.pyramid = tuple(Scale(n, (edge,) * dims) for n, edge in maps)
        self.decoded = len(maps) - 1

    def stage(self, number: int) -> Any:
        """A stage's blocks, and what halves its map."""
        return getattr(self.swinViT, f"layers{number + 1}")[0]

    def forward(
        self, image: Tensor, *, keep: Tensor | None = None, taps: Sequence[int] = (), keys: Tensor | None = None
    ) -> Features:
        if keep is not None:
            raise UserError(
                "encoder: swin takes no masked images, for its windows need all places; choose a strategy that hides "
                "no patches, or vit or resenc"
            )
        states: dict[int, Tensor] = {}

        def keep_state(number: int) -> Any:  # a block's output is [B, *S, C]
            return lambda block, inputs, output: states.update({number: output.flatten(1, -2)})

        hooks = [self.blocks[i].register_forward_hook(keep_state(i)) for i in taps]
        try:
            for block, scales in zip(self.blocks, self.drop_scales(keys), strict=True):
                block.drop_path.set(scales)
            maps = self.swinViT(image)
        finally:
            for hook in hooks:
                hook.remove()
            for block in self.blocks:
                block.drop_path.set(None)
        tokens = maps[-1].flatten(2).transpose(1, 2)
        return Features(
            tokens=tokens,
            grid=tuple(maps[-1].shape[2:]),
            summary=tokens.mean(dim=1),
            taps=states,
            pyramid=self.handed_on(image, maps),
        )

    def handed_on(self, image: Tensor, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """The maps for a decoder, fine to coarse: of the image, and of all but the map at a sixteenth, as Swin UNETR's
        convolutions make them."""
        if not self.skips:
            return tuple(maps)
        inputs = (image, *maps[:3], maps[4])
        made = [getattr(self, name)(each) for name, each in zip(self.skips, inputs, strict=True)]
        return (*made[:4], maps[3], made[4])

    def layer(self, name: str) -> int:
        """Numbers the blocks through all stages. What halves a map belongs to the block before it, a convolution before
        a stage (v2) to the stage's first block, and `skips` come after all blocks."""
        part, *rest = name.removeprefix("swinViT.").split(".")
        if not part.startswith("layers"):
            return self.depth + 1 if part in self.skips else 0
        stage = int(part[len("layers")]) - 1
        before = sum(self.depths[:stage])
        if part.endswith("c"):
            return before + 1
        return before + 1 + int(rest[2]) if rest[1] == "blocks" else before + self.depths[stage]


class DropPath(nn.Module):
    """In place of MONAI's, which draws with torch: multiplies a block's two residual branches, in turn, by each
    sample's factors."""

    def __init__(self):
        super().__init__()
        self.scales: Tensor | None = None
        self.turn = 0

    def set(self, scales: Tensor | None) -> None:
        """scales: of the two branches [2, B, 1, 1]; None: 1."""
        self.scales, self.turn = scales, 0

    def forward(self, x: Tensor) -> Tensor:
        """x [B, …]."""
        if self.scales is None:
            return x
        scale, self.turn = self.scales[self.turn], 1 - self.turn
        return x * scale.reshape(-1, *[1] * (x.ndim - 1))


class OnTheCpu(TorchFunctionMode):
    """Has `linspace` compute on the CPU: MONAI reads the numbers that it makes by it, which the meta device has not."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        on = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **((kwargs or {}) | on))
