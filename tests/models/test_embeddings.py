"""RankMe and spread, against their formulas written out."""

import math

import numpy as np
import pytest
import torch

from premed.models.embeddings import rank_me, spread


def randoms(num, dim, seed=0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def test_rank_me_is_the_exponential_of_the_entropy_of_the_singular_values():
    embeddings = randoms(40, 12) * torch.linspace(0.1, 3, 12)
    values = np.linalg.svd(embeddings.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    assert float(rank_me(embeddings)) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (3, 3), (8, 8)])
def test_rank_me_is_the_number_of_directions_where_all_are_equally_long(rank, expected):
    basis = torch.linalg.qr(randoms(16, 8))[0]  # 16 embeddings whose eight directions are equally long
    embeddings = basis[:, :rank] @ torch.linalg.qr(randoms(8, 8, 1))[0][:rank]
    assert float(rank_me(embeddings)) == pytest.approx(expected, rel=1e-3)


def test_the_rank_of_a_collapse_is_one():
    assert float(rank_me(torch.ones(9, 1) * torch.tensor([[3.0, -2.0, 1.0]]))) == pytest.approx(1, abs=1e-3)
    assert math.isfinite(float(rank_me(torch.zeros(9, 3))))


def test_the_spread_is_the_deviation_of_embeddings_at_length_one_as_a_multiple_of_its_largest():
    embeddings = randoms(50, 6) + torch.tensor([1.0, 0, 0, 0, 0, 0])
    unit = (embeddings / embeddings.norm(dim=1, keepdim=True)).double().numpy()
    assert float(spread(embeddings)) == pytest.approx(np.sqrt((unit.std(axis=0) ** 2).mean()) * np.sqrt(6), rel=1e-5)


def test_the_spread_is_one_where_embeddings_point_everywhere_and_zero_where_they_collapsed():
    assert float(spread(randoms(4000, 64))) == pytest.approx(1, abs=0.01)
    assert float(spread(torch.ones(9, 1) * torch.tensor([[3.0, -2.0, 1.0]]))) == pytest.approx(0, abs=1e-3)
    assert float(spread(torch.tensor([[1.0, 0.0], [5.0, 0.0], [-2.0, 0.0], [-1.0, 0.0]]))) == pytest.approx(1)
