"""Contrastive losses on the embeddings of a step's images, gathered over all ranks.

Every image is a negative of all others, so the loss is not a mean over a rank's own images. Each rank computes the
complete loss from the embeddings of all ranks, of which only its own have a gradient; `distributed.share_of_loss`
scales it for the mean that DDP takes.

Shapes: N images, D numbers per embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss (Chen 2020, formula 1) of the embeddings of two views, [N, D] each: the mean over all 2N.

    The cross-entropy of identifying each view's partner among the 2N - 1 others; logits: cosine / `temperature`.
    """
    num = len(first)
    similarities = cosine_similarities(torch.cat([first, second])) / temperature
    partner = torch.arange(2 * num, device=first.device).roll(num)
    return F.cross_entropy(mask_self(similarities), partner)


def supervised_contrast(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """SupCon (Khosla 2020, L_out): the mean over the images with a positive, another image of the same label.

    embeddings [N, D], labels [N]. Returns 0 where no image has a positive.
    """
    positives = (labels[:, None] == labels).fill_diagonal_(False)
    log_probabilities = mask_self(cosine_similarities(embeddings) / temperature).log_softmax(dim=1)
    counts = positives.sum(dim=1)
    losses = -log_probabilities.where(positives, 0).sum(dim=1) / counts.clamp(min=1)
    return losses.sum() / (counts > 0).sum().clamp(min=1)


def cosine_similarities(embeddings: Tensor) -> Tensor:
    """Returns [N, N] float32, also under autocast: half precision is too coarse at a small temperature."""
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(embeddings.float(), dim=1)
        return unit @ unit.T


def mask_self(similarities: Tensor) -> Tensor:
    """Returns [N, N] with -inf on the diagonal."""
    return similarities.masked_fill(
        torch.eye(len(similarities), dtype=torch.bool, device=similarities.device), float("-inf")
    )
