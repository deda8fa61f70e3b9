"""Label maps made smaller: sampled to a grid of points, or averaged over patches."""

from collections.abc import Sequence

import numpy as np

ATLAS = 32  # edge of the grid on which the constant baseline averages the training labels


def sample_atlas(labels: np.ndarray) -> np.ndarray:
    """Samples a label map at ATLAS points along each axis."""
    return labels[np.ix_(*((2 * np.arange(ATLAS) + 1) * size // (2 * ATLAS) for size in labels.shape))]


def patch_means(mask: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """Returns the mean [*grid] of each patch of a mask [*S]."""
    pairs = [(size // edge, edge) for size, edge in zip(mask.shape, patch, strict=True)]
    return mask.reshape([n for pair in pairs for n in pair]).mean(axis=tuple(range(1, 2 * mask.ndim, 2)))
