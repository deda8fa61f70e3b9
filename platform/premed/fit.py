"""The only training loop: plain torch, no Ray, no MLflow.

One step: every rank takes its share of the step's samples, in one or several micro-batches; the losses are weighted by
the share of samples they stand for, so that any number of ranks and micro-batches gives the gradient of the step's mean
loss. What a step trains on is a function of its number (`Plan.at`), what is drawn for a sample is a function of its
key, so a run that starts again from a checkpoint continues as if it had never stopped.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from math import cos, pi
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from premed.contracts import Batch, Objective, Picks, Plan, Source
from premed.distributed import team


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0, then half a cosine to 0, per step, as MAE has it. `lr` is the effective one."""

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
        """What an objective is told of how far the training is at step 0, 1, …"""
        return step / self.num_steps


@dataclass(frozen=True)
class Trapezoid(Schedule):
    """Linear warm-up from 0, a constant rate, and from step `turn` on a straight line to 0.

    The first two are a trunk's (WSD: Hu 2024, arXiv:2404.06395; Hägele 2024, arXiv:2405.18392). Up to `turn` nothing
    here depends on `num_steps`, so that trainings of any length have it in common.
    """

    turn: int

    def at(self, step: int) -> float:
        rise = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return self.lr * rise * min((self.num_steps - step) / (self.num_steps - self.turn), 1.0)

    def progress(self, step: int) -> float:
        """0 on the trunk, which knows no end; to 1 along the cool-down."""
        return max(step - self.turn, 0) / (self.num_steps - self.turn)


class Watch(Protocol):
    """What happens beside the training: reports, validation, checkpoints. Called after every step on every rank."""

    def __call__(self, step: int, loss: Tensor, numbers: dict[str, Tensor | float]) -> None:
        """`step` steps are done; `loss` is this rank's weighted part of the last one's, as tensors in `numbers` are."""
        ...


def fit(
    objective: nn.Module,
    source: Source,
    plan: Plan,
    schedule: Schedule,
    optimizer: AdamW,
    watch: Watch,
    *,
    start: int = 0,
    accumulate: int = 1,
    clip: float | None = None,
    precision: torch.dtype = torch.float32,
) -> None:
    """Trains `objective` (bare, or wrapped in DDP) from step `start` to the end of the plan.

    accumulate: micro-batches per step. clip: limit of the gradient's norm.
    """
    module: Objective = objective.module if hasattr(objective, "module") else objective  # type: ignore[assignment]
    device = next(module.parameters()).device
    module.train()
    for step, batches in feed(plan, source, start, accumulate):
        progress = schedule.progress(step)
        lr = set_lr(optimizer, schedule.at(step))
        set_decay(optimizer, progress)
        total, numbers = torch.zeros((), device=device), {"lr": lr}
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            with objective.no_sync() if hasattr(objective, "no_sync") and not last else nullcontext():  # type: ignore[operator]
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    loss, logs = objective(batch, progress)
                (loss * batch.weight).backward()
            total += loss.detach().float() * batch.weight
            numbers |= {name: numbers.get(name, 0) + value * batch.weight for name, value in logs.items()}
        numbers |= module.before_step(progress)
        numbers |= gradient_norm(module, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        module.after_step(progress)
        watch(step + 1, total, numbers)


def feed(plan: Plan, source: Source, start: int, accumulate: int) -> Iterator[tuple[int, list[Batch]]]:
    """This rank's micro-batches of every step from `start` on."""
    rank, world = team()
    steps = range(start, plan.num_steps)
    stream = source.batches(picks for step in steps for picks in share(plan.at(step), rank, world, accumulate))
    for step in steps:
        yield step, [next(stream) for _ in range(accumulate)]


def share(whole: Picks, rank: int, world: int, accumulate: int = 1) -> list[Picks]:
    """What `rank` of `world` takes of a step, as `accumulate` micro-batches.

    A weight is the micro-batch's share of the samples times the number of ranks, for DDP takes the mean over ranks. A
    rank for which no sample is left takes the first one with weight 0, so that all ranks do the same number of passes.
    """
    num = len(whole.samples)
    epochs = np.broadcast_to(whole.epoch, num)
    chunks = np.array_split(np.arange(num), world * accumulate)[rank::world]
    some = [(chunk, len(chunk) / num * world) if len(chunk) else (np.arange(1), 0.0) for chunk in chunks]
    return [Picks(epochs[chunk], whole.samples[chunk], weight) for chunk, weight in some]


def make_optimizer(objective: Objective, betas: tuple[float, float]) -> AdamW:
    """AdamW over the objective's groups; their `lr_scale` (layer decay) is applied by `set_lr` at every step."""
    return AdamW(objective.param_groups(), lr=0.0, betas=betas, fused=next(objective.parameters()).is_cuda)


def set_lr(optimizer: AdamW, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


def set_decay(optimizer: AdamW, progress: float) -> None:
    """Groups with `decay` (first, last) have their weight decay go from the one to the other by half a cosine."""
    for group in optimizer.param_groups:
        if "decay" in group:
            first, last = group["decay"]
            group["weight_decay"] = last + (first - last) * 0.5 * (1 + cos(pi * progress))


def gradient_norm(module: nn.Module, limit: float | None) -> dict[str, Tensor]:
    """The gradients' global norm, to log; where it is above `limit`, they are scaled down to that."""
    norm = nn.utils.get_total_norm([each.grad for each in module.parameters() if each.grad is not None])
    if limit is not None:
        nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)
    return {"gradient_norm": norm}


def distributed(objective: Objective) -> nn.Module:
    """DDP where there are several ranks. The same buckets at every step keep a resumed run's sums in their order."""
    if team()[1] == 1:
        return objective
    wrapper = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in signature(wrapper).parameters  # torch 2.15's name
    once: dict[str, Any] = {
        "forward_sync_buffers" if newer else "broadcast_buffers": False
    }  # buffers are the same on all ranks
    return wrapper(objective, find_unused_parameters=True, **once)
