"""nnU-Net's convolutional blocks for pictures and volumes, which can look at a masked image's visible patches alone.

Parameters are named as in dynamic-network-architectures, whose blocks these equal: convolution, norm and leaky ReLU,
and the residual block of ResNet-D (He 2019) with average pooling in its shortcut. Primus' second stem is made of them.

A masked image is encoded as by sparse convolutions (SparK, Tian 2023): each layer's output is 0 in hidden patches, and
norms take mean and variance over the visible voxels. A hidden voxel's value therefore reaches nothing.

Shapes: B batch, C channels, *S spatial axes; `visible` [B, 1, *S] float32 is 1 in visible patches and 0 elsewhere, or
None if all are visible.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from premed.errors import UserError
from premed.models.patches import take

EPS = 1e-5
SLOPE = 0.01  # of the leaky ReLU


class Norm(nn.Module):
    """Group norm; with as many groups as channels, instance norm."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Maps [B, C, *S] to the same shape. With `visible`, x must be 0 elsewhere, and remains so; it is float32."""
        if visible is None:
            return F.group_norm(x, self.groups, self.weight, self.bias, EPS)
        groups, axes = x.float().unflatten(1, (self.groups, -1)), tuple(range(2, x.ndim + 1))  # [B, G, C / G, *S]
        number = visible[:, None].sum(axes, keepdim=True) * groups.shape[2]
        centred = torch.addcmul(groups, groups.sum(axes, keepdim=True) / number, visible[:, None], value=-1)
        variance = centred.square().sum(axes, keepdim=True) / number  # [B, G, 1, …]
        weight, bias = (each.view(-1, *[1] * (x.ndim - 2)) for each in (self.weight, self.bias))
        scale = (variance + EPS).rsqrt().expand(-1, -1, groups.shape[2], *variance.shape[3:]).flatten(1, 2) * weight
        return torch.addcmul(centred.flatten(1, 2) * scale, bias, visible)


