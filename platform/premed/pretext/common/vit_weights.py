"""Weights of timm's plain ViTs for the encoder `vit`: pictures and volumes, any channels, any patch.

The encoder has timm's parameter names and arithmetic: all tensors but three are copied. The rules for these three:

Positions (`pos_embed`): the class token's row is copied. The rest, a square grid, is resampled to the encoder's grid as
timm does it (bicubic, antialiased). In 3D it is resampled to the first two axes and repeated along the third. To each
depth its sines and cosines are added, less their mean over the depths, scaled to the root mean square with which the
resampled rows vary about their mean. So the mean over depths is the 2D embedding, and depths differ from the first
step. Repeating alone (ViViT, Arnab 2021) would distinguish depths only as fine-tuning learns to, and layer decay lets
positions hardly move (0.75^13: 2 % of the learning rate).

Stem (`patch_embed.proj`), in this order:

1. Another patch size: FlexiViT's PI-resize (Beyer 2023), by timm. In 3D, the patch's first two edges.
2. Normalisation: timm's models take (pixel - mean) / std of pixels in [0, 1]; a task's values are another function of
   the pixel (`Preprocessing.normalise`): the difference is folded into kernel and bias. `window`: the value is the
   pixel. `grey`: the pixel is std * value + mean, with the preprocessing's. `zscore`, `zscore_nonzero`: as `grey`,
   with the mean and std of ImageNet's pixels per channel: an image's own mean is mapped to ImageNet's.
3. Channels: three remain red, green and blue. For any other number C, each gets the sum over red, green and blue,
   divided by C. So a grey image, in one channel or in all C, has the response of timm's model to it in three.
4. In 3D: repeated along the third axis and divided by the patch's depth (I3D, Carreira 2017). So a volume that is
   constant along its third axis has the response of its slices volume[:, :, k].

A stem without three channels was not trained on ImageNet's colours: it must have the task's number, and steps 2 and 3
are skipped. Tensors that belong to no encoder (DROPPED) are dropped. A network with another forward pass
(`pretrained.VARIANTS`) is refused, and so is one of another width, depth or number of heads. A file does not contain
the number of heads: it is taken to be that of `model` if width and depth are, else the encoder's.
"""

from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor

from premed.config.image_processing import Preprocessing
from premed.contracts import Task
from premed.errors import UserError
from premed.models import pretrained
from premed.models.encoders.vit import Block, ViT
from premed.models.patches import sincos

DROPPED = ("head.", "head_dist.", "fc.", "pre_logits.", "mask_token", "decoder")
STEM, BIAS, PLACES = "patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"


