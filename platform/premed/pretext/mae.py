"""Masked autoencoder (He 2022), in 2D and 3D, on the images of one data set: the task's own (SelfMedMAE), or another.

The encoder sees the visible patches only; a light decoder predicts the hidden ones, each normalised by its own mean and
variance; the loss is on the hidden patches alone. SelfMedMAE's decoders: 256 × 8 × 8 heads in 2D, 384 × 8 × 12 in 3D.

A convolutional encoder with a pyramid has patches as large as its coarsest map's stride, and a convolutional decoder
(SparK, Tian 2023). Masks, targets, loss and gate are the same: at equal patches the losses can be compared.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from premed.config.spec import Spec, added_field
from premed.contracts import Batch, DataSet, Encoder, Features, Objective, Row, Sample, Task
from premed.errors import UserError
from premed.models.convolutions import ConvBlock, init_he_weights, to_size, upsampling, visible_patches
from premed.models.encoders.vit import Block, ViT, init_weights
from premed.models.patches import add_class_row, patchify, sincos, take, unpatchify
from premed.pretext.common.init import Init
from premed.rng import bits, fold, key

NUM_PROGRESS_CASES = 2  # cases whose reconstruction is recorded during the training
CHUNK = 32  # validation views per forward; the rows do not depend on it
CAPTION = "hidden patches predicted, visible ones pasted back; true mean and contrast of each patch put back"


class Config(Spec):
    """The paper's ratio is 0.75 in 2D; SelfMedMAE's scripts hide 0.125 in 3D."""

    name: Literal["mae"] = "mae"
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    decoder_width: int = Field(default=256, ge=8)
    """Channels of the tokens; of a convolutional decoder: at the coarsest map, halved at each finer one, at least 8."""
    decoder_depth: int = Field(default=8, ge=1)
    """Blocks; a convolutional decoder ignores it and has one convolution per map."""
    decoder_heads: int = Field(default=8, ge=1)
    """Attention heads; a convolutional decoder has none and ignores it."""
    gate_images: int = Field(default=2000, ge=1)
    """Maximum number of training images from which the network-free predictor (the gate) is computed."""
    init: Init = added_field(None)
    """Weights to start from in place of random ones: a strategy that imports them, such as
    `{name: pretrained, model: …, weights: FILE}`, whose name may be left out."""


def build(config: Config, encoder: Encoder, data_sets: Sequence[DataSet], weight_decay: float) -> "MAE":
    """Returns the objective that trains `encoder` on views of one data set. Raises UserError for several."""
    if len(data_sets) > 1:
        raise UserError(f"pretrain.sources: mae learns from one data set, and there are {len(data_sets)}; keep one")
    if isinstance(encoder, ViT) and (encoder.config.init, encoder.config.position) == ("timm", "sincos"):
        raise UserError("encoder.init: mae needs the positions of init: mae; set timm under `only: {none: …}` alone")
    return MAE(config, encoder, data_sets[0].task, weight_decay)


class MAE(Objective):
    """`forward` returns the paper's loss; `measure` computes it on val, together with the gate's."""

    mean_patch: Tensor

    def __init__(self, config: Config, encoder: Encoder, task: Task, weight_decay: float):
        super().__init__()
        self.config, self.task, self.weight_decay = config, task, weight_decay
        num_patches = prod(encoder.grid)
        self.num_visible = int(num_patches * (1 - config.mask_ratio))
        if not 1 <= self.num_visible < num_patches:
            raise UserError(
                f"pretext.mask_ratio: {config.mask_ratio} of {num_patches} patches leaves {self.num_visible} visible; "
                "at least one must be visible and one hidden"
            )
        if not encoder.takes_keep:
            raise UserError("encoder: mae needs one that can skip patches; use vit, resenc, or timm's ViTs and EVAs")
        self.encoder = encoder
        self.decoder = (ConvDecoder if encoder.pyramid else Decoder)(config, encoder, task.channels)
        self.parts = {"encoder": encoder, "decoder": self.decoder}
        if isinstance(encoder, ViT) and encoder.config.position == "sincos":  # others, as timm's, are learnt
            encoder.pos_embed.requires_grad_(False)  # type: ignore[union-attr]
        # the gate: a network-free predictor, the mean normalised patch of each position [L, P]
        self.register_buffer("mean_patch", torch.zeros(num_patches, task.channels * prod(encoder.patch)))

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        return self.errors(batch.image, batch.keys)[0].mean(), {}

    def losses(self, image: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the losses [B] of the network and of the gate, per sample, on the same hidden patches."""
        error, target, hide = self.errors(image, keys)
        with torch.no_grad():
            gate = (self.mean_patch[hide] - target).square().mean(dim=(1, 2))
        return error, gate

    def errors(self, image: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the network's losses [B], the hidden patches' targets [B, L - K, P] and their indices [B, L - K]."""
        keep, hide = self.mask(keys)
        target = take(self.target(image), hide)
        prediction = self.decoder(self.encoder(image, keep=keep), keep, hide)
        return (prediction.float() - target).square().mean(dim=(1, 2)), target, hide

    def mask(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the indices of visible [B, K] and hidden [B, L - K] patches, K = int(L * (1 - mask_ratio))."""
        order = bits(fold(keys, "mask"), prod(self.encoder.grid)).argsort(dim=1, stable=True)
        return order[:, : self.num_visible], order[:, self.num_visible :]

    def target(self, image: Tensor) -> Tensor:
        """Returns patches [B, L, P], each normalised to mean 0 and (biased) variance 1 over all of its channels."""
        patches = patchify(image.float(), self.encoder.patch)
        return torch.nn.functional.layer_norm(patches, patches.shape[-1:], eps=1e-6)

    @torch.no_grad()
    def on_start(self, train: Sequence[Sample]) -> None:
        """Computes the gate: each position's mean normalised patch over the training images (it is scored on val)."""
        total, count = torch.zeros_like(self.mean_patch, dtype=torch.float64), 0
        for sample in train[: self.config.gate_images]:
            for tile in self.task.tiles(sample):
                total += self.target(torch.from_numpy(tile)[None].to(total.device))[0]
                count += 1
        self.mean_patch.copy_(total / max(count, 1))

    @torch.no_grad()
    def measure(self, samples: Sequence[Sample]) -> list[Row]:
        """Returns one row per case: `loss`, and `gate`, the loss of the network-free predictor on the same patches."""
        views = [(sample, i, tile) for sample in samples for i, tile in enumerate(self.task.tiles(sample))]
        losses: dict[str, list[tuple[float, float]]] = {sample.case.name: [] for sample in samples}
        for start in range(0, len(views), CHUNK):
            chunk = views[start : start + CHUNK]
            image = torch.from_numpy(np.stack([tile for _, _, tile in chunk])).to(self.mean_patch.device)
            keys = torch.tensor([key("val", sample.case.name, i) for sample, i, _ in chunk], device=image.device)
            for (sample, _, _), loss, gate in zip(chunk, *(x.tolist() for x in self.losses(image, keys)), strict=True):
                losses[sample.case.name].append((loss, gate))
        return [
            {"case": sample.case.name, "patient": sample.case.patient}
            | dict(zip(("loss", "gate"), np.mean(losses[sample.case.name], axis=0).tolist(), strict=True))
            for sample in samples
        ]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        return {name: float(np.mean([row[name] for row in rows])) for name in ("loss", "gate")}

    def pictures(self, samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Draws the paper's figure 2 on fixed cases: original, masked, predicted, and the gate's prediction."""
        from premed.data.figures import reconstruction

        cases = [
            (sample.case.name, *(picture.numpy() for picture in self.reconstruct_sample(sample)))
            for sample in samples[:4]
        ]
        return [reconstruction(folder / "reconstruction.png", cases, CAPTION)]

    def snapshot(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Returns the predictions of the first cases, [*S] each, by name."""
        return {sample.case.name: self.reconstruct_sample(sample)[2] for sample in samples[:NUM_PROGRESS_CASES]}

    def progress_pictures(
        self, samples: Sequence[Sample], snapshots: Mapping[int, dict[str, Tensor]], folder: Path
    ) -> list[Path]:
        """Draws the predictions of the same cases at successive steps."""
        from premed.data.figures import reconstruction

        cases = []
        for sample in samples[:NUM_PROGRESS_CASES]:
            original, masked, _, mean_patch = self.reconstruct_sample(sample)
            predicted = [snapshots[step][sample.case.name] for step in sorted(snapshots)]
            cases.append((sample.case.name, *(x.numpy() for x in (original, masked, *predicted, mean_patch))))
        return [reconstruction(folder / "progress.png", cases, CAPTION, sorted(snapshots))]

    @torch.no_grad()
    def reconstruct_sample(self, sample: Sample) -> list[Tensor]:
        """Returns `reconstruct` of the first channel [*S] of a case's first fixed view, always with the same mask."""
        image = torch.from_numpy(self.task.tiles(sample)[0])[None].to(self.mean_patch.device)
        keys = torch.tensor([key("val", sample.case.name, 0)], device=image.device)
        return [picture[0, 0].cpu() for picture in self.reconstruct(image, keys)]

    def reconstruct(self, image: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns original, masked (hidden patches NaN), predicted, mean patch: [B, C, *S] each.

        Predictions are de-normalised with the target patch's own statistics; visible patches are the image's own.
        """
        keep, hide = self.mask(keys)
        patches = patchify(image.float(), self.encoder.patch)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
        prediction = self.decoder(self.encoder(image, keep=keep), keep, hide).float()

        def paste(hidden: Tensor) -> Tensor:
            where = hide[..., None].expand(-1, -1, patches.shape[2])
            return unpatchify(patches.scatter(1, where, hidden), self.encoder.grid, self.encoder.patch)

        def denormalise(normalised: Tensor) -> Tensor:
            return paste(normalised * take((variance + 1e-6).sqrt(), hide) + take(mean, hide))

        blank = torch.full_like(prediction, torch.nan)
        return image, paste(blank), denormalise(prediction), denormalise(self.mean_patch[hide])


class Decoder(nn.Module):
    """A transformer over all positions, with a learnt mask token at the hidden ones; predicts the hidden patches."""

    positions: Tensor

    def __init__(self, config: Config, encoder: Encoder, channels: int):
        super().__init__()
        width = config.decoder_width
        if width % config.decoder_heads:
            raise UserError(f"pretext.decoder_width: {width} is not a multiple of decoder_heads {config.decoder_heads}")
        positions = sincos(encoder.grid, width, "pretext.decoder_width")
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", add_class_row(positions), persistent=False)
        self.blocks = nn.ModuleList(Block(width, config.decoder_heads) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, channels * prod(encoder.patch))
        nn.init.normal_(self.mask_token, std=0.02)
        init_weights(self)

    def forward(self, features: Features, keep: Tensor, hide: Tensor) -> Tensor:
        """Returns predictions [B, L - K, P] for the hidden positions, in the order of `hide`."""
        visible = self.embed(features.tokens) + take(self.positions[:, 1:].expand(len(keep), -1, -1), keep)
        hidden = self.mask_token + take(self.positions[:, 1:].expand(len(hide), -1, -1), hide)
        summary = [] if features.summary is None else [self.embed(features.summary)[:, None]]
        x = torch.cat([*summary, visible, hidden.to(visible.dtype)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x[:, -hide.shape[1] :]))


class ConvDecoder(nn.Module):
    """SparK's: from the coarsest map of a pyramid to full resolution, each finer map added on the way. The hidden
    patches of every map are filled with a learnt mask token."""

    def __init__(self, config: Config, encoder: Encoder, channels: int):
        super().__init__()
        scales, dims = encoder.pyramid[::-1], len(encoder.grid)  # coarse to fine
        widths = [max(config.decoder_width // 2**i, 8) for i in range(len(scales))]
        self.patch, self.grid = encoder.patch, encoder.grid
        pointwise = nn.Conv2d if dims == 2 else nn.Conv3d
        self.mask_tokens = nn.ParameterList(torch.zeros(scale.channels, *[1] * dims) for scale in scales)
        self.project = nn.ModuleList(
            pointwise(scale.channels, width, 1) for scale, width in zip(scales, widths, strict=True)
        )
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for (coarse, fine), (before, width) in zip(pairwise(scales), pairwise(widths), strict=True):
            by = tuple(a // b for a, b in zip(coarse.stride, fine.stride, strict=True))
            self.up.append(upsampling(before, width, by))
            self.merge.append(ConvBlock(width, width, dims, groups=width))
        self.predict = pointwise(widths[-1], channels, 1)
        init_he_weights(self)
        for parameter in (self.predict.weight, *self.mask_tokens):  # first predictions near 0, the targets' mean
            nn.init.normal_(parameter, std=0.02)

    def forward(self, features: Features, keep: Tensor, hide: Tensor) -> Tensor:
        """Returns predictions [B, L - K, P] for the hidden patches, in the order of `hide`."""
        visible = visible_patches(keep, self.grid)
        filled = [
            project(torch.where(to_size(visible, seen.shape[2:]) > 0, seen, token.to(seen.dtype)))
            for project, seen, token in zip(self.project, features.pyramid[::-1], self.mask_tokens, strict=True)
        ]
        x = filled[0]
        for up, merge, finer in zip(self.up, self.merge, filled[1:], strict=True):
            x = merge(up(x) + finer)
        return take(patchify(self.predict(x), self.patch), hide)
