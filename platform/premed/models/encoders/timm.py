"""timm's own networks, for pictures: its ViTs and EVAs (LayerScale, registers, rotary positions, gated MLPs, with or
without a class token), and its ConvNeXts.

`forward` is timm's (`forward_features`, `forward_intermediates`), and parts are saved under timm's names. What is
added: visible patches alone (`keep`), by timm's own way of dropping patches, and drop path by the samples' keys.
Positions are resized by timm's functions. `Features.summary` is what timm's classifier sees: the class token after the
norm, or the mean of the patch tokens where the model pools so.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from premed.config.spec import Spec
from premed.contracts import Encoder, Features, Scale
from premed.errors import UserError, first_line
from premed.models.patches import take
from premed.models.public_encoders import named_encoder

Value = bool | int | float | str | None
PREFIX = "network."
RANDOM = ("drop_rate", "drop_path_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate")
RANDOM += ("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords")
SET = ("self", "img_size", "in_chans", "num_classes", "dynamic_img_size", "dynamic_img_pad", "device", "dtype", *RANDOM)
"""Arguments of timm's that the task sets, or that would have torch draw, and not the samples' keys (drop path:
finetune.drop_path)."""


class Config(Spec):
    """A public encoder's network, or any ViT, EVA or ConvNeXt of timm's. Weights: `pretext: {name: pretrained, …}`."""

    name: Literal["timm"] = "timm"
    model: str
    """A public encoder (docs/public-encoders.md), or timm's name of a network."""
    args: dict[str, Value | tuple[Value, ...]] = {}
    """Arguments of timm's model in place of its own, such as `patch_size: 8` or `global_pool: token`."""


def build(config: Config, channels: int, roi: Sequence[int], *more: tuple[int, Sequence[int]]) -> "TimmEncoder":
    """Builds the encoder for images [B, channels, *roi], with timm's initial weights. Raises UserError for volumes, for
    `more` shapes (it has one grid), and where timm has no such network."""
    if len(roi) != 2:
        raise UserError("encoder: timm's networks take pictures, and these are volumes; use vit, mit or unet")
    if more:
        shapes = " and ".join(f"{n} × {list(size)}" for n, size in ((channels, roi), *more))
        raise UserError(f"pretrain.sources: timm takes images of one shape, and these are {shapes}; use mit or unet")
    network = create(config, channels, tuple(roi))
    kind = Convolutional if hasattr(network, "stages") else Transformer
    return kind(config, network, tuple(roi))


def create(config: Config, channels: int, roi: tuple[int, ...]) -> nn.Module:
    """timm's network without a classifier. Raises UserError where timm refuses the arguments, or draws by itself."""
    import timm
    from timm.models import model_entrypoint
    from timm.models.convnext import ConvNeXt
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    entry = named_encoder(config.model, "encoder.model")
    family = model_entrypoint(entry.timm.partition(".")[0]).__module__.rpartition(".")[2]
    kinds = {"vision_transformer": VisionTransformer, "deit": VisionTransformer, "eva": Eva, "convnext": ConvNeXt}
    if (kind := kinds.get(family)) is None:
        raise UserError(f"encoder.model: {config.model} is of timm's {family}; take one of its ViTs, EVAs or ConvNeXts")
    arguments = {**entry.args, **config.args}
    for name in arguments:
        if name not in signature(kind.__init__).parameters or name in SET:
            raise UserError(f"encoder.args.{name}: is no property of {config.model}, or set by premed; leave it out")
    try:
        sized = {} if kind is ConvNeXt else {"img_size": roi}
        network = timm.create_model(
            entry.timm, pretrained=False, in_chans=channels, num_classes=0, **sized, **arguments
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"encoder: timm cannot build {config.model} with {arguments}: {first_line(error)}") from None
    if not isinstance(network, kind):
        raise UserError(f"encoder.model: {config.model} is a {type(network).__name__}; take a {kind.__name__}")
    return network


