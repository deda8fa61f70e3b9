"""Distributed training: rank and world size, gathered values, errors that all ranks raise together, stops that they
learn of together."""

import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from premed.errors import UserError

LOOK = 0.5  # seconds between two looks of several ranks at whether to stop: each one waits for the step on a GPU
MOST_STEPS = 50  # between two looks: steps may become slower meanwhile, and a stopped command waits 20 seconds


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def all_gather(value: Any) -> list[Any]:
    """Gathers `value` from all ranks, in rank order."""
    values: list[Any] = [value] * rank_and_world()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


class RaisedOnAllRanks(UserError):
    """A UserError that every rank raises at once: no rank is left waiting for another."""


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """If the block raises a UserError on any rank, every rank raises it. Other errors stay on their rank."""
    message = None
    try:
        yield
    except UserError as error:
        message = str(error)
    messages = all_gather((message, socket.gethostname()))
    if failed := [(message, node) for message, node in messages if message]:
        message, node = failed[0]
        raise RaisedOnAllRanks(message if len(failed) == len(messages) else f"{message} (on node {node})")


class SharedLook:
    """Has all ranks know together whether the first one is to stop, by a broadcast about every LOOK seconds.

    The first rank tells the others with each answer after how many steps they look again: as many as take LOOK seconds
    at the speed since the last look, at least one.
    """

    def __init__(self, device: torch.device):
        self.device, self.due = device, 0
        self.last_step, self.last_time = -1, -math.inf

    def __call__(self, step: int, stopping: Callable[[], bool], always: bool = False) -> bool:
        """Returns the same on all ranks; called by all of them after the same steps.

        stopping: called on the first rank alone, if they look after this step. always: whether they do in any case.
        """
        if step < self.due and not always:
            return False
        rank, _ = rank_and_world()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the broadcast waits for it anyway; only then is the time the steps'
        answer = [float(stopping()), float(self.steps_to_next(step))] if rank == 0 else [0.0, 0.0]
        shared = torch.tensor(answer, device=self.device)
        dist.broadcast(shared, 0)
        stops, steps = shared.tolist()
        self.due = step + int(steps)
        self.last_step, self.last_time = step, time.monotonic()
        return bool(stops)

    def steps_to_next(self, step: int) -> int:
        """How many steps take LOOK seconds; as many as are left where no step was done since the last look."""
        if step == self.last_step:
            return max(1, self.due - step)
        seconds = (time.monotonic() - self.last_time) / (step - self.last_step)
        return max(1, min(MOST_STEPS, int(LOOK / max(seconds, 1e-9))))


def gather_rows(rows: Tensor, real: bool = True) -> Tensor:
    """Gathers the rows [n, …] of all ranks, [N, …], in rank order; the gradient flows to this rank's rows only.

    real: False on a rank without samples, which takes part with a placeholder that is dropped.
    """
    rank, world = rank_and_world()
    if world == 1:
        return rows
    count = torch.tensor([len(rows) * real], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    most = max(len(rows), *map(int, counts))
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    parts = [part[: int(count)] for part, count in zip(gathered, counts, strict=True)]
    if real:
        parts[rank] = rows
    return torch.cat(parts) + 0 * rows.sum()  # a rank without samples joins the backward pass, too


def share_of_loss(loss: Tensor, weight: float) -> Tensor:
    """Scales the gradient of a loss that every rank computes from all samples, for DDP. The value stays the same.

    weight: `Batch.weight`, the rank's share of the step's samples times the number of ranks. `fit` multiplies by it and
    DDP averages, but the gradients of the ranks' own samples must be summed.
    """
    return loss.detach() + (rank_and_world()[1] / weight if weight else 0) * (loss - loss.detach())
