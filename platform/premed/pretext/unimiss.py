"""UniMiSS (Xie 2022): self-distillation over pictures and volumes together, with one transformer for both.

The student predicts the teacher's output for another view; the teacher is an exponential moving average of the student
(DINO, Caron 2021). Steps alternate between pictures and volumes. A volume has two outputs, that of the volume branch
and that of its depth slices in the picture branch: the loss compares all four pairs of student and teacher outputs.

Shapes: B images, two adjacent views each in the batch; C channels; *S spatial axes; D depth; K prototypes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import groupby
from math import cos, log, pi
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from premed.config.spec import Spec
from premed.contracts import Batch, DataSet, Encoder, Objective, Row, Sample
from premed.data.samplers import AlternatingSampler
from premed.distributed import rank_and_world
from premed.errors import UserError
from premed.models.encoders.mit import MiT
from premed.rng import SampleRng, fold, key

if TYPE_CHECKING:
    from premed.config.settings import Pretrain

CHUNK = 16  # validation images per forward; the rows do not depend on it


class Config(Spec):
    """The paper's numbers, from its code."""

    name: Literal["unimiss"] = "unimiss"
    interval: int = Field(2, ge=1)
    """Consecutive epochs on one data set before the next one."""
    slices: bool = True
    """Volumes also pass through the picture branch, slice by slice."""
    saves: Literal["student", "teacher"] = "student"
    """The network whose encoder is saved: the paper's code saves the student's."""
    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    prototypes: int = Field(65536, ge=2)
    """Number of prototypes, over which an output is a distribution."""
    student_temperature: float = Field(0.1, gt=0)
    teacher_temperature: float = Field(0.04, gt=0)
    momentum: float = Field(0.996, ge=0, lt=1)
    """Momentum of the teacher at the start; it rises to 1 by half a cosine."""
    centre_momentum: float = Field(0.9, ge=0, lt=1)
    clip_each: float | None = Field(0.3, gt=0)
    """Maximum norm of each parameter's gradient, parameter by parameter."""
    resting: float = Field(0.005, ge=0, lt=1)
    """The share of the training, from its start, in which the prototypes are frozen: 1 of the paper's 200 epochs."""
    weight_decay_end: float | None = Field(0.4, ge=0)
    """Final weight decay, reached from pretrain.weight_decay by half a cosine; None: constant."""
    drop_path: float = Field(0.1, ge=0, lt=1)


def build(config: Config, encoder: Encoder, data_sets: Sequence[DataSet], weight_decay: float) -> "UniMiSS":
    """Returns the objective that trains `encoder` on data sets of pictures and volumes. Raises UserError for others."""
    for data_set in data_sets:
        if data_set.augment.crops != 2:
            raise UserError(
                f"pretrain.augment.crops: unimiss compares two views of an image, and {data_set.task.name} has "
                f"{data_set.augment.crops}; make it 2"
            )
    volumes = [data_set for data_set in data_sets if data_set.task.dims == 3]
    pictures = [data_set for data_set in data_sets if data_set.task.dims == 2]
    for data_set in volumes if config.slices else ():
        if not pictures or not isinstance(encoder, MiT):
            raise UserError(
                "pretext.slices: slices need a picture branch; add a data set of pictures to pretrain.sources and "
                "use encoder mit, or set slices: false"
            )
        if data_set.task.channels != pictures[0].task.channels:
            raise UserError(
                f"pretext.slices: slices of {data_set.task.name} have {data_set.task.channels} channels and pictures "
                f"of {pictures[0].task.name} {pictures[0].task.channels}, "
                "which one branch cannot take; set slices: false"
            )
        encoder.config.grids(tuple(data_set.task.roi[:2]))
    return UniMiSS(config, encoder, data_sets, weight_decay)


def plan(config: Config, settings: "Pretrain", sizes: Sequence[int], draws: str) -> AlternatingSampler:
    """Returns a sampler that alternates between data sets; `epochs` counts those of all together."""
    return AlternatingSampler.of(settings, sizes, draws, config.interval)


