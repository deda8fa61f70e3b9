"""Losses on the embeddings of a step's images, all ranks' together, and how far these have collapsed. No model here.

Every image is another's negative, so the loss is no mean over a rank's own images. Each rank computes the whole of it,
from everybody's embeddings, of which its own alone have a gradient; `distributed.share_of_loss` scales that for the
mean which DDP takes.

N images, D numbers each.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss (Chen 2020, formula 1) of two views' embeddings, [N, D] each: the mean over all 2N.

    Each is to find its other view among the 2N - 1 others, by the cosine between them over `temperature`.
    """
    num = len(first)
    similar = cosines(torch.cat([first, second])) / temperature
    partner = torch.arange(2 * num, device=first.device).roll(num)
    return F.cross_entropy(without_self(similar), partner)


def supervised_contrast(embeddings: Tensor, kinds: Tensor, temperature: float) -> Tensor:
    """Khosla 2020, its L_out: the mean over the images that have another of their kind. embeddings [N, D], kinds [N].

    Each is to find all others of its kind; 0 where no image has one.
    """
    alike = (kinds[:, None] == kinds).fill_diagonal_(False)
    logs = without_self(cosines(embeddings) / temperature).log_softmax(dim=1)
    counts = alike.sum(dim=1)
    losses = -logs.where(alike, 0).sum(dim=1) / counts.clamp(min=1)
    return losses.sum() / (counts > 0).sum().clamp(min=1)


def cosines(embeddings: Tensor) -> Tensor:
    """[N, N] float32, whatever autocast says: at a small temperature half the digits are too few."""
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(embeddings.float(), dim=1)
        return unit @ unit.T


def without_self(similar: Tensor) -> Tensor:
    return similar.masked_fill(torch.eye(len(similar), dtype=torch.bool, device=similar.device), float("-inf"))


def spread(embeddings: Tensor) -> Tensor:
    """1 where [N, D], brought to length 1, point everywhere alike; 0 where all are one point: a collapse.

    The standard deviation over the images, root mean square over the D numbers, times sqrt(D).
    """
    return F.normalize(embeddings.float(), dim=1).var(dim=0, correction=0).sum().sqrt()
