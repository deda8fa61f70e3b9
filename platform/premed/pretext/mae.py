"""Masked autoencoder (He 2022), in 2D and 3D, on the images of one data set: the task's own (SelfMedMAE), or another.

The encoder sees the visible patches only; a light decoder predicts the hidden ones, each normalised by its own mean and
variance; the loss is on hidden patches alone. SelfMedMAE's sizes: decoder 256 × 8 × 8 heads in 2D, 384 × 8 × 12 in 3D.
"""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from premed.config.spec import Spec
from premed.contracts import Batch, DataSet, Encoder, Features, Objective, Row, Sample, Task
from premed.errors import UserError
from premed.models.encoders.vit import Block, add_class_row, init_weights, patchify, sincos, unpatchify
from premed.rng import bits, fold, key

FILMED = 2  # cases whose reconstruction is kept through the training
CHUNK = 32  # validation views per forward; the rows do not depend on it
CAPTION = "hidden patches predicted, visible ones pasted back; true mean and contrast of each patch put back"


class Config(Spec):
    """The paper's ratio is 0.75 in 2D; SelfMedMAE's scripts hide 0.125 in 3D."""

    name: Literal["mae"] = "mae"
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    decoder_width: int = Field(default=256, ge=8)
    decoder_depth: int = Field(default=8, ge=1)
    decoder_heads: int = Field(default=8, ge=1)
    gate_images: int = Field(default=2000, ge=1)
    """How many training images the network-free predictor (the gate) is made from, at the most."""


def build(config: Config, encoder: Encoder, data_sets: Sequence[DataSet], weight_decay: float) -> "MAE":
    """The objective that trains `encoder` on views of the one data set."""
    if len(data_sets) > 1:
        raise UserError(f"pretrain.sources: mae learns from one data set, and here are {len(data_sets)}; leave one")
    return MAE(config, encoder, data_sets[0].task, weight_decay)


