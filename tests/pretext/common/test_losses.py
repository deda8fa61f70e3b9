"""losses.py: the contrastive losses as their papers write them, the same on any number of ranks."""

import math

import pytest
import torch
from support.stages import on_ranks
from torch import Tensor

from premed.distributed import gather_rows, share_of_loss
from premed.pretext.common.losses import nt_xent, supervised_contrast

NUM, DIM = 7, 5


def views(num: int = NUM, seed: int = 0) -> tuple[Tensor, Tensor]:
    both = torch.randn(2, num, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return both[0], both[1]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_simclr_s_formula(temperature):
    first, second = views()
    every, losses = [*first, *second], []
    for i in range(2 * NUM):
        similar = [math.exp(cosine(every[i], other) / temperature) for other in every]
        losses.append(-math.log(similar[(i + NUM) % (2 * NUM)] / (sum(similar) - similar[i])))
    assert float(nt_xent(first, second, temperature)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_of_one_image_nothing_can_be_told_apart():
    assert float(nt_xent(*views(1), 0.1)) == 0


def test_supervised_contrast_is_khosla_s_formula_over_images_that_have_another_of_their_kind():
    embeddings, kinds, losses = views()[0], [0, 1, 0, 2, 1, 0, 3], []
    for i in range(NUM):
        others = [j for j in range(NUM) if j != i]
        alike = [j for j in others if kinds[j] == kinds[i]]
        total = sum(math.exp(cosine(embeddings[i], embeddings[j]) / 0.2) for j in others)
        terms = [-math.log(math.exp(cosine(embeddings[i], embeddings[j]) / 0.2) / total) for j in alike]
        losses += [sum(terms) / len(terms)] if terms else []
    assert len(losses) == 5
    loss = supervised_contrast(embeddings, torch.tensor(kinds), 0.2)
    assert float(loss) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_supervised_contrast_without_a_pair_is_zero_and_has_a_gradient_that_is_a_number():
    embeddings = views()[0].requires_grad_()
    loss = supervised_contrast(embeddings, torch.arange(NUM), 0.2)
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(embeddings.grad, torch.zeros_like(embeddings))


# Any number of ranks --------------------------------------------------------------------------------------------------


def network(rows: Tensor, weights: Tensor) -> Tensor:
    return torch.tanh(rows @ weights)


def whole(rows: Tensor, kinds: Tensor, weights: Tensor, weight: float = 1.0) -> Tensor:
    """Both losses of two views' rows [n, 2, DIM], as an objective computes them on one rank of any number."""
    first, second = (gather_rows(network(view, weights), weight > 0) for view in rows.unbind(dim=1))
    kinds = gather_rows(kinds, weight > 0).repeat(2)
    return share_of_loss(
        nt_xent(first, second, 0.3) + supervised_contrast(torch.cat([first, second]), kinds, 0.3), weight
    )


def inputs(num: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(num, 2, DIM, generator=draw), torch.arange(num) % 3, torch.randn(DIM, DIM, generator=draw)


def one_rank_s_part(num: int) -> None:
    """With DDP and the share of the step that `fit` gives; compares with the whole on one rank."""
    import numpy as np
    import torch.distributed as dist

    from premed.contracts import BatchIndices
    from premed.distributed import rank_and_world
    from premed.training.fit import share

    rank, world = rank_and_world()
    rows, kinds, weights = inputs(num)
    alone = weights.clone().requires_grad_()
    first, second = (network(view, alone) for view in rows.unbind(dim=1))
    expected = nt_xent(first, second, 0.3) + supervised_contrast(torch.cat([first, second]), kinds.repeat(2), 0.3)
    expected.backward()

    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.Parameter(weights.clone())

        def forward(self, indices: BatchIndices) -> Tensor:
            at = torch.from_numpy(indices.samples)
            return whole(rows[at], kinds[at], self.weights, indices.weight)

    mine = share(BatchIndices(0, np.arange(num)), rank, world)[0]
    module = torch.nn.parallel.DistributedDataParallel(Part())
    loss = module(mine)
    (loss * mine.weight).backward()
    total = loss.detach() * mine.weight
    dist.all_reduce(total)
    torch.testing.assert_close(total / world, expected.detach())
    torch.testing.assert_close(module.module.weights.grad, alone.grad)


@pytest.mark.parametrize(("world", "num"), [(2, 8), (2, 7), (3, 2)])  # alike, uneven, and a rank that has no image
def test_losses_and_gradients_are_those_of_one_rank(world, num):
    assert on_ranks(world, one_rank_s_part, num) == [0] * world
