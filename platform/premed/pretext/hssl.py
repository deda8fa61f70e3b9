"""HSSL (Zheng 2021): hierarchical self-supervision on several data sets. A reconstruction: docs/hssl.md.

Only the abstract is available to us: contrastive and classification losses over data sets from several challenges
pre-train an encoder and a decoder. All details are our choice. Two views of each image pass through the network:

- image level: contrast an image's two views with all other images of the step (NT-Xent);
- task level: classify the data set;
- group level: classify the modality or body part, as the YAML groups the data sets, or contrast the groups;
- decoder level: blocks of both views are hidden, and the decoder reconstructs them.

The more general a level, the deeper the feature map that it reads: the group level reads the coarsest, the task level
the one above (with which the decoder begins). The image level reads the coarsest, too, through a projection:
classification is fine-tuned from that map, and the group level alone would teach it the groups and nothing else.
The decoder level is a reconstruction and not a dense contrast: a contrast needs to know which places of two images
correspond, and a hidden block is as informative in a small data set as in a large one.
"""

from collections.abc import Sequence
from math import ceil, fsum, prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from premed.config.spec import Spec
from premed.contracts import Batch, DataSet, Encoder, Features, Objective, Row, Sample
from premed.data.samplers import BalancedSampler
from premed.distributed import gather_rows, share_of_loss
from premed.errors import UserError
from premed.models.embeddings import spread
from premed.pretext.common.batch_augment import Jitter, jitter
from premed.pretext.common.losses import nt_xent, supervised_contrast
from premed.pretext.common.slices import SlicedTask
from premed.rng import bits, fold, key

CHUNK = 32  # validation views per forward; the rows do not depend on it
CONTRAST_CASES = 256  # validation images per contrast, which bounds its memory
NUM_PICTURES = 4  # reconstructed images
CAPTION = "hidden blocks reconstructed by the decoder, in units of the view"


class Levels(Spec):
    """The weight of each level's loss in the sum; a level of weight 0 is not computed."""

    image: float = Field(default=1.0, ge=0)
    task: float = Field(default=0.5, ge=0)
    group: float = Field(default=0.5, ge=0)
    decoder: float = Field(default=1.0, ge=0)


class Config(Spec):
    """The paper's numbers are not public; these are ours."""

    name: Literal["hssl"] = "hssl"
    levels: Levels = Levels()
    temperature: float = Field(0.1, gt=0)
    """Of all contrastive losses."""
    group_loss: Literal["classes", "contrast"] = "classes"
    """Cross-entropy over the groups, or supervised contrast (Khosla 2020)."""
    dim: int = Field(64, ge=2)
    """Width of the contrasted embeddings."""
    hidden_width: int = Field(256, ge=1)
    """Hidden width of the levels' heads: two layers each, not saved."""
    views: Jitter = Jitter()
    hidden: float = Field(0.3, gt=0, lt=1)
    """The share of blocks that are hidden and reconstructed; none if the decoder's weight is 0."""
    block: int = Field(8, ge=1)
    """Edge of a block, in pixels or voxels."""

    @model_validator(mode="after")
    def _something(self) -> "Config":
        if not any(dict(self.levels).values()):
            raise ValueError("levels: all weights are 0, so that nothing is learnt; make one larger")
        return self