class UniMiSS(Objective):
    """`forward` returns the paper's loss; `measure` computes it on fixed views, with measures of a collapse."""

    may_collapse = True
    centre: Tensor
    step_centre: Tensor

    def __init__(self, config: Config, encoder: Encoder, data_sets: Sequence[DataSet], weight_decay: float):
        super().__init__()
        self.config, self.data_sets, self.weight_decay = config, data_sets, weight_decay
        self.student = StudentNetwork(encoder, Projection(config, encoder.width))
        self.teacher = deepcopy(self.student).requires_grad_(False)
        self.student.encoder.drop_path = config.drop_path
        kept = self.student if config.saves == "student" else self.teacher
        self.parts = {"encoder": kept.encoder, "projection": kept.projection}
        self.register_buffer("centre", torch.zeros(config.prototypes))
        # the sum over micro-batches of the teacher's mean logits in this step
        self.register_buffer("step_centre", torch.zeros(config.prototypes), persistent=False)

    # ---- the loss

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        pair_losses, teacher_logits = self.pair_losses(batch.image, batch.keys)
        with torch.no_grad():
            self.step_centre += batch.weight * torch.cat([*teacher_logits.values()]).mean(dim=0)
            numbers = {name: term.mean() for name, term in pair_losses.items()}
            numbers |= {
                "entropy": self.entropy(next(iter(teacher_logits.values()))).mean(),
                "centre_spread": self.centre.std(),
            }
        return torch.stack([term.mean() for term in pair_losses.values()]).sum(), numbers

    def pair_losses(self, image: Tensor, keys: Tensor | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the loss per image [B] of each pair of student and teacher outputs, and the teacher's logits [2B, K].

        Outputs are of pictures, or of volumes and of their slices.
        """
        sliced = image.ndim == 5 and self.config.slices
        student_logits = self.student.branch_logits(image, keys, sliced)
        with torch.no_grad():
            teacher_logits = self.teacher.branch_logits(image, None, sliced)
            targets = {name: self.log_probabilities(logits).exp() for name, logits in teacher_logits.items()}
        losses = {
            f"{student}_{teacher}": swapped_cross_entropy(logits / self.config.student_temperature, target)
            for student, logits in student_logits.items()
            for teacher, target in targets.items()
        }
        return losses, teacher_logits

    def log_probabilities(self, teacher_logits: Tensor) -> Tensor:
        """Returns the teacher's log-probabilities [n, K]: logits, centred and sharpened."""
        return ((teacher_logits - self.centre) / self.config.teacher_temperature).log_softmax(dim=1)

    def entropy(self, teacher_logits: Tensor) -> Tensor:
        """Returns the entropy [n] of the teacher's outputs over its maximum: 0 is one prototype, 1 is uniform."""
        log_probabilities = self.log_probabilities(teacher_logits)
        return -(log_probabilities.exp() * log_probabilities).sum(dim=1) / log(self.config.prototypes)

    # ---- a step

    def param_groups(self) -> list[dict[str, Any]]:
        matrices, others = super().param_groups()
        if self.config.weight_decay_end is not None:
            matrices["decay"] = (self.weight_decay, self.config.weight_decay_end)
        return [matrices, others]

    def before_step(self, progress: float) -> dict[str, Tensor]:
        """Removes the gradient of frozen prototypes, so that the optimizer skips them, and clips every other gradient.

        In a step on pictures, the volume branch has no gradients: DDP leaves those of unused parameters None.
        """
        for name, parameter in self.student.named_parameters():
            if name == "projection.prototypes" and progress < self.config.resting:
                parameter.grad = None
            elif parameter.grad is not None and self.config.clip_each is not None:
                nn.utils.clip_grad_norm_(parameter, self.config.clip_each)
        return {}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Updates the teacher and the centre, identically on all ranks."""
        momentum = 1 - (1 - self.config.momentum) * 0.5 * (1 + cos(pi * progress))
        for teacher, student in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            teacher.lerp_(student, 1 - momentum)
        if (world := rank_and_world()[1]) > 1:  # a weight is a share of the step times the number of ranks
            dist.all_reduce(self.step_centre)
            self.step_centre /= world
        self.centre.lerp_(self.step_centre, 1 - self.config.centre_momentum)
        self.step_centre.zero_()

    # ---- validation

    @torch.no_grad()
    def measure(self, samples: Sequence[Sample]) -> list[Row]:
        """Returns one row per case, from two fixed views: `loss`, and the teacher's `entropy` and `top` prototype.

        The loss is the mean over the pairs of outputs; entropy and prototype are of the first view.
        """
        rows: list[Row] = []
        for chunk in data_set_chunks(samples):
            task, _, augment = self.data_sets[chunk[0].data_set]
            views = [
                task.view(sample, augment, SampleRng(key("val", sample.case.name, i)))[0]
                for sample in chunk
                for i in (0, 1)
            ]
            pair_losses, teacher_logits = self.pair_losses(torch.from_numpy(np.stack(views)).to(self.centre.device))
            first = next(iter(teacher_logits.values()))[::2]
            numbers = (
                torch.stack([*pair_losses.values()]).mean(dim=0),
                self.entropy(first),
                self.log_probabilities(first).argmax(dim=1),
            )
            for sample, loss, entropy, top in zip(chunk, *(x.tolist() for x in numbers), strict=True):
                row = {"case": sample.case.name, "patient": sample.case.patient, "domain": sample.data_set}
                rows.append(row | {"loss": loss, "entropy": entropy, "top": top})
        return rows

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns means, and `same`: the share of cases with the most frequent prototype, maximum over data sets."""
        means = {name: float(np.mean([row[name] for row in rows])) for name in ("loss", "entropy")}
        tops: dict[int, Counter[int]] = defaultdict(Counter)
        for row in rows:
            tops[row["domain"]][row["top"]] += 1
        same = max(max(counts.values()) / counts.total() for counts in tops.values())
        return means | {"same": same, "centre_spread": float(self.centre.std())}


class StudentNetwork(nn.Module):
    """An encoder and its projection: images to logits over prototypes."""

    def __init__(self, encoder: Encoder, projection: "Projection"):
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def branch_logits(self, image: Tensor, keys: Tensor | None, sliced: bool) -> dict[str, Tensor]:
        """Returns logits [B, K] of images [B, C, *S] and, if `sliced`, the mean logits [B, K] of their depth slices."""
        logits = {"volume" if image.ndim == 5 else "picture": self.projection(self.summary(image, keys))}
        if sliced:
            depth = image.shape[4]
            slices = image.movedim(4, 1).flatten(0, 1)  # [B D, C, H, W]
            slice_keys = (
                None
                if keys is None
                else fold(
                    fold(keys, "slices").repeat_interleave(depth),
                    torch.arange(depth, device=keys.device).repeat(len(keys)),
                )
            )
            logits["slices"] = self.projection(self.summary(slices, slice_keys), depth)
        return logits

    def summary(self, image: Tensor, keys: Tensor | None) -> Tensor:
        summary = self.encoder(image, keys=keys).summary
        if summary is None:
            raise UserError("encoder: unimiss needs one with a class token; use mit or vit")
        return summary


class Projection(nn.Module):
    """Summaries [B, D] to logits [B, K]: an MLP, then the cosine similarity to each prototype."""

    def __init__(self, config: Config, width: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.kaiming_uniform_(self.prototypes, a=5**0.5)  # as a linear layer; their lengths have no effect

    def forward(self, summary: Tensor, depth: int = 1) -> Tensor:
        """`depth`: the number of consecutive summaries whose logits are averaged."""
        # averaging before the linear layer gives the mean of the slices' logits at the cost of one
        x = F.normalize(self.mlp(summary).float(), dim=1)
        return F.linear(x.unflatten(0, (-1, depth)).mean(dim=1), F.normalize(self.prototypes, dim=1)).float()


def swapped_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross-entropy [B] of logits [2B, K] with the targets [2B, K] of the image's other view, both ways."""
    other = logits.log_softmax(dim=1).unflatten(0, (-1, 2)).flip(1)
    return -(targets.unflatten(0, (-1, 2)) * other).sum(dim=2).mean(dim=1)


def data_set_chunks(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Yields the samples in order, in chunks of one data set each."""
    for _, group in groupby(samples, key=lambda sample: sample.data_set):
        members = list(group)
        yield from (members[start : start + CHUNK] for start in range(0, len(members), CHUNK))
