"""What Primus (Wald 2025, "Enforcing Attention Usage for 3D Medical Image Segmentation") changes in a ViT: EVA-02's
blocks (Fang 2023) and rotary positions, of timm's parts, for pictures and volumes.

timm is imported where a network is built: that takes a process some three seconds, and a plain ViT has no use for it.
"""

from math import sqrt

import torch
from torch import Tensor, nn

from premed.errors import UserError

EPS = 1e-5  # of the norms: Primus has torch's, ViT and MAE 1e-6
GATED = 4 * 2 / 3  # hidden channels of a gated MLP per channel: its three matrices are as large as the two at 4


class EvaBlock(nn.Module):
    """Pre-norm attention and MLP, with timm's names and arithmetic (`EvaBlock`); the caller draws drop path.

    layer_scale: first value of both branches' factors, for each channel; None: no factors. swiglu: a gated MLP in place
    of GELU's. inner_norm: further norms before each branch's last matrix. num_prefix: tokens before the patches'.
    """

    gamma_1: Tensor | None
    gamma_2: Tensor | None

    def __init__(
        self, width: int, heads: int, *, layer_scale: float | None, swiglu: bool, inner_norm: bool, num_prefix: int
    ):
        from timm.layers import Mlp, SwiGLU  # type: ignore[attr-defined]
        from timm.models.eva import EvaAttention

        super().__init__()
        norm = nn.LayerNorm if inner_norm else None
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = EvaAttention(
            width, heads, qkv_fused=False, num_prefix_tokens=num_prefix, norm_layer=norm, scale_norm=inner_norm
        )
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = (
            SwiGLU(width, int(width * GATED), norm_layer=norm) if swiglu else Mlp(width, 4 * width, norm_layer=norm)
        )
        for name in ("gamma_1", "gamma_2"):
            self.register_parameter(
                name, None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
            )

    def forward(self, x: Tensor, scale: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:
        """Maps tokens [B, N, D] to the same shape. `scale` [2, B, 1, 1]: 0 drops a sample's branch (drop path).
        rotation: see `rotary`; [L, 2 · D / heads], or [B, 1, K, 2 · D / heads] for tokens that differ by sample."""
        scales = (None, None) if scale is None else scale
        x = x + scaled(self.attn(self.norm1(x), rope=rotation), self.gamma_1, scales[0])
        return x + scaled(self.mlp(self.norm2(x)), self.gamma_2, scales[1])


def scaled(branch: Tensor, *factors: Tensor | None) -> Tensor:
    """Multiplies a residual branch [B, N, D] by those factors that there are."""
    for factor in factors:
        branch = branch if factor is None else factor * branch
    return branch


def rotary(grid: tuple[int, ...], width: int, heads: int) -> Tensor:
    """Sines, then cosines, of the angles by which queries and keys are turned: [L, 2 · width / heads].

    A head's channels are shared out equally among the axes, and pairs of neighbours turned by the place along the axis
    times 10000^-(i / pairs). So a query and a key meet at angles that only the distance along each axis determines.
    Raises UserError if the channels cannot be shared out.
    """
    from timm.layers import build_rotary_pos_embed  # type: ignore[attr-defined]

    size, dims = width // heads, len(grid)
    if size % (2 * dims):
        raise UserError(
            f"encoder.heads: width {width} and heads {heads} give a head {size} channels, which rotary positions "
            f"cannot share out in pairs among {dims} axes; make it a multiple of {2 * dims}"
        )
    # timm's number is for two axes: it has a quarter as many frequencies
    sines, cosines = build_rotary_pos_embed(list(grid), dim=4 * (size // (2 * dims)), in_pixels=False)
    return torch.cat([sines, cosines], dim=1)


def init_eva_weights(blocks: nn.ModuleList) -> None:
    """Primus' initialisation: normal with deviation .02; each block's last matrices smaller, the deeper it is."""
    for number, block in enumerate(blocks, start=1):
        for part in block.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        for last in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
            last.weight.data.div_(sqrt(2 * number))  # type: ignore[union-attr, operator]
