"""The only training loop: plain torch, no Ray, no MLflow.

In each step every rank trains on its share of the step's samples, in one or more micro-batches. The loss of each
micro-batch is weighted by its share of the samples, so that any number of ranks and micro-batches gives the gradient of
the step's mean loss. The samples of a step are a function of its number (`BatchSampler.at`), the random draws for a
sample a function of its key: a run that resumes from a checkpoint continues as if it had never stopped.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from inspect import signature
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from premed.contracts import Batch, BatchIndices, BatchLoader, BatchSampler, Objective
from premed.distributed import rank_and_world
from premed.training.device import explain_out_of_memory
from premed.training.optimizer import gradient_norm, set_decay, set_lr
from premed.training.schedule import Schedule


class StepCallback(Protocol):
    """Called after every step on every rank: logging, validation, checkpoints."""

    def __call__(self, step: int, loss: Tensor, metrics: dict[str, Tensor | float]) -> bool | None:
        """step: the number of steps done. loss, tensors in `metrics`: this rank's weighted part of the last step's.
        Returns whether the training ends here, the same on all ranks."""
        ...


def fit(
    objective: nn.Module,
    source: BatchLoader,
    plan: BatchSampler,
    schedule: Schedule,
    optimizer: AdamW,
    callback: StepCallback,
    *,
    start: int = 0,
    accumulate: int = 1,
    clip: float | None = None,
    precision: torch.dtype = torch.float32,
) -> None:
    """Trains `objective` (bare, or wrapped in DDP) from step `start` to the end of the plan.

    accumulate: micro-batches per step. clip: maximum norm of the gradient. Raises UserError, with the mend, if memory
    does not suffice for a step.
    """
    module: Objective = objective.module if hasattr(objective, "module") else objective  # type: ignore[assignment]
    device = next(module.parameters()).device
    module.train()
    for step, batches in feed(plan, source, start, accumulate):
        progress = schedule.progress(step)
        lr = set_lr(optimizer, schedule.at(step))
        set_decay(optimizer, progress)
        total, metrics = torch.zeros((), device=device), {"lr": lr}
        with explain_out_of_memory(device, [len(batch.image) for batch in batches], module.couples_batch):
            for i, batch in enumerate(batches):
                last = i + 1 == len(batches)
                with objective.no_sync() if hasattr(objective, "no_sync") and not last else nullcontext():  # type: ignore[operator]
                    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                        loss, logs = objective(batch, progress)
                    (loss * batch.weight).backward()
                total += loss.detach().float() * batch.weight
                metrics |= {name: metrics.get(name, 0) + value * batch.weight for name, value in logs.items()}
            metrics |= module.before_step(progress)
            metrics |= gradient_norm(module, clip)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        module.after_step(progress)
        if callback(step + 1, total, metrics):
            return


def feed(plan: BatchSampler, source: BatchLoader, start: int, accumulate: int) -> Iterator[tuple[int, list[Batch]]]:
    """Yields every step from `start` on, with this rank's micro-batches."""
    rank, world = rank_and_world()
    steps = range(start, plan.num_steps)
    stream = source.batches(indices for step in steps for indices in share(plan.at(step), rank, world, accumulate))
    for step in steps:
        yield step, [next(stream) for _ in range(accumulate)]


def share(indices: BatchIndices, rank: int, world: int, accumulate: int = 1) -> list[BatchIndices]:
    """Returns the samples of `rank` in a step, as `accumulate` micro-batches.

    A weight is the micro-batch's share of the samples times the number of ranks, because DDP averages over ranks. A
    micro-batch without samples gets the step's first one with weight 0: all ranks do the same number of passes.
    """
    num = len(indices.samples)
    epochs = np.broadcast_to(indices.epoch, num)
    chunks = np.array_split(np.arange(num), world * accumulate)[rank::world]
    weighted = [(chunk, len(chunk) / num * world) if len(chunk) else (np.arange(1), 0.0) for chunk in chunks]
    return [BatchIndices(epochs[chunk], indices.samples[chunk], weight) for chunk, weight in weighted]


def distributed(objective: Objective) -> nn.Module:
    """Wraps the objective in DDP if there are several ranks.

    `find_unused_parameters` keeps DDP from rebuilding its buckets, so that a resumed run sums in the same order.
    """
    if rank_and_world()[1] == 1:
        return objective
    wrapper = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in signature(wrapper).parameters  # torch 2.15's name
    sync: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}  # equal on all ranks
    return wrapper(objective, find_unused_parameters=True, **sync)