def transform_data_sets(encoder: Spec, data_sets: Sequence[DataSet]) -> list[DataSet]:
    """Returns the data sets as one network can see them: volumes as slices if it is 2D (`encoder.dims: 2`), one channel
    if another data set has only one. Raises UserError where their images do not fit together."""
    axes = {data_set.task.dims for data_set in data_sets}
    dims = getattr(encoder, "dims", None) or max(axes)
    if len(axes) > 1 and dims == 3:
        flat = next(data_set.task.name for data_set in data_sets if data_set.task.dims == 2)
        raise UserError(f"encoder.dims: a 3D network cannot take the pictures of {flat}; set encoder.dims: 2")
    channels = {data_set.task.channels for data_set in data_sets}
    if len(channels) > 1 and min(channels) > 1:
        raise UserError(
            f"pretrain.sources: the data sets have {sorted(channels)} channels; these mix only if one has 1"
        )
    result = [
        data_set._replace(task=SlicedTask(data_set.task, min(channels)))  # type: ignore[arg-type]
        if data_set.task.dims > dims or data_set.task.channels > min(channels)
        else data_set
        for data_set in data_sets
    ]
    sizes = {tuple(data_set.task.roi): data_set.task.name for data_set in result}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {list(roi)}" for roi, name in sizes.items())
        raise UserError(f"pretrain.sources: hssl contrasts images of one size ({listed}); set each task's roi or size")
    return result


def plan(config: Config, settings: Any, sizes: Sequence[int], draws: str) -> BalancedSampler:
    """Returns a sampler with equally many images of each data set in every step."""
    return BalancedSampler.of(settings, sizes, draws)


def build(config: Config, encoder: Encoder, data_sets: Sequence[DataSet], weight_decay: float) -> "HSSL":
    """Returns the objective that trains `encoder` on views of all data sets."""
    return HSSL(config, encoder, data_sets, weight_decay)