class MAE(Objective):
    """`forward` is the loss of the paper; `measure` scores it on val beside the gate."""

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
        if "pos_embed" not in dict(encoder.named_parameters()):
            raise UserError("encoder: mae needs one that sees some patches only, at known positions; use vit")
        self.encoder = encoder
        self.decoder = Decoder(config, encoder, task.channels)
        self.parts = {"encoder": encoder, "decoder": self.decoder}
        encoder.get_parameter("pos_embed").requires_grad_(False)
        # the network-free predictor: the mean normalised patch of each position, [L, P]: the gate
        self.register_buffer("mean_patch", torch.zeros(num_patches, task.channels * prod(encoder.patch)))

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        return self.losses(batch.image, batch.keys)[0].mean(), {}

    def losses(self, image: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Per sample, the loss [B] of the network and of the network-free predictor, on the same hidden patches."""
        target = self.target(image)
        keep, hide = self.mask(keys)
        prediction = self.decoder(self.encoder(image, keep=keep), keep, hide)
        hidden_target = take(target, hide)
        error = (prediction.float() - hidden_target).square().mean(dim=(1, 2))
        with torch.no_grad():
            gate = (self.mean_patch[hide] - hidden_target).square().mean(dim=(1, 2))
        return error, gate

    def mask(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of the visible [B, K] and the hidden [B, L - K] patches, K = int(L * (1 - mask_ratio))."""
        order = bits(fold(keys, "mask"), prod(self.encoder.grid)).argsort(dim=1, stable=True)
        return order[:, : self.num_visible], order[:, self.num_visible :]

    def target(self, image: Tensor) -> Tensor:
        """Patches [B, L, P], each with mean 0 and (biased) variance 1; all channels of a patch together."""
        patches = patchify(image.float(), self.encoder.patch)
        return torch.nn.functional.layer_norm(patches, patches.shape[-1:], eps=1e-6)

    @torch.no_grad()
    def on_start(self, train: Sequence[Sample]) -> None:
        """Averages the normalised patches of the training images (the gate is made on train and scored on val)."""
        total, count = torch.zeros_like(self.mean_patch, dtype=torch.float64), 0
        for sample in train[: self.config.gate_images]:
            for tile in self.task.tiles(sample):
                total += self.target(torch.from_numpy(tile)[None].to(total.device))[0]
                count += 1
        self.mean_patch.copy_(total / max(count, 1))

    @torch.no_grad()
    def measure(self, samples: Sequence[Sample]) -> list[Row]:
        """One row per case: `loss`, and `gate`, what the network-free predictor loses on the same patches."""
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
        """The paper's figure 2 on fixed cases: original, masked, predicted, and the network-free prediction."""
        from premed.data.figures import reconstruction

        cases = [(sample.case.name, *(picture.numpy() for picture in self.shown(sample))) for sample in samples[:4]]
        return [reconstruction(folder / "reconstruction.png", cases, CAPTION)]

    def snapshot(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """What is predicted of the first cases: [*S] each, by name."""
        return {sample.case.name: self.shown(sample)[2] for sample in samples[:FILMED]}

    def progress_pictures(
        self, samples: Sequence[Sample], snapshots: Mapping[int, dict[str, Tensor]], folder: Path
    ) -> list[Path]:
        """The same cases again, predicted as training went on."""
        from premed.data.figures import reconstruction

        cases = []
        for sample in samples[:FILMED]:
            original, masked, _, mean_patch = self.shown(sample)
            predicted = [snapshots[step][sample.case.name] for step in sorted(snapshots)]
            cases.append((sample.case.name, *(x.numpy() for x in (original, masked, *predicted, mean_patch))))
        return [reconstruction(folder / "progress.png", cases, CAPTION, sorted(snapshots))]

    @torch.no_grad()
    def shown(self, sample: Sample) -> list[Tensor]:
        """`reconstruct` of the first channel [*S] of a case's first fixed view, always behind the same mask."""
        image = torch.from_numpy(self.task.tiles(sample)[0])[None].to(self.mean_patch.device)
        keys = torch.tensor([key("val", sample.case.name, 0)], device=image.device)
        return [picture[0, 0].cpu() for picture in self.reconstruct(image, keys)]

    def reconstruct(self, image: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Original, masked (hidden patches NaN), predicted, mean patch: [B, C, *S] each.

        Predictions are de-normalised by the target patch's own statistics; visible patches are the image's own.
        """
        keep, hide = self.mask(keys)
        patches = patchify(image.float(), self.encoder.patch)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
        prediction = self.decoder(self.encoder(image, keep=keep), keep, hide).float()

        def paste(hidden: Tensor) -> Tensor:
            where = hide[..., None].expand(-1, -1, patches.shape[2])
            return unpatchify(patches.scatter(1, where, hidden), self.encoder.grid, self.encoder.patch)

        def restored(normalised: Tensor) -> Tensor:
            return paste(normalised * take((variance + 1e-6).sqrt(), hide) + take(mean, hide))

        blank = torch.full_like(prediction, torch.nan)
        return image, paste(blank), restored(prediction), restored(self.mean_patch[hide])


class Decoder(nn.Module):
    """Fills the hidden places with a learnt token, looks at all places, and predicts the hidden patches."""

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
        """Predictions [B, L - K, P] for the hidden places, in the order of `hide`."""
        assert features.summary is not None, "the decoder wants a class token"
        visible = self.embed(features.tokens) + take(self.positions[:, 1:].expand(len(keep), -1, -1), keep)
        hidden = self.mask_token + take(self.positions[:, 1:].expand(len(hide), -1, -1), hide)
        x = torch.cat([self.embed(features.summary)[:, None], visible, hidden.to(visible.dtype)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x[:, -hide.shape[1] :]))


def take(x: Tensor, where: Tensor) -> Tensor:
    """Rows `where` [B, N] of x [B, L, P]: [B, N, P]."""
    return torch.gather(x, 1, where[..., None].expand(-1, -1, x.shape[2]))
