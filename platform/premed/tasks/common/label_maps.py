"""Label maps as arrays: read from their files, sampled, averaged over patches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from premed.data.content import hash_file
from premed.data.io.readers import read_image
from premed.errors import UserError

ATLAS = 32  # edge of the grid on which the constant baseline averages the training labels


def sample_atlas(labels: np.ndarray) -> np.ndarray:
    """Samples a label map at ATLAS points along each axis."""
    return labels[np.ix_(*((2 * np.arange(ATLAS) + 1) * size // (2 * ATLAS) for size in labels.shape))]


def patch_means(mask: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """Returns the mean [*grid] of each patch of a mask [*S]."""
    pairs = [(size // edge, edge) for size, edge in zip(mask.shape, patch, strict=True)]
    return mask.reshape([n for pair in pairs for n in pair]).mean(axis=tuple(range(1, 2 * mask.ndim, 2)))


def read_labels(path: Path, expected: str | None = None) -> np.ndarray:
    """Reads a label map [*S] uint8 on its native grid.

    expected: the hash of its file; raises UserError if it is another now.
    """
    if expected is not None and hash_file(path).hash != expected:
        raise UserError(f"{path}: changed while the command ran; run the same command again")
    values = np.rint(read_image(path)[0]).astype(np.uint8)
    return values[..., 0] if values.ndim == 4 else values
