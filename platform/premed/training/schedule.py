"""The steps of a training and their learning rates; for a trunk (docs/trunk.md), the step at which each segment ends.

On a trunk all values of `epochs` share one training at a constant rate. N(E) is the number of steps of E epochs; the
segment of E ends, and its cool-down begins, at step `turn(N(E))`. Warm-up takes `warmup_epochs`, the same for all
values, and ends before the first segment does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, cos, pi

from premed.config.experiment import Stage
from premed.config.plugins import plugin
from premed.config.settings import Finetune, Pretrain
from premed.contracts import BatchSampler
from premed.data.samplers import EpochSampler
from premed.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0 to `lr`, then half a cosine to 0, per step, as in MAE."""

    num_steps: int
    warmup_steps: float
    lr: float

    def at(self, step: int) -> float:
        """The learning rate of step 0, 1, …"""
        if step < self.warmup_steps:
            return self.lr * step / self.warmup_steps
        rest = (step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1)
        return self.lr * 0.5 * (1 + cos(pi * min(rest, 1.0)))

    def progress(self, step: int) -> float:
        """The share of the training done before step 0, 1, …: from 0 to 1, passed to the objective."""
        return step / self.num_steps


@dataclass(frozen=True)
class Trapezoid(Schedule):
    """Linear warm-up from 0, a constant rate, and from step `turn` on a linear cool-down to 0.

    Warm-up and constant rate are the trunk (WSD: Hu 2024, arXiv:2404.06395; Hägele 2024, arXiv:2405.18392). Up to
    `turn` nothing here depends on `num_steps`, so that trainings of any length share it.
    """

    turn: int

    def at(self, step: int) -> float:
        rise = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return self.lr * rise * min((self.num_steps - step) / (self.num_steps - self.turn), 1.0)

    def progress(self, step: int) -> float:
        """0 on the trunk, which has no end of its own; from 0 to 1 in the cool-down."""
        return max(step - self.turn, 0) / (self.num_steps - self.turn)


def planned(stage: Stage, sizes: Sequence[int], num_solutions: int = 0) -> tuple[BatchSampler, Schedule]:
    """Returns the batch sampler of a training and its schedule, whose highest learning rate is lr × batch / 256.

    sizes: the number of images of each data set. num_solutions: if not 0, each step is one closed-form solution, on all
    samples. The sampler of a trunk segment ends where its cool-down begins; its schedule is that of all its epochs.
    """
    settings, num_samples = stage.training, sum(sizes)
    assert isinstance(settings, (Pretrain, Finetune))
    if num_solutions:
        plan = EpochSampler(num_samples, num_samples, num_solutions, settings.seed, stage.draws)
        return plan, Schedule(num_solutions, 0, 0.0)
    own = getattr(plugin("pretext", stage.pretext), "plan", None) if stage.pretext else None
    plan = own(stage.pretext, settings, sizes, stage.draws) if own else EpochSampler.of(settings, sizes, stage.draws)
    warmup = plan.num_steps * min(settings.warmup_epochs / settings.epochs, 1.0)
    schedule = Schedule(plan.num_steps, warmup, settings.lr * settings.batch / 256)
    if isinstance(settings, Pretrain) and settings.trunk:
        if own:
            name = stage.pretext.name  # type: ignore[union-attr]
            raise UserError(f"pretrain.trunk: {name} plans a fixed number of steps; leave trunk out")
        # a step of the trunk has one rate, to the last bit, whichever value of `epochs` it is computed for
        warmup = settings.warmup_epochs * ceil(num_samples / settings.batch)
        schedule = Trapezoid(plan.num_steps, warmup, schedule.lr, turns(settings, num_samples)[-1])
        plan = replace(plan, num_steps=schedule.turn) if stage.kind == "trunk" else plan
    return plan, schedule


def doubtful_warmup(kind: str, settings: Pretrain | Finetune, schedule: Schedule) -> str | None:
    """What is wrong with a warm-up of less than a step, or of all steps, as when files that state `steps`, `epochs` and
    `warmup_epochs` are combined; None if nothing is."""
    if schedule.warmup_steps == 0 or 1 <= schedule.warmup_steps < schedule.num_steps:
        return None
    section = "finetune" if kind == "finetune" else "pretrain"
    what = f"{section}.warmup_epochs: {settings.warmup_epochs:g} of {settings.epochs} epochs is"
    if schedule.warmup_steps < 1:
        wrong = f"less than one of these {schedule.num_steps} steps, so that there is no warm-up"
    else:
        wrong = f"all of these {schedule.num_steps} steps, so that the learning rate is at its highest in none"
    share = f"; with {section}.steps it is a share: set {section}.epochs=1 and a share" if settings.steps else ""
    return f"{what} {wrong}{share}"


def turn(num_steps: int, cooldown: float) -> int:
    """The number of steps before the cool-down, the last `cooldown` share of `num_steps`, at least one step."""
    return num_steps - max(round(cooldown * num_steps), 1)


def turns(settings: Pretrain, num_samples: int) -> list[int]:
    """Returns the step at which each segment of a trunk ends. Raises UserError if a segment has no step of its own."""
    assert settings.trunk is not None
    per_epoch = ceil(num_samples / settings.batch)
    ends = [turn(epochs * per_epoch, settings.cooldown) for epochs in settings.trunk]
    for epochs, begin, end in zip(settings.trunk, [0, *ends], ends, strict=False):
        if begin >= end:
            raise UserError(
                f"pretrain.trunk: at {per_epoch} steps an epoch no step is left for {epochs} epochs between step "
                f"{begin} and their cool-down (the last {settings.cooldown:g}); leave {epochs} out, or lower cooldown"
            )
    return ends
