"""The vision transformer of ViT (Dosovitskiy 2021) and MAE (He 2022), in 2D and 3D.

Parameter names and arithmetic are timm's (`VisionTransformer` with a class token, LayerNorm eps 1e-6, qkv bias), so its
2D weights load unchanged. Positions are sines and cosines (order h, w, d; temperature 10000; 0 for the class token),
fixed while a masked autoencoder trains, learnable in fine-tuning.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from premed.config.spec import Spec, added_field, preset
from premed.contracts import Encoder, Features
from premed.errors import UserError
from premed.models.layers import Mlp, attend

SIZES = {  # width, depth, heads of timm's tiny, small and base
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
}


class Config(Spec):
    """`size: tiny | small | base` presets width, depth and heads; explicit numbers override it."""

    name: Literal["vit"] = "vit"
    width: int = Field(default=768, ge=8)
    depth: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    patch: int | tuple[int, ...] = 16
    """Patch edge in voxels: one number, or one per axis."""
    init: Literal["mae", "timm"] = added_field("mae")
    """Initial weights. mae: as MAE pre-trains (Xavier, sine and cosine positions); timm: as its ViTs, which is the
    scratch arm of most papers (truncated normal with deviation .02, random positions). Loaded weights replace them."""

    @model_validator(mode="before")
    @classmethod
    def _size(cls, data: Any) -> Any:
        return preset(data, "size", SIZES)

    @field_validator("patch")
    @classmethod
    def _edge(cls, patch: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if min((patch,) if isinstance(patch, int) else patch) < 1:
            raise ValueError(f"{patch} is not an edge in voxels: give numbers of at least 1")
        return patch

    @model_validator(mode="after")
    def _divides(self) -> "Config":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


def build(config: Config, channels: int, roi: Sequence[int], *more: tuple[int, Sequence[int]]) -> "ViT":
    """Builds the encoder for images [B, channels, *roi]. UserError if there are `more` shapes: it has one grid."""
    if more:
        shapes = " and ".join(f"{n} × {list(size)}" for n, size in ((channels, roi), *more))
        raise UserError(f"pretrain.sources: vit takes images of one shape, and these are {shapes}; use mit")
    return ViT(config, channels, tuple(roi))


class ViT(Encoder):
    """Maps images [B, C, *roi] to Features; see `Encoder.forward`."""

    takes_keep = True

    def __init__(self, config: Config, channels: int, roi: tuple[int, ...]):
        super().__init__()
        dims = len(roi)
        patch = (config.patch,) * dims if isinstance(config.patch, int) else config.patch
        if len(patch) != dims or any(size % edge for size, edge in zip(roi, patch, strict=True)):
            raise UserError(
                f"encoder.patch: {config.patch} does not divide the roi {roi}; choose a patch or a roi that fits"
            )
        self.width, self.depth, self.patch, self.init = config.width, config.depth, patch, config.init
        self.grid = tuple(size // edge for size, edge in zip(roi, patch, strict=True))
        self.patch_embed = PatchEmbed(channels, self.width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.width))
        self.pos_embed = nn.Parameter(add_class_row(sincos(self.grid, self.width)))
        self.blocks = nn.ModuleList(Block(self.width, config.heads) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        if config.init == "timm":
            init_timm_weights(self)
        else:
            nn.init.normal_(self.cls_token, std=0.02)
            init_weights(self)

    def forward(
        self, image: Tensor, *, keep: Tensor | None = None, taps: Sequence[int] = (), keys: Tensor | None = None
    ) -> Features:
        x = self.patch_embed(image) + self.pos_embed[:, 1:]  # [B, L, D]
        if keep is not None:
            x = torch.gather(x, 1, keep[..., None].expand(-1, -1, self.width))  # [B, K, D]
        summary = self.cls_token + self.pos_embed[:, :1]
        # not len(x), which would fix the batch size of an exported network
        x = torch.cat([summary.expand(x.shape[0], -1, -1), x], dim=1)
        states = {}
        for i, (block, scale) in enumerate(zip(self.blocks, self.drop_scales(keys), strict=True)):
            x = block(x, scale)
            if i in taps:
                states[i] = x[:, 1:]
        x = self.norm(x)
        return Features(tokens=x[:, 1:], grid=self.grid, summary=x[:, 0], taps=states)

    def layer(self, name: str) -> int:
        if name.startswith(("cls_token", "pos_embed", "patch_embed")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else self.depth + 1

    def fit_state(self, state: dict[str, Tensor], grid: tuple[int, ...]) -> tuple[dict[str, Tensor], list[str]]:
        """Resizes the position embedding from `grid` to this encoder's, axis by axis; the class token's row stays."""
        if tuple(grid) == self.grid or len(grid) != len(self.grid):
            return state, []
        flat = len(grid) == 2  # as timm does; without antialiasing, torch's bicubic distorts a linear ramp
        mode = "bicubic" if flat else "trilinear"
        summary, places = state["pos_embed"].float().split([1, prod(grid)], dim=1)
        places = places.transpose(1, 2).unflatten(2, tuple(grid))
        places = F.interpolate(places, self.grid, mode=mode, align_corners=False, antialias=flat)
        return state | {"pos_embed": torch.cat([summary, places.flatten(2).transpose(1, 2)], dim=1)}, ["pos_embed"]

    def timm(self) -> dict[str, Any] | None:
        """Arguments of one of timm's plain ViTs, with this encoder's sizes. timm has only 2D ones."""
        if len(self.grid) != 2:
            return None
        return {
            "model_name": "vit_base_patch16_224",
            "img_size": [size * edge for size, edge in zip(self.grid, self.patch, strict=True)],
            "patch_size": list(self.patch),
            "in_chans": self.patch_embed.proj.in_channels,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.blocks[0].attn.num_heads,  # type: ignore[union-attr]
            "num_classes": 0,
        }


class PatchEmbed(nn.Module):
    """Embeds patches as [B, L, D], by a strided convolution (named `proj`, as in timm)."""

    def __init__(self, channels: int, width: int, patch: tuple[int, ...]):
        super().__init__()
        convolution = nn.Conv2d if len(patch) == 2 else nn.Conv3d
        self.proj = convolution(channels, width, patch, stride=patch)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        # a matrix product equals the strided convolution, whose backward pass is slow on CPUs
        weight = self.proj.weight.flatten(1)
        return F.linear(patchify(image, tuple(self.proj.kernel_size)), weight, self.proj.bias)


class Attention(nn.Module):
    """Self-attention with timm's names and arithmetic."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens [B, L, D] to the same shape."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v))