class ConvBlock(nn.Module):
    """Convolution, norm and, unless it is linear, leaky ReLU. groups: of the norm. slope: of the leaky ReLU."""

    def __init__(
        self,
        before: int,
        width: int,
        dims: int,
        *,
        groups: int,
        kernel: int = 3,
        stride: int | Sequence[int] = 1,
        bias: bool = True,
        linear: bool = False,
        slope: float = SLOPE,
    ):
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.conv = convolution(before, width, kernel, stride, kernel // 2, bias=bias)  # type: ignore[arg-type]
        self.norm, self.linear, self.slope = Norm(width, groups), linear, slope

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Maps [B, C, *S] to [B, D, *S / stride]; `visible` has the output's size."""
        x = self.conv(x)
        x = self.norm(x) if visible is None else self.norm(x * visible, visible).to(x.dtype)
        return x if self.linear else F.leaky_relu(x, self.slope)


class ConvBlocks(nn.Module):
    """ConvBlocks in a row."""

    def __init__(self, *blocks: ConvBlock):
        super().__init__()
        self.convs = nn.ModuleList(blocks)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        for block in self.convs:
            x = block(x, visible)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut. The second's norm starts at 0: the block starts as its shortcut.

    bias, slope: of the two convolutions, and of the leaky ReLU after each.
    """

    def __init__(
        self,
        before: int,
        width: int,
        dims: int,
        *,
        groups: int,
        stride: Sequence[int],
        bias: bool = True,
        slope: float = SLOPE,
    ):
        super().__init__()
        self.slope = slope
        self.conv1 = ConvBlock(before, width, dims, groups=groups, stride=stride, bias=bias, slope=slope)
        self.conv2 = ConvBlock(width, width, dims, groups=groups, bias=bias, linear=True)
        shortcut: list[nn.Module] = []
        if any(edge > 1 for edge in stride):
            shortcut.append((nn.AvgPool2d if dims == 2 else nn.AvgPool3d)(tuple(stride)))  # type: ignore[arg-type]
        if before != width:
            shortcut.append(ConvBlock(before, width, dims, groups=groups, kernel=1, bias=False, linear=True))
        self.skip = nn.ModuleList(shortcut)

    def forward(self, x: Tensor, visible: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """`visible` has the output's size. `scale` [B]: 0 drops a sample's convolutions (drop path)."""
        branch = self.conv2(self.conv1(x, visible), visible)
        if scale is not None:
            branch = branch * scale.view(-1, *[1] * (x.ndim - 1))
        for layer in self.skip:  # pooling keeps hidden patches 0: its windows do not cross their borders
            x = layer(x, visible) if isinstance(layer, ConvBlock) else layer(x)
        return F.leaky_relu(branch + x, self.slope)


class ResidualStem(nn.Module):
    """The patch embedding of the second Primus: a residual block at full resolution, then one for each halving, the
    first of `stem_width` channels and each further one of twice as many; instance norm, ReLU.

    Names and arithmetic are those of dynamic-network-architectures' `PatchEmbed_deeper` with its defaults.
    """

    def __init__(self, channels: int, width: int, stem_width: int, patch: tuple[int, ...], grid: tuple[int, ...]):
        super().__init__()
        levels, dims = patch[0].bit_length() - 1, len(patch)
        if set(patch) != {2**levels} or levels < 1:
            raise UserError(
                f"encoder.patch: {patch} does not suit stem: residual, which halves all axes; use one power of two"
            )
        if prod(grid) == 1:
            raise UserError(
                f"encoder.patch: {patch} is the whole roi, of which the instance norms of stem: residual leave "
                "nothing; use a smaller patch"
            )

        def block(before: int, after: int, stride: int, bias: bool) -> nn.ModuleDict:
            strides = (stride,) * dims
            made = ResidualBlock(before, after, dims, groups=after, stride=strides, bias=bias, slope=0.0)
            return nn.ModuleDict({"blocks": nn.ModuleList([made])})

        widths = [stem_width, *(stem_width * 2**i for i in range(levels))]
        self.grid, self.stem = grid, block(channels, stem_width, 1, True)
        self.stages = nn.ModuleList(block(widths[i], widths[i + 1], 2, False) for i in range(levels))
        self.final_proj = (nn.Conv2d if dims == 2 else nn.Conv3d)(widths[-1], width, 1)

    def forward(self, image: Tensor, keep: Tensor | None = None) -> Tensor:
        """Maps [B, C, *S] to tokens [B, L, D]; with keep [B, K], to those of the visible patches, [B, K, D], of which
        alone it sees something."""
        patches = None if keep is None else visible_patches(keep, self.grid)
        x = image if patches is None else image.masked_fill(to_size(patches, image.shape[2:]) == 0, 0)
        for i, level in enumerate([self.stem, *self.stages]):
            size = [n // 2**i for n in image.shape[2:]]
            visible = None if patches is None else to_size(patches, size)
            x = level["blocks"][0](x, visible)  # type: ignore[index]
        x = self.final_proj(x).flatten(2).transpose(1, 2)
        return x if keep is None else take(x, keep)


def upsampling(before: int, width: int, stride: Sequence[int]) -> nn.Module:
    """A transposed convolution whose kernel is its stride."""
    transposed = nn.ConvTranspose2d if len(stride) == 2 else nn.ConvTranspose3d
    return transposed(before, width, tuple(stride), tuple(stride))  # type: ignore[arg-type]


def to_size(visible: Tensor, size: Sequence[int]) -> Tensor:
    """Repeats a mask [B, 1, *grid] to [B, 1, *size]."""
    for axis, edge in enumerate(size, start=2):
        visible = visible.repeat_interleave(edge // visible.shape[axis], dim=axis)
    return visible


def visible_patches(keep: Tensor, grid: Sequence[int]) -> Tensor:
    """The mask [B, 1, *grid] of the visible patches `keep` [B, K]."""
    visible = torch.zeros(len(keep), torch.Size(grid).numel(), device=keep.device)
    return visible.scatter(1, keep, 1).view(len(keep), 1, *grid)


def init_he_weights(module: nn.Module) -> None:
    """nnU-Net's initialisation: He's for convolutions, zero biases, and zero norms before a shortcut is added."""
    init_he_convolutions(module)
    for part in module.modules():
        if isinstance(part, ResidualBlock):
            nn.init.zeros_(part.conv2.norm.weight)


def init_he_convolutions(module: nn.Module) -> None:
    """He's initialisation for convolutions, zero biases."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(part.weight, a=SLOPE)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
