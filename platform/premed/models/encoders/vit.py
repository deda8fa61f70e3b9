"""The vision transformer of ViT (Dosovitskiy 2021) and MAE (He 2022), in 2D and 3D.

Parameter names and arithmetic are timm's (`VisionTransformer` with a class token, LayerNorm eps 1e-6, qkv bias), so its
2D weights load unchanged. Positions are sines and cosines (order h, w, d; temperature 10000; 0 for the class token),
fixed while a masked autoencoder trains, learnable in fine-tuning.

With options it is Primus (Wald 2025), whose four networks are the sizes primus-s, -b, -m, -l. Then it computes what
dynamic-network-architectures' `Primus` does, with these of its names: `down_projection.` is `patch_embed.` here, and
`eva.` is left out (`eva.pos_embed`, `eva.blocks.`, `eva.norm.`); `register_tokens` is the same, but `pos_embed` has no
rows for them; `up_projection.` is the head `patch_decoder`; `mask_token` is used by none.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from premed.config.spec import Spec, added_field, preset
from premed.contracts import Encoder, Features
from premed.errors import UserError
from premed.models.convolutions import ResidualStem, init_he_convolutions
from premed.models.eva import EPS, EvaBlock, init_eva_weights, rotary
from premed.models.layers import Mlp, attend
from premed.models.patches import PatchEmbed, add_class_row, resize_positions, sincos, take

PRIMUS = {"patch": 8, "position": "learned", "rotary": True, "layer_scale": 0.1, "mlp": "swiglu", "inner_norm": True}
PRIMUS |= {"class_token": False, "init": "primus"}
SIZES: dict[str, dict[str, Any]] = {  # width, depth, heads of timm's tiny, small and base; Primus' with its options
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "primus-s": {"width": 396, "depth": 12, "heads": 6, **PRIMUS},
    "primus-b": {"width": 792, "depth": 12, "heads": 12, **PRIMUS},
    "primus-m": {"width": 864, "depth": 16, "heads": 12, **PRIMUS},
    "primus-l": {"width": 1056, "depth": 24, "heads": 16, **PRIMUS},
}


class Config(Spec):
    """`size: tiny | small | base` presets width, depth and heads; `primus-s | primus-b | primus-m | primus-l` these and
    all that is Primus' (patch 8, learned and rotary positions, …). Fields given beside it override it."""

    name: Literal["vit"] = "vit"
    width: int = Field(default=768, ge=8)
    depth: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    patch: int | tuple[int, ...] = 16
    """Patch edge in voxels: one number, or one per axis."""
    init: Literal["mae", "timm", "primus"] = added_field("mae")
    """Initial weights. mae: as MAE pre-trains (Xavier, sine and cosine positions); timm: as its ViTs, which is the
    scratch arm of most papers (truncated normal with deviation .02, random positions); primus: the same deviation,
    smaller in deeper blocks. Loaded weights replace them."""
    stem: Literal["patch", "residual"] = added_field("patch")
    """What makes tokens of patches. patch: one convolution as large as its stride; residual: Primus V2's residual
    blocks, one at full resolution and one for each halving, which see beyond a patch's borders, though never into a
    hidden patch."""
    stem_width: int = added_field(32, ge=1)
    """Channels of `stem: residual` at full and half resolution; each coarser level has twice as many."""
    position: Literal["sincos", "learned", "none"] = added_field("sincos")
    """What is added to tokens. sincos: sines and cosines, fixed in MAE's pre-training; learned: random at first."""
    rotary: bool = added_field(False)
    """Rotary positions (RoPE, axial): queries and keys are turned by their place along each axis, whatever `position`
    adds to tokens."""
    layer_scale: float | None = added_field(None, gt=0)
    """First value of a learnt factor for each channel of each residual branch (LayerScale). None: no factors."""
    mlp: Literal["gelu", "swiglu"] = added_field("gelu")
    """swiglu: a gated MLP of as many weights (8/3 hidden channels per channel in place of 4)."""
    inner_norm: bool = added_field(False)
    """Further norms before the last matrix of attention and MLP, as EVA-02 has them."""
    class_token: bool = added_field(True)
    """Without it, classification takes `finetune.head.pool: mean`."""
    registers: int = added_field(0, ge=0)
    """Learnt tokens beside the patches', which are left out of the features (Darcet 2024)."""

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

    def unused_fields(self) -> set[str]:
        return set() if self.stem == "residual" else {"stem_width"}

    def options(self) -> list[str]:
        """The fields by which it is another network than timm's plain ViT of some width, depth, heads and patch."""
        fields = {"position": self.position == "none", "stem": self.stem == "residual", "registers": self.registers > 0}
        fields |= {"rotary": self.rotary, "layer_scale": self.layer_scale is not None, "mlp": self.mlp == "swiglu"}
        fields |= {"inner_norm": self.inner_norm, "class_token": not self.class_token}
        return [name for name, is_set in fields.items() if is_set]

    @property
    def has_eva_blocks(self) -> bool:
        return self.rotary or self.layer_scale is not None or self.mlp == "swiglu" or self.inner_norm


def build(config: Config, channels: int, roi: Sequence[int], *more: tuple[int, Sequence[int]]) -> "ViT":
    """Builds the encoder for images [B, channels, *roi]. UserError if there are `more` shapes: it has one grid."""
    if more:
        shapes = " and ".join(f"{n} × {list(size)}" for n, size in ((channels, roi), *more))
        raise UserError(f"pretrain.sources: vit takes images of one shape, and these are {shapes}; use mit")
    return ViT(config, channels, tuple(roi))


