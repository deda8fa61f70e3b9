"""The closed form of `fit`: a head's weights are solved on what the encoder, as it is, says of the training images.

One step per solution, so that `watch` validates, keeps the best and saves as it does in a descent. The first rank
solves; all have its weights.
"""

from collections.abc import Sequence
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from premed.contracts import Sample, Solution
from premed.data import views as sampling
from premed.distributed import team
from premed.errors import UserError
from premed.events import EventHandler, WarningIssued
from premed.fit import Watch
from premed.supervised import Supervised


def solve(
    objective: Supervised,
    train: Sequence[Sample],
    watch: Watch,
    *,
    start: int = 0,
    precision: torch.dtype = torch.float32,
    emit: EventHandler,
) -> None:
    """Takes `objective`'s head through its solutions, of which the first `start` are done.

    emit: takes a warning where the head has something to say, once.
    """
    objective.eval()
    head, told = objective.network.head, set()
    rows, shares = gathered(objective, train, precision)
    elsewhere = repeat(Solution(0.0, {}, []), head.num_solutions)
    solutions = head.solve(rows, shares) if team()[0] == 0 else elsewhere
    for step, (loss, numbers, said) in islice(enumerate(solutions, 1), start, None):
        for text in dict.fromkeys(said):
            if text not in told:
                emit(WarningIssued(text))
        told.update(said)
        total = torch.tensor(loss, device=next(head.parameters()).device)
        if team()[1] > 1:
            for tensor in (total, *head.state_dict().values()):
                dist.broadcast(tensor, 0)
        watch(step, total, dict(numbers))


def gathered(objective: Supervised, train: Sequence[Sample], precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [n, D] and the classes' shares [n, classes] of the training cases' fixed views, on the CPU, on rank 0.

    The ranks share the work and hand over rows alone; the same cases go through the encoder together for any number of
    ranks. Elsewhere both are empty.
    """
    rank, world = team()
    chunks = sampling.chunks(train, objective.task.roi)
    found: list[Any] = [looked_at(objective, chunk, precision) for chunk in chunks[rank::world]]
    if world > 1:
        handed: list[Any] | None = [None] * world if rank == 0 else None
        dist.gather_object(found, handed)
        if handed is None:
            return torch.empty(0), torch.empty(0)
        found = [None] * len(chunks)
        for of, some in enumerate(handed):
            found[of::world] = some
    rows, shares = zip(*found, strict=True)
    return torch.cat(rows), torch.cat(shares)


@torch.no_grad()
def looked_at(objective: Supervised, chunk: Sequence[Sample], precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows and shares of some cases."""
    task, network = objective.task, objective.network
    tiles = [task.tiles(sample) for sample in chunk]
    device = next(objective.parameters()).device
    image = torch.from_numpy(np.stack(list(chain(*tiles)))).to(device)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        features = network.encoder(image, taps=network.head.taps)
    rows = network.head.rows(features).cpu()  # [B, N, D]
    names = [sample.case.name for sample, views in zip(chunk, tiles, strict=True) for _ in views]
    for name, finite in zip(names, rows.flatten(1).isfinite().all(dim=1), strict=True):
        if not finite:
            raise UserError(f"{name}: its features are no numbers; look at this image (premed data check)")
    shares = [
        torch.from_numpy(some) for sample in chunk for some in task.label_fractions(sample, network.encoder.patch)
    ]
    return rows.flatten(0, 1), torch.cat([some.reshape(len(task.classes), -1).T for some in shares])
