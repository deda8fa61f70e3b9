"""ImageNet weights: fine-tuning starts from those of a timm ViT, from the hub or from a file. Nothing is trained.

The encoder's names and arithmetic are timm's: all tensors but three are taken as they are. The rules for those:

Positions (`pos_embed`): the class token's row stays. The rest, a square grid, is resampled to the encoder's grid as
timm does it (bicubic, antialiased). In 3D it is resampled to the first two axes and repeated along the third; added to
each depth are its sines and cosines, less their mean over the depths, as large (root mean square) as the resampled rows
vary about their mean. So the mean over depths is the 2-D embedding, and depths differ from the first step. Repeated
alone (ViViT, Arnab 2021), they would be told apart only as fine-tuning learns it, and layer decay lets positions hardly
move (0.75^13: 2 % of the learning rate).

Stem (`patch_embed.proj`), in this order:

1. Another patch size: FlexiViT's PI-resize (Beyer 2023), by timm. In 3D, the patch's first two edges.
2. Normalisation: timm's models take (pixel - mean) / std of pixels in [0, 1]; a task's values are another function of
   the pixel (`Preprocessing.normalise`): the difference is folded into kernel and bias. `window`: the value is the
   pixel.
   `grey`: the pixel is std * value + mean, the recipe's. `zscore`, `zscore_nonzero`: as `grey`, with the mean and std
   of ImageNet's pixels, channel by channel: an image's own mean goes where ImageNet's is.
3. Channels: three stay red, green and blue. Any other number C: each gets the sum over red, green and blue, divided by
   C. So a grey image gives what timm gives for it repeated three times, be it in one channel or in all C.
4. In 3D: repeated along the third axis and divided by the patch's depth (I3D, Carreira 2017). So a volume that is
   constant along its third axis gives the response of its slices volume[:, :, k].

A stem of other than three channels was not trained on ImageNet's colours: it must have the task's number, and 2 and 3
are left out. What belongs to no encoder (DROPPED) is dropped; a network that computes something else (`hub.VARIANTS`)
is refused, and so is one of another width, depth or number of heads. A file does not tell its heads: they are taken to
be those of `model` where width and depth are, else the encoder's.
"""

from math import isqrt
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import PositiveFloat
from torch import Tensor

from premed.config.spec import Spec, elsewhere
from premed.config.transforms import Preprocessing
from premed.contracts import Encoder, Task
from premed.errors import UserError
from premed.models import pretrained
from premed.models.encoders.vit import Block, ViT, sincos
from premed.paths import expand_path

DROPPED = ("head.", "head_dist.", "fc.", "pre_logits.", "mask_token", "decoder")
STEM, BIAS, PLACES = "patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"


class Config(Spec):
    """Weights by timm's name for them, from the hub; or from a file, which is taken to be that model's."""

    name: Literal["imagenet"] = "imagenet"
    model: str = "vit_base_patch16_224.augreg_in1k"
    """Says of a file, too, how its images were normalised, unless `mean` and `std` do."""
    weights: Path | None = elsewhere(None)
    """A file, read on this machine alone; stages are known by its content."""
    mean: tuple[float, float, float] | None = None
    """Of the pixels in [0, 1], by channel; None: the model's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None


build = None
"""There is nothing to train; `weights` brings what others trained."""


def content(config: Config) -> str:
    """SHA-256 of the file that the weights come from."""
    return pretrained.sha256(source(config))


def source(config: Config) -> Path:
    """The file, fetched from the hub where none was given."""
    return pretrained.download(config.model) if config.weights is None else expand_path(config.weights)


def weights(config: Config, encoder: Encoder, task: Task) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The encoder's whole state, made from the file by the rules above, and what was done to it."""
    if not isinstance(encoder, ViT):
        raise UserError("encoder: imagenet's weights are a vision transformer's; use vit")
    named = pretrained.model_info(config.model)
    where = f"pretext.weights: {config.weights}"
    if config.weights is None:  # what can be refused is not fetched
        where = f"pretext.model: {config.model}"
        pretrained.refuse_variants(named.names, where)
        refuse_shape(where, encoder, named.width, named.depth, named.heads)
    path = source(config)
    whole = pretrained.read_weights(path)
    state = {name: w for name, w in whole.items() if not name.startswith(DROPPED)}
    refuse_misfits(where, state, encoder, named)
    about = {"file": path.name, "sha256": pretrained.sha256(path), "model": config.model}
    changed: dict[str, str] = {}
    mean_std = config.mean or named.mean, config.std or named.std
    state[STEM], state[BIAS] = stem(where, state[STEM], state[BIAS], encoder, task, mean_std, changed)
    state[PLACES] = positions(where, state[PLACES], encoder.grid, changed)
    dropped = sorted(set(whole) - set(state))
    return state, about | {"kept": len(state) - len(changed), "changed": changed, "dropped": dropped}


# ---- what does not fit