class ViT(Encoder):
    """Maps images [B, C, *roi] to Features; see `Encoder.forward`."""

    takes_keep = True
    config: Config
    rotation: Tensor | None

    def __init__(self, config: Config, channels: int, roi: tuple[int, ...]):
        super().__init__()
        dims = len(roi)
        patch = (config.patch,) * dims if isinstance(config.patch, int) else config.patch
        if len(patch) != dims or any(size % edge for size, edge in zip(roi, patch, strict=True)):
            raise UserError(
                f"encoder.patch: {config.patch} does not divide the roi {roi}; choose a patch or a roi that fits"
            )
        self.config, self.width, self.depth, self.patch = config, config.width, config.depth, patch
        self.grid = tuple(size // edge for size, edge in zip(roi, patch, strict=True))
        if config.stem == "residual":
            self.patch_embed = ResidualStem(channels, self.width, config.stem_width, patch, self.grid)
        else:
            self.patch_embed = PatchEmbed(channels, self.width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.width)) if config.class_token else None
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, self.width)) if config.registers else None
        self.pos_embed = nn.Parameter(first_positions(config, self.grid)) if config.position != "none" else None
        self.num_prefix = config.class_token + config.registers
        turned = rotary(self.grid, self.width, config.heads) if config.rotary else None
        self.register_buffer("rotation", turned, persistent=False)
        self.blocks = nn.ModuleList(make_block(config, self.num_prefix) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width, eps=EPS if config.has_eva_blocks else 1e-6)
        self.set_first_weights()

    def set_first_weights(self) -> None:
        """Draws them as `init` says, for the parts that there are."""
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
        if self.config.init == "timm":
            init_timm_weights(self)
            return
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)
        if self.config.position == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)  # type: ignore[arg-type]
        if self.config.init == "mae":
            init_weights(self)
        else:
            init_he_convolutions(self.patch_embed)
            init_eva_weights(self.blocks)

    def forward(
        self, image: Tensor, *, keep: Tensor | None = None, taps: Sequence[int] = (), keys: Tensor | None = None
    ) -> Features:
        summary = self.cls_token
        x = self.patch_embed(image, keep)  # [B, L, D] or [B, K, D]
        if self.pos_embed is not None:
            places = self.pos_embed
            if summary is not None:
                summary, places = summary + places[:, :1], places[:, 1:]
            x = x + (places if keep is None else take(places.expand(len(keep), -1, -1), keep))
        rotation = () if self.rotation is None else (self.rotation,)
        if keep is not None:
            rotation = tuple(turned[keep][:, None] for turned in rotation)  # [B, 1, K, 2 D / heads]
        # not len(x), which would fix the batch size of an exported network
        prefix = [each.expand(x.shape[0], -1, -1) for each in (summary, self.register_tokens) if each is not None]
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        states = {}
        for i, (block, scale) in enumerate(zip(self.blocks, self.drop_scales(keys), strict=True)):
            x = block(x, scale, *rotation)
            if i in taps:
                states[i] = x[:, self.num_prefix :]
        x = self.norm(x)
        return Features(
            tokens=x[:, self.num_prefix :],
            grid=self.grid,
            summary=None if summary is None else x[:, 0],
            taps=states,
        )

    def layer(self, name: str) -> int:
        if name.startswith(("cls_token", "register_tokens", "pos_embed", "patch_embed")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else self.depth + 1

    def fit_state(self, state: dict[str, Tensor], grid: tuple[int, ...]) -> tuple[dict[str, Tensor], list[str]]:
        """Resizes the position embedding from `grid` to this encoder's, axis by axis; the class token's row stays.
        Rotary positions count places, and need no resizing."""
        if tuple(grid) == self.grid or len(grid) != len(self.grid) or "pos_embed" not in state:
            return state, []
        return state | {"pos_embed": resize_positions(state["pos_embed"], grid, self.grid)}, ["pos_embed"]

    def timm(self) -> dict[str, Any] | None:
        """Arguments of one of timm's plain ViTs, with this encoder's sizes. timm has only 2D ones."""
        if len(self.grid) != 2 or not isinstance(self.patch_embed, PatchEmbed) or self.config.options():
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


def make_block(config: Config, num_prefix: int) -> nn.Module:
    """One of the encoder's blocks."""
    if not config.has_eva_blocks:
        return Block(config.width, config.heads)
    return EvaBlock(
        config.width,
        config.heads,
        layer_scale=config.layer_scale,
        swiglu=config.mlp == "swiglu",
        inner_norm=config.inner_norm,
        num_prefix=num_prefix,
    )


def first_positions(config: Config, grid: tuple[int, ...]) -> Tensor:
    """Sines and cosines, or what learnt positions are drawn into: [1, L, D], or [1, 1 + L, D] with a class token."""
    learned = config.position == "learned"
    places = torch.zeros(1, prod(grid), config.width) if learned else sincos(grid, config.width)
    return add_class_row(places) if config.class_token else places


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
    if encoder.pos_embed is not None:
        nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    if encoder.cls_token is not None:
        nn.init.normal_(encoder.cls_token, std=1e-6)
