"""Losses of label maps: SelfMedMAE's, and the same over the voxels whose label is known.

Where a label map marks voxels as unknown, each sample's loss is over its other voxels, and the batch's the mean over
samples: so it does not depend on how a step's samples are divided into batches. A sample without a known voxel adds 0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

DICE: Any = {"squared_pred": True, "smooth_nr": 0.0, "smooth_dr": 1e-6}


def dice_ce(logits: Tensor, label: Tensor, ignore: int | None = None) -> Tensor:
    """Returns Dice + cross-entropy of logits [B, K, *S] and labels [B, *S], the mean over samples and classes.

    ignore: the label of unknown voxels. With p the softmax and y the one-hot label, both 0 there, a class's Dice loss
    is 1 - 2 Σpy / (Σp² + Σy² + 1e-6), and the cross-entropy is the mean over the known voxels.
    """
    from monai.losses import DiceCELoss

    logits, label = logits.float(), label.long()
    if ignore is None:
        return DiceCELoss(to_onehot_y=True, softmax=True, **DICE)(logits, label[:, None])
    known = label != ignore
    truth = F.one_hot(label.where(known, 0), logits.shape[1]).movedim(-1, 1)
    entropy = F.cross_entropy(logits, label, ignore_index=ignore, reduction="none").flatten(1).sum(dim=1)
    num_known = known.flatten(1).sum(dim=1)
    return mean_over_samples(_dice(logits.softmax(dim=1), truth, known) + entropy / num_known.clamp(min=1), known)


def region_dice(logits: Tensor, truth: Tensor, known: Tensor | None = None) -> Tensor:
    """Returns the Dice loss of logits and masks [B, K, *S], a sigmoid each; the mean over samples and regions.

    known [B, *S]: the voxels that count, as in `dice_ce`; None: all.
    """
    from monai.losses import DiceLoss

    if known is None:
        return DiceLoss(sigmoid=True, **DICE)(logits.float(), truth.float())
    return mean_over_samples(_dice(logits.float().sigmoid(), truth, known), known)


def _dice(share: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Returns each sample's Dice loss [B], the mean over classes, of shares and masks [B, K, *S] at known voxels."""
    from monai.losses import DiceLoss

    inside = known[:, None].float()
    return DiceLoss(reduction="none", **DICE)(share * inside, truth.float() * inside).flatten(1).mean(dim=1)


def mean_over_samples(losses: Tensor, known: Tensor) -> Tensor:
    """Returns the mean of losses [B], those of samples without a known voxel taken as 0."""
    return torch.where(known.flatten(1).any(dim=1), losses, 0).mean()