def refuse_misfits(where: str, state: dict[str, Tensor], encoder: ViT, named: pretrained.ModelInfo) -> None:
    """UserError where these are not the weights of a plain ViT of the encoder's width, depth and heads."""
    pretrained.refuse_variants(state, where)
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if not blocks or PLACES not in state or STEM not in state:
        raise UserError(f"{where}: holds no vision transformer by timm's names (it has {', '.join(sorted(state)[:3])})")
    if "cls_token" not in state:
        raise UserError(f"{where}: has no class token; take a plain ViT, such as vit_base_patch16_224")
    width, depth = state["cls_token"].shape[-1], len(blocks)
    alike = (width, depth) == (named.width, named.depth)
    refuse_shape(where, encoder, width, depth, named.heads if alike else None)
    own = encoder.state_dict()
    fixed = own.keys() - {STEM, PLACES}  # these two are made to fit
    lists = {
        "missing": sorted(own.keys() - state.keys()),
        "unknown": sorted(state.keys() - own.keys()),
        "of another shape": sorted(name for name in fixed & state.keys() if state[name].shape != own[name].shape),
    }
    if said := "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in lists.items() if names):
        raise UserError(f"{where}: is not a plain ViT ({said}); take one, such as vit_base_patch16_224")


def refuse_shape(where: str, encoder: ViT, width: int, depth: int, heads: int | None) -> None:
    """UserError that names the field in which the weights are another network's; heads: None where nobody knows."""
    own = cast(Block, encoder.blocks[0]).attn.num_heads
    fields = {"width": (width, encoder.width), "depth": (depth, encoder.depth), "heads": (heads, own)}
    if wrong := {field: pair for field, pair in fields.items() if pair[0] not in (None, pair[1])}:
        theirs = ", ".join(f"{field} {number}" for field, (number, _) in wrong.items())
        ours = ", ".join(str(number) for _, number in wrong.values())
        mend = " ".join(f"encoder.{field}={number}" for field, (number, _) in wrong.items())
        raise UserError(
            f"{where}: has {theirs} and the encoder {ours}; set {mend}, "
            "or name weights of the encoder's shape (pretext.model, pretext.weights)"
        )


# ---- what is made to fit


def stem(
    where: str,
    kernel: Tensor,
    bias: Tensor,
    encoder: ViT,
    task: Task,
    mean_std: tuple[tuple[float, ...], tuple[float, ...]],
    changed: dict[str, str],
) -> tuple[Tensor, Tensor]:
    """Kernel [D, C, *patch] and bias [D] for the task's images, from [D, 3, p, p]; notes in `changed` what was done."""
    from timm.layers import resample_patch_embed  # type: ignore[attr-defined]

    if kernel.ndim != 4 or kernel.shape[1] not in (3, task.channels):
        raise UserError(
            f"{where}: its stem takes {kernel.shape[1]} channels and {task.name} has {task.channels}; "
            "take one of 3 (red, green, blue)"
        )
    done, edges = [], encoder.patch[:2]
    if tuple(kernel.shape[2:]) != edges:
        done.append(f"{by(kernel.shape[2:])} to {by(edges)}")
        kernel = resample_patch_embed(kernel, list(edges))
    if kernel.shape[1] == 3:
        scale, shift = rescaling(task.preprocessing, *mean_std)
        if (scale != 1).any() or (shift != 0).any():
            done.append("normalisation folded in")
            changed[BIAS] = "normalisation folded in"
            sums = kernel.double().sum(dim=(2, 3))  # [D, 3]
            bias = (bias.double() + sums @ shift).float()
            kernel = (kernel.double() * scale[:, None, None]).float()
        if task.channels != 3:
            done.append(f"3 channels to {task.channels}")
            kernel = kernel.sum(dim=1, keepdim=True).repeat(1, task.channels, 1, 1) / task.channels
    if task.dims == 3:
        depth = encoder.patch[2]
        done.append(f"inflated to {by(encoder.patch)}")
        kernel = kernel[..., None].repeat(1, 1, 1, 1, depth) / depth
    if done:
        changed[STEM] = ", ".join(done)
    return kernel, bias


def rescaling(preprocessing: Preprocessing, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """(scale [3], shift [3]) that take a task's value to what the model's channels want."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    pixel = {"window": ([1.0] * 3, [0.0] * 3), "grey": ([preprocessing.std] * 3, [preprocessing.mean] * 3)}
    factor, offset, centre, size = (
        torch.tensor(each, dtype=torch.float64)
        for each in (*pixel.get(preprocessing.normalise, (IMAGENET_DEFAULT_STD, IMAGENET_DEFAULT_MEAN)), mean, std)
    )
    return factor / size, (offset - centre) / size


def positions(where: str, places: Tensor, grid: tuple[int, ...], changed: dict[str, str]) -> Tensor:
    """[1, 1 + L, D] of the encoder's grid from [1, 1 + n * n, D]; notes in `changed` what was done."""
    from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]

    side = isqrt(places.shape[1] - 1)
    if places.shape[1] != 1 + side * side:
        raise UserError(f"{where}: its {places.shape[1]} positions are no class token and a square; take a plain ViT")
    if grid == (side, side):
        return places
    changed[PLACES] = f"{side}x{side} to {by(grid)}"
    places = resample_abs_pos_embed(places, list(grid[:2]), [side, side])
    if len(grid) == 2:
        return places
    summary, plane = places[:, :1], places[:, 1:, None]  # [1, 1, D], [1, H * W, 1, D]
    depths = sincos(grid[2:], places.shape[2])[0]  # [depth, D]
    depths = depths - depths.mean(dim=0)
    size = (plane - plane.mean(dim=1, keepdim=True)).square().mean().sqrt()
    depths = depths * size / depths.square().mean().sqrt().clamp(min=1e-12)
    return torch.cat([summary, (plane + depths).flatten(1, 2)], dim=1)


def by(sizes: Any) -> str:
    """(16, 16) as 16x16."""
    return "x".join(map(str, sizes))
