"""UniMiSS (Xie 2022): self-distillation over pictures and volumes together, with one transformer for both.

A student learns to say of one view of an image what its teacher, the mean of the student's own past, says of another
(DINO, Caron 2021). Steps are on pictures and on volumes in turn. Of a volume, what is said of its depth slices, which
go through the branch for pictures, counts as a second account of it: all four pairs of accounts are compared.

Shapes: B images, two views each, one after the other in the batch; C channels; *S spatial axes; D depth; K prototypes.
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
from premed.data.samplers import InTurn
from premed.distributed import rank_and_world
from premed.errors import UserError
from premed.models.encoders.mit import MiT
from premed.rng import SampleRng, fold, key

if TYPE_CHECKING:
    from premed.config.settings import Pretrain

CHUNK = 16  # validation images per forward; the rows do not depend on it


class Config(Spec):
    """The paper's numbers, as its code has them."""

    name: Literal["unimiss"] = "unimiss"
    interval: int = Field(2, ge=1)
    """Epochs of one data set before the next one's turn."""
    slices: bool = True
    """Volumes are seen slice by slice, too."""
    saves: Literal["student", "teacher"] = "student"
    """Whose encoder is fine-tuned: the paper's code takes the student's."""
    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    prototypes: int = Field(65536, ge=2)
    """What an answer is a distribution over."""
    student_temperature: float = Field(0.1, gt=0)
    teacher_temperature: float = Field(0.04, gt=0)
    momentum: float = Field(0.996, ge=0, lt=1)
    """Of the teacher, at the start: it rises to 1 by half a cosine."""
    centre_momentum: float = Field(0.9, ge=0, lt=1)
    clip_each: float | None = Field(0.3, gt=0)
    """Limit of the norm of each parameter's gradient by itself."""
    resting: float = Field(0.005, ge=0, lt=1)
    """The share of the training at whose start the prototypes rest: the first of the paper's 200 epochs."""
    weight_decay_end: float | None = Field(0.4, ge=0)
    """Where pretrain.weight_decay goes by half a cosine; None: it stays."""
    drop_path: float = Field(0.1, ge=0, lt=1)


def build(config: Config, encoder: Encoder, data_sets: Sequence[DataSet], weight_decay: float) -> "UniMiSS":
    """The objective that trains `encoder` on the data sets, pictures and volumes. UserError where they do not suit."""
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
                "pretext.slices: slices go through a branch for pictures; let pretrain.sources name a data set of "
                "pictures and encoder be mit, or set slices: false"
            )
        if data_set.task.channels != pictures[0].task.channels:
            raise UserError(
                f"pretext.slices: slices of {data_set.task.name} have {data_set.task.channels} channels and pictures "
                f"of {pictures[0].task.name} {pictures[0].task.channels}, "
                "which one branch cannot take; set slices: false"
            )
        encoder.config.grids(tuple(data_set.task.roi[:2]))
    return UniMiSS(config, encoder, data_sets, weight_decay)


def plan(config: Config, settings: "Pretrain", sizes: Sequence[int], draws: str) -> InTurn:
    """Each data set in its turn; `epochs` are those of all together."""
    return InTurn.of(settings, sizes, draws, config.interval)


