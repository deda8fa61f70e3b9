"""The steps of a training and their learning rates; of a trunk's stages, where one ends and the next goes on.

On a trunk all values of `epochs` share one training at a constant rate. N(E) are the steps of E epochs; the segment of
E ends, and its cool-down begins, at step `turn(N(E))`. Warm-up takes `warmup_epochs`, the same for all values, and is
over before the first of these.
"""

from math import ceil

from premed.experiment import Stage
from premed.fit import EpochPlan, Schedule, Trapezoid
from premed.settings import Finetune, Pretrain
from premed.spec import UserError


def planned(stage: Stage, num_samples: int, num_solutions: int = 0) -> tuple[EpochPlan, Schedule]:
    """The steps of a training, and their learning rates: lr × batch / 256 at the top.

    Where weights are solved, a step is one solution and sees all samples. A segment's plan ends where its cool-down
    begins; its schedule is that of all its epochs.
    """
    settings = stage.training
    assert isinstance(settings, (Pretrain, Finetune))
    if num_solutions:
        plan = EpochPlan(num_samples, num_samples, num_solutions, settings.seed, stage.draws)
        return plan, Schedule(num_solutions, 0, 0.0)
    num_steps = settings.steps or settings.epochs * ceil(num_samples / settings.batch)
    warmup = num_steps * min(settings.warmup_epochs / settings.epochs, 1.0)
    schedule = Schedule(num_steps, warmup, settings.lr * settings.batch / 256)
    if isinstance(settings, Pretrain) and settings.trunk:
        # a step of the trunk has one rate, to the last bit, whichever value's segment it is in
        warmup = settings.warmup_epochs * ceil(num_samples / settings.batch)
        schedule = Trapezoid(num_steps, warmup, schedule.lr, turns(settings, num_samples)[-1])
    end = schedule.turn if isinstance(schedule, Trapezoid) and stage.kind == "trunk" else num_steps
    return EpochPlan(num_samples, settings.batch, end, settings.seed, stage.draws), schedule


def turn(num_steps: int, cooldown: float) -> int:
    """The steps that a training of so many does before its rate falls: over a `cooldown` share of them, or over one."""
    return num_steps - max(round(cooldown * num_steps), 1)


def turns(settings: Pretrain, num_samples: int) -> list[int]:
    """Where the segments of a trunk end; UserError where one has no step of its own."""
    assert settings.trunk is not None
    per_epoch = ceil(num_samples / settings.batch)
    ends = [turn(mark * per_epoch, settings.cooldown) for mark in settings.trunk]
    for mark, begin, end in zip(settings.trunk, [0, *ends], ends, strict=False):
        if begin >= end:
            raise UserError(
                f"pretrain.trunk: at {per_epoch} steps an epoch no step is left for {mark} epochs between "
                f"step {begin} and the last {settings.cooldown:g} of them; leave {mark} out, or lower cooldown"
            )
    return ends
