"""Closed-form training in place of `fit`: solves a head's weights on a frozen encoder's features of training images.

Each solution is a step, so that the training callback validates, keeps the best and saves as in gradient descent. Rank
0 solves and broadcasts the weights.
"""

from collections.abc import Sequence
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from premed.contracts import Sample, Solution, Task
from premed.data import views
from premed.distributed import raise_on_all_ranks, rank_and_world
from premed.errors import UserError
from premed.events import EventHandler, WarningIssued
from premed.models.network import Network
from premed.rng import key, permutation
from premed.training.fit import StepCallback
from premed.training.supervised import Supervised


def solve(
    objective: Supervised,
    train: Sequence[Sample],
    callback: StepCallback,
    *,
    start: int = 0,
    precision: torch.dtype = torch.float32,
    on_event: EventHandler,
) -> None:
    """Sets the head of `objective` to each of its solutions and calls `callback`; skips the first `start`.

    on_event: called once with each warning of the head.
    """
    objective.eval()
    head, warned = objective.network.head, set()
    rows, shares = extract_features(objective.network, objective.task, train, precision)
    elsewhere = repeat(Solution(0.0, {}, []), head.num_solutions)
    solutions = head.solve(rows, shares) if rank_and_world()[0] == 0 else elsewhere
    for step, (loss, metrics, warnings) in islice(enumerate(solutions, 1), start, None):
        for text in dict.fromkeys(warnings):
            if text not in warned:
                on_event(WarningIssued(text))
        warned.update(warnings)
        total = torch.tensor(loss, device=next(head.parameters()).device)
        if rank_and_world()[1] > 1:
            for tensor in (total, *head.state_dict().values()):
                dist.broadcast(tensor, 0)
        callback(step, total, dict(metrics))


def extract_features(
    network: Network, task: Task, train: Sequence[Sample], precision: torch.dtype, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Returns rows [n, D] and class fractions [n, classes] of the training cases' fixed views, on the CPU of rank 0.

    Each rank encodes its share of the chunks, which are the same for any number of ranks, and sends rows and fractions
    to rank 0. On other ranks both are empty. most: rows per view, of which a fixed choice is taken; None: all. Raises
    UserError, on every rank, if a row is not finite.
    """
    rank, world = rank_and_world()
    chunks = views.chunks(train, task.roi)
    with raise_on_all_ranks():
        features: list[Any] = [features_of(network, task, chunk, precision, most) for chunk in chunks[rank::world]]
    if world > 1:
        by_rank: list[Any] | None = [None] * world if rank == 0 else None
        dist.gather_object(features, by_rank)
        if by_rank is None:
            return torch.empty(0), torch.empty(0)
        features = [None] * len(chunks)
        for sender, part in enumerate(by_rank):
            features[sender::world] = part
    rows, shares = zip(*features, strict=True)
    return torch.cat(rows), torch.cat(shares)


@torch.no_grad()
def features_of(
    network: Network, task: Task, chunk: Sequence[Sample], precision: torch.dtype, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Returns rows and class fractions of one chunk of cases. Raises UserError if a row is not finite."""
    tiles = [task.tiles(sample) for sample in chunk]
    device = next(network.parameters()).device
    image = torch.from_numpy(np.stack(list(chain(*tiles)))).to(device)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        features = network.encoder(image, taps=network.head.taps)
    rows = network.head.rows(features).cpu()  # [B, N, D]
    names = [sample.case.name for sample, views in zip(chunk, tiles, strict=True) for _ in views]
    for name, finite in zip(names, rows.flatten(1).isfinite().all(dim=1), strict=True):
        if not finite:
            raise UserError(f"{name}: its features are not finite; look at this image (premed data check)")
    listed = [
        torch.from_numpy(each) for sample in chunk for each in task.label_fractions(sample, network.encoder.patch)
    ]
    shares = torch.stack([each.reshape(len(task.classes), -1).T for each in listed])  # [B, N, classes]
    if most is not None and rows.shape[1] > most:
        places = [permutation(key("rows", name, i), rows.shape[1])[:most] for i, name in enumerate(names)]
        chosen = torch.from_numpy(np.stack(places))[..., None]
        rows, shares = (each.take_along_dim(chosen, dim=1) for each in (rows, shares))
    return rows.flatten(0, 1), shares.flatten(0, 1)