class Branch(nn.Module):
    """In place of timm's drop path: multiplies a residual branch by each sample's factor."""

    scale: Tensor | None = None
    """[B, …]; None: 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.scale is None else x * self.scale.reshape(-1, *[1] * (x.ndim - 1))


class Visible(nn.Module):
    """In place of timm's random patch dropout: the patches that are to be kept, behind the prefix tokens."""

    keep: Tensor | None = None
    """[B, K]; None: all."""

    def __init__(self, num_prefix_tokens: int, with_indices: bool):
        super().__init__()
        self.num_prefix_tokens, self.with_indices = num_prefix_tokens, with_indices

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """x [B, P + L, D]. With indices, as EVA expects it, which picks the rotary positions by them."""
        if self.keep is not None:
            patches = x[:, self.num_prefix_tokens :]
            patches = take(patches, self.keep)
            x = torch.cat([x[:, : self.num_prefix_tokens], patches], dim=1)
        return (x, self.keep) if self.with_indices else x


class TimmEncoder(Encoder):
    """What both kinds share: timm's names in saved weights, and drop path from keys."""

    network: Any
    branches: list[tuple[Branch, ...]]
    """The residual branches of each block."""

    def __init__(self, config: Config, network: nn.Module):
        super().__init__()
        self.config, self.network, self.branches = config, network, []
        self.register_state_dict_post_hook(without_prefix)
        self.register_load_state_dict_pre_hook(with_prefix)

    def add_branches(self, block: nn.Module, names: Sequence[str]) -> None:
        """Has a block's drop path scaled by keys. Raises UserError if it is none of the blocks that this knows."""
        if not all(isinstance(getattr(block, name, None), nn.Module) for name in names):
            kind = type(block).__name__
            raise UserError(f"encoder.model: {self.config.model} has blocks of another kind ({kind}); take another")
        self.branches.append(tuple(Branch() for _ in names))
        for name, branch in zip(names, self.branches[-1], strict=True):
            setattr(block, name, branch)

    def forward(
        self, image: Tensor, *, keep: Tensor | None = None, taps: Sequence[int] = (), keys: Tensor | None = None
    ) -> Features:
        scales = self.drop_scales(keys)
        if keep is None and not isinstance(scales, Tensor):
            return self.encode(image, taps)
        try:
            self.look_at(keep)
            self.scale(scales)
            return self.encode(image, taps)
        finally:
            self.look_at(None)
            self.scale([None] * self.depth)

    def encode(self, image: Tensor, taps: Sequence[int]) -> Features:
        raise NotImplementedError

    def look_at(self, keep: Tensor | None) -> None:
        """Has the next forward pass see these patches alone; None: all."""
        raise NotImplementedError

    def scale(self, scales: Sequence[Tensor | None] | Tensor) -> None:
        """Sets the factors of all residual branches, as `drop_scales` gives them."""
        for branches, factors in zip(self.branches, scales, strict=True):
            for i, branch in enumerate(branches):
                branch.scale = None if factors is None else factors[i]

    def timm(self) -> dict[str, Any] | None:
        entry = named_encoder(self.config.model, "encoder.model")
        return {"model_name": entry.timm, "num_classes": 0, **entry.args, **self.config.args}


class Transformer(TimmEncoder):
    """A ViT or an EVA. Maps images [B, C, *roi] to Features; see `Encoder.forward`. `summary` is None where the model
    pools nothing (`global_pool: ''`)."""

    takes_keep = True

    def __init__(self, config: Config, network: nn.Module, roi: tuple[int, ...]):
        super().__init__(config, network)
        embed = self.network.patch_embed
        if not isinstance(getattr(embed, "proj", None), nn.Conv2d):
            raise UserError(f"encoder.model: {config.model} has a stem of several layers; take one with patches")
        self.patch = tuple(embed.proj.kernel_size)
        if any(size % edge for size, edge in zip(roi, self.patch, strict=True)):
            raise UserError(
                f"encoder.model: {config.model} has patches of {self.patch}, of which the roi {roi} is no multiple; "
                "choose a roi (or size) that is, or encoder.args.patch_size"
            )
        self.width, self.grid, self.depth = self.network.embed_dim, tuple(embed.grid_size), len(self.network.blocks)
        for block in self.network.blocks:
            self.add_branches(block, ("drop_path1", "drop_path2"))
        # of EVAs it is None, and of ViTs nn.Identity
        self.network.patch_drop = Visible(self.network.num_prefix_tokens, self.network.patch_drop is None)

    def encode(self, image: Tensor, taps: Sequence[int]) -> Features:
        network, places, states = self.network, sorted(taps), []
        if places:
            x, states = network.forward_intermediates(image, indices=places, output_fmt="NLC")
        else:
            x = network.forward_features(image)
        return Features(
            tokens=x[:, network.num_prefix_tokens :],
            grid=self.grid,
            summary=network.forward_head(x, pre_logits=True) if network.global_pool else None,
            taps=dict(zip(places, states, strict=True)),
        )

    def look_at(self, keep: Tensor | None) -> None:
        self.network.patch_drop.keep = keep

    def layer(self, name: str) -> int:
        part, *rest = name.removeprefix(PREFIX).split(".")
        if part == "blocks":
            return int(rest[0]) + 1
        return self.depth + 1 if part in ("norm", "fc_norm", "attn_pool") else 0

    def fit_state(self, state: dict[str, Tensor], grid: tuple[int, ...]) -> tuple[dict[str, Tensor], list[str]]:
        """Resizes the position embedding from `grid` to this encoder's, as timm does; that of prefix tokens stays."""
        from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]

        if tuple(grid) == self.grid or "pos_embed" not in state:
            return state, []
        prefix = 0 if self.network.no_embed_class else self.network.num_prefix_tokens
        places = resample_abs_pos_embed(state["pos_embed"], list(self.grid), list(grid), prefix)
        return state | {"pos_embed": places}, ["pos_embed"]

    def timm(self) -> dict[str, Any] | None:
        sizes = [size * edge for size, edge in zip(self.grid, self.patch, strict=True)]
        stem = self.network.patch_embed.proj
        return {**(super().timm() or {}), "img_size": sizes, "in_chans": stem.in_channels}