def fitted(
    where: str,
    file_state: dict[str, Tensor],
    encoder: ViT,
    task: Task,
    named: pretrained.ModelInfo,
    mean_std: tuple[tuple[float, ...], tuple[float, ...]],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the encoder's state, by the rules above, and what was kept, changed and dropped.

    where: the file, for a UserError where it does not fit. named: what timm knows of its model. mean_std: of the pixels
    that it was trained on.
    """
    state = {name: w for name, w in file_state.items() if not name.startswith(DROPPED)}
    refuse_misfits(where, state, encoder, named)
    changed: dict[str, str] = {}
    state[STEM], state[BIAS] = adapt_stem(where, state[STEM], state[BIAS], encoder, task, mean_std, changed)
    state[PLACES] = adapt_positions(where, state[PLACES], encoder.grid, changed)
    dropped = sorted(set(file_state) - set(state))
    return state, {"kept": len(state) - len(changed), "changed": changed, "dropped": dropped}


# ---- compatibility


def refuse_misfits(where: str, state: dict[str, Tensor], encoder: ViT, named: pretrained.ModelInfo) -> None:
    """Raises UserError unless these are the weights of a plain ViT of the encoder's width, depth and heads."""
    pretrained.refuse_variants(state, where)
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if not blocks or PLACES not in state or STEM not in state:
        raise UserError(
            f"{where}: contains no vision transformer with timm's names (it has {', '.join(sorted(state)[:3])})"
        )
    if "cls_token" not in state:
        raise UserError(f"{where}: has no class token; use a plain ViT, such as vit_base_patch16_224")
    width, depth = state["cls_token"].shape[-1], len(blocks)
    alike = (width, depth) == (named.width, named.depth)
    refuse_shape(where, encoder, width, depth, named.heads if alike else None)
    own = encoder.state_dict()
    fixed = own.keys() - {STEM, PLACES}  # these two are converted
    lists = {
        "missing": sorted(own.keys() - state.keys()),
        "unknown": sorted(state.keys() - own.keys()),
        "of another shape": sorted(name for name in fixed & state.keys() if state[name].shape != own[name].shape),
    }
    if problems := "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in lists.items() if names):
        raise UserError(f"{where}: is not a plain ViT ({problems}); use one, such as vit_base_patch16_224")


def refuse_shape(where: str, encoder: ViT, width: int, depth: int, heads: int | None) -> None:
    """Raises UserError, which names the fields to set, if the shapes differ, or the encoder has parts that a plain ViT
    has not. heads: None if unknown."""
    if options := encoder.config.options():
        raise UserError(f"encoder.{options[0]}: {where} is of a plain ViT; leave out {', '.join(options)}")
    own = cast(Block, encoder.blocks[0]).attn.num_heads
    fields = {"width": (width, encoder.width), "depth": (depth, encoder.depth), "heads": (heads, own)}
    if wrong := {field: pair for field, pair in fields.items() if pair[0] not in (None, pair[1])}:
        theirs = ", ".join(f"{field} {number}" for field, (number, _) in wrong.items())
        ours = ", ".join(str(number) for _, number in wrong.values())
        overrides = " ".join(f"encoder.{field}={number}" for field, (number, _) in wrong.items())
        raise UserError(
            f"{where}: has {theirs} and the encoder {ours}; set {overrides}, "
            "or name weights of the encoder's shape (pretext.model, pretext.weights)"
        )


# ---- conversion


def adapt_stem(
    where: str,
    kernel: Tensor,
    bias: Tensor,
    encoder: ViT,
    task: Task,
    mean_std: tuple[tuple[float, ...], tuple[float, ...]],
    changed: dict[str, str],
) -> tuple[Tensor, Tensor]:
    """Converts kernel [D, 3, p, p] and bias [D] to [D, C, *patch] and [D] for the task; reports to `changed`."""
    from timm.layers import resample_patch_embed  # type: ignore[attr-defined]

    if kernel.ndim != 4 or kernel.shape[1] not in (3, task.channels):
        raise UserError(
            f"{where}: its stem has {kernel.shape[1]} input channels and {task.name} has {task.channels}; "
            "use weights with 3 (red, green, blue)"
        )
    changes, edges = [], encoder.patch[:2]
    if tuple(kernel.shape[2:]) != edges:
        changes.append(f"{format_sizes(kernel.shape[2:])} to {format_sizes(edges)}")
        kernel = resample_patch_embed(kernel, list(edges))
    if kernel.shape[1] == 3:
        scale, shift = rescaling(task.preprocessing, *mean_std)
        if (scale != 1).any() or (shift != 0).any():
            changes.append("normalisation folded in")
            changed[BIAS] = "normalisation folded in"
            sums = kernel.double().sum(dim=(2, 3))  # [D, 3]
            bias = (bias.double() + sums @ shift).float()
            kernel = (kernel.double() * scale[:, None, None]).float()
        if task.channels != 3:
            changes.append(f"3 channels to {task.channels}")
            kernel = kernel.sum(dim=1, keepdim=True).repeat(1, task.channels, 1, 1) / task.channels
    if task.dims == 3:
        depth = encoder.patch[2]
        changes.append(f"inflated to {format_sizes(encoder.patch)}")
        kernel = kernel[..., None].repeat(1, 1, 1, 1, depth) / depth
    if changes:
        changed[STEM] = ", ".join(changes)
    return kernel, bias


def rescaling(preprocessing: Preprocessing, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Returns (scale [3], shift [3]) that map a task's values to the normalisation of the model's channels."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    pixel = {"window": ([1.0] * 3, [0.0] * 3), "grey": ([preprocessing.std] * 3, [preprocessing.mean] * 3)}
    factor, offset, centre, size = (
        torch.tensor(each, dtype=torch.float64)
        for each in (*pixel.get(preprocessing.normalise, (IMAGENET_DEFAULT_STD, IMAGENET_DEFAULT_MEAN)), mean, std)
    )
    return factor / size, (offset - centre) / size


def adapt_positions(where: str, places: Tensor, grid: tuple[int, ...], changed: dict[str, str]) -> Tensor:
    """Resamples [1, 1 + n * n, D] to the encoder's grid, [1, 1 + L, D]; reports to `changed`."""
    from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]

    side = isqrt(places.shape[1] - 1)
    if places.shape[1] != 1 + side * side:
        raise UserError(f"{where}: its {places.shape[1]} positions are not a class token and a square; use a plain ViT")
    if grid == (side, side):
        return places
    changed[PLACES] = f"{side}x{side} to {format_sizes(grid)}"
    places = resample_abs_pos_embed(places, list(grid[:2]), [side, side])
    if len(grid) == 2:
        return places
    summary, plane = places[:, :1], places[:, 1:, None]  # [1, 1, D], [1, H * W, 1, D]
    depths = sincos(grid[2:], places.shape[2])[0]  # [depth, D]
    depths = depths - depths.mean(dim=0)
    size = (plane - plane.mean(dim=1, keepdim=True)).square().mean().sqrt()
    depths = depths * size / depths.square().mean().sqrt().clamp(min=1e-12)
    return torch.cat([summary, (plane + depths).flatten(1, 2)], dim=1)


def format_sizes(sizes: Any) -> str:
    """Formats (16, 16) as 16x16."""
    return "x".join(map(str, sizes))