class HSSL(Objective):
    """`forward` returns the weighted sum of the levels' losses; `measure` computes them on val, and the collapse."""

    may_collapse = True
    groups: Tensor

    def __init__(self, config: Config, encoder: Encoder, data_sets: Sequence[DataSet], weight_decay: float):
        super().__init__()
        self.config, self.data_sets, self.weight_decay = config, data_sets, weight_decay
        self.weights = {level: weight for level, weight in config.levels if weight > 0}
        contrasted = ("image", "group") if config.group_loss == "contrast" else ("image",)
        self.contrasted = [level for level in contrasted if level in self.weights]
        self.couples_batch = bool(self.contrasted)
        if len(encoder.pyramid) < 2 or encoder.decoded == len(encoder.pyramid) - 1:
            raise UserError("encoder: hssl needs an encoder with a decoder; use unet")
        if any(data_set.augment.crops > 1 for data_set in data_sets):
            raise UserError("pretrain.augment.crops: hssl makes two views of each crop itself; leave it at 1")
        roi, channels = data_sets[0].task.roi, data_sets[0].task.channels
        self.blocks = tuple(n // config.block for n in roi)
        self.num_hidden = int(prod(self.blocks) * config.hidden)
        if "decoder" in self.weights and (any(n % config.block for n in roi) or not self.num_hidden):
            raise UserError(
                f"pretext.block: {config.block} does not divide {roi} into blocks of which {config.hidden:g} can be "
                "hidden; choose a smaller one"
            )
        names = list(dict.fromkeys(data_set.group for data_set in data_sets))
        self.register_buffer("groups", torch.tensor([names.index(d.group) for d in data_sets]), persistent=False)

        def head(scale: int, num: int) -> nn.Module:
            width = encoder.pyramid[scale].channels
            return nn.Sequential(nn.Linear(width, config.hidden_width), nn.ReLU(), nn.Linear(config.hidden_width, num))

        finest = encoder.pyramid[encoder.decoded]
        convolution = nn.Conv2d if len(roi) == 2 else nn.Conv3d
        heads = {
            "image": head(-1, config.dim),
            "task": head(-2, len(data_sets)),
            "group": head(-1, config.dim if "group" in self.contrasted else len(names)),
            "decoder": convolution(finest.channels, channels, 1),
        }
        self.encoder = encoder
        self.heads = nn.ModuleDict({level: heads[level] for level in self.weights})
        self.parts = {"encoder": encoder}

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        data_set = torch.zeros_like(batch.keys) if batch.data_set is None else batch.data_set
        groups, numbers = self.groups[data_set], {}
        for level, output in self.level_outputs(batch.image, batch.keys).items():
            if level in self.contrasted:
                first, second = gather_rows(torch.cat(output.chunk(2), dim=1), batch.weight > 0).chunk(2, dim=1)
                loss = self.contrastive_loss(level, first, second, gather_rows(groups, batch.weight > 0))
                numbers |= {level: share_of_loss(loss, batch.weight), f"{level}_spread": spread(first)}
            else:
                numbers |= {
                    name: value.mean() for name, value in self.per_image_losses(level, output, data_set).items()
                }
        total = torch.stack([weight * numbers[level] for level, weight in self.weights.items()]).sum()
        return total, {name: number.detach() for name, number in numbers.items()}

    def level_outputs(self, image: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Returns the output of each level's head for two views of images [B, C, *S]: [2B, …], first views first.

        The decoder level's is its mean squared error on the hidden blocks, [2B].
        """
        views, masked, mask = self.views(image, keys)
        features = self.encoder(masked)
        maps, outputs = {"image": -1, "task": -2, "group": -1}, {}
        for level, head in self.heads.items():
            if level in maps:
                outputs[level] = head(features.pyramid[maps[level]].flatten(2).mean(dim=2)).float()
            else:
                error = (self.reconstruct(features, masked) - standardise(views)).square().mean(dim=1, keepdim=True)
                outputs[level] = (error * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1)
        return outputs

    def views(self, image: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns two views of images, [2B, C, *S], the same with hidden blocks, and the mask of these [2B, 1, *S]."""
        both = [fold(keys, f"view {i}") for i in range(2)]
        views = torch.cat([jitter(image, each, self.config.views) for each in both])
        mask = torch.zeros_like(views[:, :1], dtype=torch.bool)
        if "decoder" not in self.weights:
            return views, views, mask
        order = bits(fold(torch.cat(both), "hidden"), prod(self.blocks)).argsort(dim=1, stable=True)
        hidden = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, : self.num_hidden], True)
        mask = hidden.unflatten(1, (1, *self.blocks))
        for axis in range(2, mask.ndim):
            mask = mask.repeat_interleave(self.config.block, dim=axis)
        return views, views.where(~mask, views.mean(dim=tuple(range(2, views.ndim)), keepdim=True)), mask

    def reconstruct(self, features: Features, masked: Tensor) -> Tensor:
        """Returns the decoder's prediction [2B, C, *S] of the standardised views."""
        image = self.heads["decoder"](features.pyramid[self.encoder.decoded]).float()
        return image if image.shape == masked.shape else F.interpolate(image, masked.shape[2:])

    def per_image_losses(self, level: str, output: Tensor, data_set: Tensor) -> dict[str, Tensor]:
        """Returns the loss [B] of a level that is computed per image, and its accuracy if it classifies."""
        if level == "decoder":
            return {level: output.view(2, -1).mean(dim=0)}
        truth = (data_set if level == "task" else self.groups[data_set]).repeat(2)
        loss, right = F.cross_entropy(output, truth, reduction="none"), output.argmax(dim=1) == truth
        return {level: loss.view(2, -1).mean(dim=0), f"{level}_accuracy": right.float().view(2, -1).mean(dim=0)}

    def contrastive_loss(self, level: str, first: Tensor, second: Tensor, groups: Tensor) -> Tensor:
        """Returns a level's loss over the embeddings of all images, [N, D] per view; groups [N]."""
        if level == "image":
            return nt_xent(first, second, self.config.temperature)
        return supervised_contrast(torch.cat([first, second]), groups.repeat(2), self.config.temperature)

    # Validation -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, samples: Sequence[Sample]) -> list[Row]:
        """Returns one row per case: losses and accuracies of the per-image levels, means over its tiles; `z/<level>`:
        embeddings [2, D] of its middle tile, which `summary` contrasts over all rows."""
        tiles = [(at, i, tile) for at, sample in enumerate(samples) for i, tile in enumerate(self.tiles(sample))]
        collected: list[dict[str, list[Any]]] = [{} for _ in samples]
        for start in range(0, len(tiles), CHUNK):
            chunk = tiles[start : start + CHUNK]
            image = torch.from_numpy(np.stack([tile for _, _, tile in chunk])).to(self.groups.device)
            names = [key("val", samples[at].case.name, i) for at, i, _ in chunk]
            data_set = torch.tensor([samples[at].data_set for at, _, _ in chunk], device=image.device)
            numbers: dict[str, Tensor] = {}
            for level, output in self.level_outputs(image, torch.tensor(names, device=image.device)).items():
                pairs = {f"z/{level}": torch.stack(output.chunk(2), dim=1)}
                numbers |= pairs if level in self.contrasted else self.per_image_losses(level, output, data_set)
            for name, values in numbers.items():
                for (at, _, _), value in zip(chunk, values.tolist(), strict=True):
                    collected[at].setdefault(name, []).append(value)
        return [
            {"case": sample.case.name, "patient": sample.case.patient, "domain": sample.data_set}
            | {name: values[0] if name.startswith("z/") else float(np.mean(values)) for name, values in numbers.items()}
            for sample, numbers in zip(samples, collected, strict=True)
        ]

    def tiles(self, sample: Sample) -> list[np.ndarray]:
        return self.data_sets[sample.data_set].task.tiles(sample)

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns each level's means, data sets weighted equally; contrasts are among at most CONTRAST_CASES cases."""
        data_set = np.array([row["domain"] for row in rows])
        names = [name for name in rows[0] if name not in ("case", "patient", "domain") and not name.startswith("z/")]
        table = np.array([[row[name] for name in names] for row in rows])
        means = np.mean([table[data_set == each].mean(axis=0) for each in np.unique(data_set)], axis=0)
        numbers = dict(zip(names, means.tolist(), strict=True))
        groups, parts = self.groups.cpu()[torch.from_numpy(data_set)], ceil(len(rows) / CONTRAST_CASES)
        for level in self.contrasted:
            first, second = torch.tensor([row[f"z/{level}"] for row in rows]).unbind(dim=1)
            losses = [
                self.contrastive_loss(level, first[i::parts], second[i::parts], groups[i::parts]) for i in range(parts)
            ]
            numbers |= {level: float(torch.stack(losses).mean()), f"{level}_spread": float(spread(first))}
        return {"loss": fsum(weight * numbers[level] for level, weight in self.weights.items())} | numbers

    @torch.no_grad()
    def pictures(self, samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Draws original, hidden and reconstructed of the first cases of each data set."""
        from premed.data.figures import reconstruction

        if "decoder" not in self.weights:
            return []
        by_data_set = [
            [sample for sample in samples if sample.data_set == number] for number in range(len(self.data_sets))
        ]
        cases, count = [], ceil(NUM_PICTURES / len(by_data_set))
        for sample in [sample for samples_of_one in by_data_set for sample in samples_of_one[:count]]:
            image = torch.from_numpy(self.tiles(sample)[0])[None].to(self.groups.device)
            views, masked, mask = self.views(
                image, torch.tensor([key("val", sample.case.name, 0)], device=image.device)
            )
            view, reconstruct = standardise(views), self.reconstruct(self.encoder(masked), masked)
            three = view, view.masked_fill(mask, torch.nan), reconstruct.where(mask, view)
            cases.append((sample.case.name, *(picture[0, 0].cpu().numpy() for picture in three)))
        return [reconstruction(folder / "restored.png", cases, CAPTION)]


def standardise(image: Tensor) -> Tensor:
    """Normalises each image of [B, C, *S] to mean 0 and variance 1: predicting its mean then has a loss of about 1."""
    return F.layer_norm(image, image.shape[1:], eps=1e-6)
