"""Patches of pictures and volumes, and where they are: cut, embedded, and given positions.

Shapes: B batch, C channels, *S spatial axes, L patches in raster order, D width.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from premed.errors import UserError


class PatchEmbed(nn.Module):
    """Embeds patches as [B, L, D], by a strided convolution (named `proj`, as in timm)."""

    def __init__(self, channels: int, width: int, patch: tuple[int, ...]):
        super().__init__()
        convolution = nn.Conv2d if len(patch) == 2 else nn.Conv3d
        self.proj = convolution(channels, width, patch, stride=patch)  # type: ignore[arg-type]

    def forward(self, image: Tensor, keep: Tensor | None = None) -> Tensor:
        """Maps [B, C, *S] to tokens [B, L, D]; with keep [B, K], to those of the visible patches, [B, K, D]."""
        patches = patchify(image, tuple(self.proj.kernel_size))
        if keep is not None:
            patches = take(patches, keep)
        # a matrix product equals the strided convolution, whose backward pass is slow on CPUs
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def take(x: Tensor, where: Tensor) -> Tensor:
    """Returns the rows `where` [B, N] of x [B, L, P]: [B, N, P]."""
    return torch.gather(x, 1, where[..., None].expand(-1, -1, x.shape[2]))


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


def resize_positions(positions: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Resizes [1, 1 + L, D], or [1, L, D] without a class token, between grids; the class token's row stays."""
    flat = len(old) == 2  # as timm does; without antialiasing, torch's bicubic distorts a linear ramp
    mode = "bicubic" if flat else "trilinear"
    summary, places = positions.float().split([positions.shape[1] - prod(old), prod(old)], dim=1)
    places = places.transpose(1, 2).unflatten(2, tuple(old))
    places = F.interpolate(places, new, mode=mode, align_corners=False, antialias=flat)
    return torch.cat([summary, places.flatten(2).transpose(1, 2)], dim=1)
