"""Transformer layers for pictures and volumes; some have one branch of parameters per number of axes.

The branches `2d` and `3d` share attention, MLPs, norms and the class token's projection. Each has its own patch
embeddings, positions and convolutions that reduce the keys; the branch is part of those parameters' names.

Shapes: B batch, C channels, *S spatial axes, L patches, D width; the class token is the first token.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_KEYS = 512


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of queries [B, H, N, D] over keys and values [B, H, M, D], as [B, N, H · D].

    In bf16 on CPUs it is matrix products: there the backward pass of PyTorch's fused kernel takes half of a ViT's step.
    Over more keys than FEW_KEYS the weights, [B, H, N, M], would cost more than that, and much memory.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu") and k.shape[2] <= FEW_KEYS:
        x = (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(dim=3) @ v
    else:
        x = F.scaled_dot_product_attention(q, k, v)
    return x.transpose(1, 2).flatten(2)


def in_float32(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Calls `function` on `x` in float32, also under autocast.

    For logits: bf16 has eight bits, in which images or voxels that the network tells apart get one and the same logit.
    """
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return function(x)  # on no device, or without autocast, which exports would trace
    with torch.autocast(kind, enabled=False):
        return function(x.float())


class Mlp(nn.Module):
    """A transformer's MLP, with timm's names and arithmetic. Importing timm takes a process some three seconds."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., width] to the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class PyramidStage(nn.Module):
    """One resolution of a pyramid: an embedding per branch, the class token's projection, and blocks.

    embed: builds the convolution from (`before` channels, `width` channels, number of axes). grids: one per branch.
    carry: projects the class token.
    """

    def __init__(
        self,
        embed: Callable[[int, int, int], nn.Module],
        before: int,
        width: int,
        grids: Sequence[tuple[int, ...]],
        carry: nn.Module,
        blocks: Sequence["Block"],
    ):
        super().__init__()
        embeddings = {branch_name(len(grid)): Embedding(embed(before, width, len(grid)), width, grid) for grid in grids}
        self.embed, self.carry, self.blocks = nn.ModuleDict(embeddings), carry, nn.ModuleList(blocks)

    def forward(
        self, x: Tensor, summary: Tensor, grid: tuple[int, ...], scales: Iterator, skip: Tensor | float = 0
    ) -> list[Tensor]:
        """Returns the output tokens [B, 1 + L, D] of each block, from the previous stage's map [B, C, *S]."""
        embed = self.embed[branch_name(len(grid))]
        assert isinstance(embed, Embedding)
        x = (embed.conv(x) + skip).flatten(2).transpose(1, 2)
        x = torch.cat([self.carry(summary), x], dim=1) + embed.positions(grid)
        states = []
        for block in self.blocks:
            x = block(x, grid, next(scales))
            states.append(x)
        return states


class Embedding(nn.Module):
    """The embedding of one branch: a convolution, and learnable positions on a grid."""

    def __init__(self, conv: nn.Module, width: int, grid: tuple[int, ...]):
        super().__init__()
        self.conv = conv
        self.pos_embed = nn.Parameter(torch.empty(1, *grid, width))
        self.cls_pos_embed = nn.Parameter(torch.empty(1, 1, width))

    def positions(self, grid: tuple[int, ...]) -> Tensor:
        """The positions of the class token and of a grid's patches: [1, 1 + L, D]."""
        return torch.cat([self.cls_pos_embed, interpolate_positions(self.pos_embed, grid).flatten(1, -2)], dim=1)


class Block(nn.Module):
    """Pre-norm attention and MLP; the caller draws drop path."""

    def __init__(self, width: int, heads: int, reduction: int, branches: Sequence[str], bias: bool = True):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, reduction, branches, bias)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, grid: tuple[int, ...], scale: Tensor | None = None) -> Tensor:
        """`scale` [2, B, 1, 1]: 0 drops a sample's branch (drop path)."""
        if scale is None:
            x = x + self.attn(self.norm1(x), grid)
            return x + self.mlp(self.norm2(x))
        x = x + scale[0] * self.attn(self.norm1(x), grid)
        return x + scale[1] * self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Spatial-reduction attention (PVT, Wang 2021), with a class token and for volumes, which timm's lacks.

    Queries are all tokens; keys and values are the class token and a strided convolution of the patches. Patches at the
    end of an axis that do not fill a stride are ignored.
    """

    def __init__(self, width: int, heads: int, reduction: int, branches: Sequence[str], bias: bool = True):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(width, 2 * width, bias=bias)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            kinds = {"2d": nn.Conv2d, "3d": nn.Conv3d}
            self.reduce = nn.ModuleDict({name: kinds[name](width, width, reduction, reduction) for name in branches})
            self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Maps tokens [B, 1 + L, D] to the same shape."""
        q = self.by_head(self.q(x))
        k, v = map(self.by_head, self.kv(self.context(x, grid)).chunk(2, dim=2))
        return self.proj(attend(q, k, v))

    def context(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The tokens of keys and values: [B, 1 + L / reduction^axes, D]."""
        if self.reduction == 1:
            return x
        summary, places = split_class_token(x, grid)
        places = self.reduce[branch_name(len(grid))](places).flatten(2).transpose(1, 2)
        return self.norm(torch.cat([summary, places], dim=1))

    def by_head(self, x: Tensor) -> Tensor:
        """Reshapes [B, N, D] to [B, heads, N, D / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def branch_name(dims: int) -> str:
    """The branch of images with so many axes, as it appears in parameter names."""
    return f"{dims}d"


def split_class_token(x: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Splits tokens [B, 1 + L, D] into the class token [B, 1, D] and the patches as a map [B, D, *grid]."""
    return x[:, :1], x[:, 1:].transpose(1, 2).unflatten(2, grid)


def interpolate_positions(positions: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Interpolates positions [1, *S, D] to [1, *grid, D], axis by axis."""
    if tuple(positions.shape[1:-1]) == tuple(grid):
        return positions
    flat = len(grid) == 2  # without antialiasing, torch's bicubic distorts a linear ramp
    mode = "bicubic" if flat else "trilinear"
    return F.interpolate(positions.movedim(-1, 1), grid, mode=mode, align_corners=False, antialias=flat).movedim(1, -1)


def convolution(before: int, width: int, kernel: int, stride: Sequence[int]) -> nn.Module:
    """Returns a strided convolution, instance norm and leaky ReLU: an embedding of overlapping patches."""
    from monai.networks.blocks.convolutions import Convolution

    return Convolution(
        len(stride),
        before,
        width,
        strides=stride,
        kernel_size=kernel,
        bias=False,
        norm=("instance", {"affine": True}),
        act=("leakyrelu", {"negative_slope": 0.01}),
        adn_ordering="NA",
    )


def downsample(before: int, width: int, dims: int) -> nn.Module:
    """Returns a convolution that halves the number of patches per axis."""
    return convolution(before, width, 3, (2,) * dims)


def upsample(before: int, width: int, dims: int) -> nn.Module:
    """Returns a transposed convolution that doubles the number of patches per axis."""
    return (nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d)(before, width, 2, stride=2)