class Convolutional(TimmEncoder):
    """A ConvNeXt. The pyramid is its stages' maps; it has no decoder, so heads start from the coarsest, whose places
    are the tokens, before the norm that comes after pooling. Its blocks have no taps."""

    def __init__(self, config: Config, network: nn.Module, roi: tuple[int, ...]):
        super().__init__(config, network)
        stages = self.network.feature_info
        self.pyramid = tuple(Scale(each["num_chs"], (each["reduction"],) * 2) for each in stages)
        self.decoded, (self.width, self.patch) = len(self.pyramid) - 1, self.pyramid[-1]
        if any(size % edge for size, edge in zip(roi, self.patch, strict=True)):
            raise UserError(
                f"encoder.model: {config.model} halves images to {self.patch[0]}ths, of which the roi {roi} is no "
                "multiple; choose a roi (or size) that is"
            )
        self.grid = tuple(size // edge for size, edge in zip(roi, self.patch, strict=True))
        self.starts = []  # of each stage: the number of its first block
        for stage in self.network.stages:
            self.starts.append(len(self.branches))
            for block in stage.blocks:
                self.add_branches(block, ("drop_path",))
        self.depth = len(self.branches)

    def encode(self, image: Tensor, taps: Sequence[int]) -> Features:
        if taps:
            raise UserError("finetune.head: needs blocks of one grid, and this encoder's stages have several; use conv")
        x, maps = self.network.forward_intermediates(image, indices=None)
        summary = self.network.forward_head(x, pre_logits=True) if self.network.head.global_pool.pool_type else None
        return Features(
            tokens=x.flatten(2).transpose(1, 2), grid=tuple(x.shape[2:]), summary=summary, pyramid=tuple(maps)
        )

    def look_at(self, keep: Tensor | None) -> None:
        if keep is not None:
            raise UserError("encoder: a ConvNeXt takes no masked images; choose a strategy that hides no patches")

    def layer(self, name: str) -> int:
        """Numbers the blocks through all stages; what halves a map belongs to the first block after it."""
        part, *rest = name.removeprefix(PREFIX).split(".")
        if part != "stages":
            return 0 if part == "stem" else self.depth + 1
        return self.starts[int(rest[0])] + 1 + (int(rest[2]) if rest[1] == "blocks" else 0)

    def timm(self) -> dict[str, Any] | None:
        return {**(super().timm() or {}), "in_chans": self.network.stem[0].in_channels}


def without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Saved names are timm's: those of the attribute that holds its network are left off."""
    for name in [name for name in state if name.startswith(prefix + PREFIX)]:
        state[prefix + name.removeprefix(prefix + PREFIX)] = state.pop(name)


def with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *more: Any) -> None:
    """The inverse of `without_prefix`."""
    own = {prefix + PREFIX + name for name in module.network.state_dict()}  # type: ignore[union-attr, operator]
    for name in [name for name in state if name.startswith(prefix) and prefix + PREFIX + name[len(prefix) :] in own]:
        state[prefix + PREFIX + name.removeprefix(prefix)] = state.pop(name)