class Block(nn.Module):
    """Pre-norm attention and MLP, with timm's names; the caller draws drop path."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """`scale` [2, B, 1, 1]: 0 drops a sample's branch (drop path)."""
        if scale is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + scale[0] * self.attn(self.norm1(x))
        return x + scale[1] * self.mlp(self.norm2(x))


def patchify(image: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Cuts [B, C, *S] into patches [B, L, C * prod(patch)], in raster order; values as in a convolution's weight."""
    dims = len(patch)
    for axis, edge in enumerate(patch):
        image = image.unflatten(2 + 2 * axis, (-1, edge))  # [B, C, S1/p, p, S2/p, p, …]
    order = (0, *range(2, 2 + 2 * dims, 2), 1, *range(3, 3 + 2 * dims, 2))
    return image.permute(order).flatten(1 + dims).flatten(1, dims)


def unpatchify(patches: Tensor, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The inverse of `patchify`: [B, L, C * prod(patch)] to [B, C, *S]."""
    dims = len(patch)
    channels = patches.shape[2] // prod(patch)
    image = patches.unflatten(2, (channels, *patch)).unflatten(1, grid)  # [B, *grid, C, *patch]
    order = (0, 1 + dims, *(axis for i in range(dims) for axis in (1 + i, 2 + dims + i)))
    image = image.permute(order)
    for axis in range(dims):
        image = image.flatten(2 + axis, 3 + axis)
    return image


def sincos(grid: tuple[int, ...], width: int, field: str = "encoder.width") -> Tensor:
    """Fixed positions [1, L, width]: per axis, `width / axes` numbers, sines then cosines.

    Raises UserError, which names the width's `field`, if it cannot be divided so.
    """
    dims = len(grid)
    if width % (2 * dims):
        raise UserError(
            f"{field}: {width} cannot be split into sines and cosines of {dims} axes; use a multiple of {2 * dims}"
        )
    frequencies = 10000.0 ** -(torch.arange(width // (2 * dims), dtype=torch.float64) / (width // (2 * dims)))
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in axes]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)[None].float()


def add_class_row(positions: Tensor) -> Tensor:
    """Prepends the class token's position, zeros: [1, L, D] to [1, 1 + L, D]."""
    return torch.cat([positions.new_zeros(1, 1, positions.shape[2]), positions], dim=1)


def init_weights(module: nn.Module) -> None:
    """MAE's initialisation: Xavier for matrices (patch embedding included), zero biases."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.xavier_uniform_(part.weight.data.flatten(1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def init_timm_weights(encoder: ViT) -> None:
    """The initialisation of timm's VisionTransformer; the patch embedding keeps that of torch's convolution."""
    for part in encoder.blocks.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    nn.init.normal_(encoder.cls_token, std=1e-6)