class UniMiSS(Objective):
    """`forward` is the loss of the paper; `measure` scores it on fixed views, and looks whether it collapsed."""

    centre: Tensor
    heard: Tensor

    def __init__(self, config: Config, encoder: Encoder, data_sets: Sequence[DataSet], weight_decay: float):
        super().__init__()
        self.config, self.data_sets, self.weight_decay = config, data_sets, weight_decay
        self.student = StudentNetwork(encoder, Projection(config, encoder.width))
        self.teacher = deepcopy(self.student).requires_grad_(False)
        self.student.encoder.drop_path = config.drop_path
        kept = self.student if config.saves == "student" else self.teacher
        self.parts = {"encoder": kept.encoder, "projection": kept.projection}
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer(
            "heard", torch.zeros(config.prototypes), persistent=False
        )  # of this step's teacher, so far

    # ---- the loss

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        terms, heard = self.terms(batch.image, batch.keys)
        with torch.no_grad():
            self.heard += batch.weight * torch.cat([*heard.values()]).mean(dim=0)
            numbers = {name: term.mean() for name, term in terms.items()}
            numbers |= {"entropy": self.entropy(next(iter(heard.values()))).mean(), "centre_spread": self.centre.std()}
        return torch.stack([term.mean() for term in terms.values()]).sum(), numbers

    def terms(self, image: Tensor, keys: Tensor | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss per image [B] of each account of the student against each of the teacher's; and the latter [2B, K].

        Accounts are of pictures, or of volumes and of their slices.
        """
        sliced = image.ndim == 5 and self.config.slices
        said = self.student.accounts(image, keys, sliced)
        with torch.no_grad():
            heard = self.teacher.accounts(image, None, sliced)
            targets = {name: self.answers(logits).exp() for name, logits in heard.items()}
        losses = {
            f"{ours}_{theirs}": compared(logits / self.config.student_temperature, target)
            for ours, logits in said.items()
            for theirs, target in targets.items()
        }
        return losses, heard

    def answers(self, heard: Tensor) -> Tensor:
        """The teacher's answers to logits [n, K], as logarithms of probabilities."""
        return ((heard - self.centre) / self.config.teacher_temperature).log_softmax(dim=1)

    def entropy(self, heard: Tensor) -> Tensor:
        """Of the teacher's answers [n], as a share of what it can be: 0 is one prototype, 1 is all of them alike."""
        answers = self.answers(heard)
        return -(answers.exp() * answers).sum(dim=1) / log(self.config.prototypes)

    # ---- a step

    def param_groups(self) -> list[dict[str, Any]]:
        matrices, others = super().param_groups()
        if self.config.weight_decay_end is not None:
            matrices["decay"] = (self.weight_decay, self.config.weight_decay_end)
        return [matrices, others]

    def before_step(self, progress: float) -> dict[str, Tensor]:
        """Takes the gradient from what rests, so that the optimizer leaves it alone; clips each other one.

        In a step on pictures, what is for volumes has none: DDP makes none up for what no rank used.
        """
        for name, parameter in self.student.named_parameters():
            if name == "projection.prototypes" and progress < self.config.resting:
                parameter.grad = None
            elif parameter.grad is not None and self.config.clip_each is not None:
                nn.utils.clip_grad_norm_(parameter, self.config.clip_each)
        return {}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Moves the teacher and the centre: both are the same on all ranks."""
        momentum = 1 - (1 - self.config.momentum) * 0.5 * (1 + cos(pi * progress))
        for theirs, ours in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            theirs.lerp_(ours, 1 - momentum)
        if (world := rank_and_world()[1]) > 1:  # a weight is a share of the step times the number of ranks
            dist.all_reduce(self.heard)
            self.heard /= world
        self.centre.lerp_(self.heard, 1 - self.config.centre_momentum)
        self.heard.zero_()

    # ---- validation

    @torch.no_grad()
    def measure(self, samples: Sequence[Sample]) -> list[Row]:
        """One row per case, of two fixed views: `loss`, and of the teacher's answer its `entropy` and `top` prototype.

        The loss is the mean over the pairs of accounts; the answer is that to the first view.
        """
        rows: list[Row] = []
        for chunk in chunks(samples):
            task, _, augment = self.data_sets[chunk[0].data_set]
            views = [
                task.view(sample, augment, SampleRng(key("val", sample.case.name, i)))[0]
                for sample in chunk
                for i in (0, 1)
            ]
            terms, heard = self.terms(torch.from_numpy(np.stack(views)).to(self.centre.device))
            first = next(iter(heard.values()))[::2]
            numbers = torch.stack([*terms.values()]).mean(dim=0), self.entropy(first), self.answers(first).argmax(dim=1)
            for sample, loss, entropy, top in zip(chunk, *(x.tolist() for x in numbers), strict=True):
                row = {"case": sample.case.name, "patient": sample.case.patient, "domain": sample.data_set}
                rows.append(row | {"loss": loss, "entropy": entropy, "top": top})
        return rows

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Means, and `same`: how many cases get the most frequent answer, in the data set where they are most."""
        means = {name: float(np.mean([row[name] for row in rows])) for name in ("loss", "entropy")}
        tops: dict[int, Counter[int]] = defaultdict(Counter)
        for row in rows:
            tops[row["domain"]][row["top"]] += 1
        same = max(max(counts.values()) / counts.total() for counts in tops.values())
        return means | {"same": same, "centre_spread": float(self.centre.std())}


class StudentNetwork(nn.Module):
    """An encoder and its projection: images to logits of prototypes."""

    def __init__(self, encoder: Encoder, projection: "Projection"):
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def accounts(self, image: Tensor, keys: Tensor | None, sliced: bool) -> dict[str, Tensor]:
        """What it says of images [B, C, *S] as they are and, if `sliced`, of their depth slices, each [B, K]."""
        found = {"volume" if image.ndim == 5 else "picture": self.projection(self.summary(image, keys))}
        if sliced:
            depth = image.shape[4]
            slices = image.movedim(4, 1).flatten(0, 1)  # [B D, C, H, W]
            own = (
                None
                if keys is None
                else fold(
                    fold(keys, "slices").repeat_interleave(depth),
                    torch.arange(depth, device=keys.device).repeat(len(keys)),
                )
            )
            found["slices"] = self.projection(self.summary(slices, own), depth)
        return found

    def summary(self, image: Tensor, keys: Tensor | None) -> Tensor:
        summary = self.encoder(image, keys=keys).summary
        if summary is None:
            raise UserError("encoder: unimiss needs one with a class token; use mit or vit")
        return summary


class Projection(nn.Module):
    """Summaries [B, D] to logits [B, K]: a small MLP, to length 1, and how near that is to prototypes of length 1."""

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
        nn.init.kaiming_uniform_(self.prototypes, a=5**0.5)  # as a linear layer's; their lengths count for nothing

    def forward(self, summary: Tensor, depth: int = 1) -> Tensor:
        """`depth`: so many summaries follow each other, whose logits are averaged."""
        # the mean goes through the matrix: that of all slices' logits, for the price of one's
        x = F.normalize(self.mlp(summary).float(), dim=1)
        return F.linear(x.unflatten(0, (-1, depth)).mean(dim=1), F.normalize(self.prototypes, dim=1)).float()


def compared(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy [B] of logits [2B, K] with targets [2B, K]: of each view with its image's other view, both ways."""
    other = logits.log_softmax(dim=1).unflatten(0, (-1, 2)).flip(1)
    return -(targets.unflatten(0, (-1, 2)) * other).sum(dim=2).mean(dim=1)


def chunks(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """The samples in their order, a few of one data set at a time."""
    for _, group in groupby(samples, key=lambda sample: sample.data_set):
        some = list(group)
        yield from (some[start : start + CHUNK] for start in range(0, len(some), CHUNK))
