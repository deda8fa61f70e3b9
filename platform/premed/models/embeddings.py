"""Measures of embeddings, without labels: have they collapsed to one point, or to few directions?

Shapes: N images, D numbers per embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7  # of Garrido 2023, formula 1, for float32


def spread(embeddings: Tensor) -> Tensor:
    """Returns how far embeddings [N, D] are from a collapse: 1 if their directions are uniform, 0 if they coincide.

    Of the embeddings at length 1: the standard deviation over the images, root mean square over D, times sqrt(D); that
    is SimSiam's measure (Chen 2021, figure 2b) as a multiple of its 1 / sqrt(D).
    """
    return F.normalize(embeddings.float(), dim=1).var(dim=0, correction=0).sum().sqrt()


def rank_me(embeddings: Tensor) -> Tensor:
    """RankMe (Garrido 2023, arXiv:2210.02885, formula 1): the effective rank of embeddings [N, D], 1 to min(N, D).

    The exponential of the entropy of the singular values, as shares of their sum.
    """
    values = torch.linalg.svdvals(embeddings.float())
    shares = values / values.sum().clamp(min=EPSILON) + EPSILON
    return torch.exp(-(shares * shares.log()).sum())
