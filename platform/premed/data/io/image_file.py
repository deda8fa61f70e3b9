"""An image file as it was read."""

from typing import NamedTuple

import numpy as np


class Note(NamedTuple):
    """What is to be said of a file, as "what it is: what was done"."""

    text: str
    reading: bool = True
    """Whether it says how the file is read. If so, the fingerprint of its images has `datamodule.READING` in it."""


class ImageFile(NamedTuple):
    """The content of an image file, or of a folder of DICOM slices."""

    values: np.ndarray
    """[*S] or [*S, C], uint8 or float32."""
    affine: np.ndarray
    """[4, 4], from voxel indices to millimetres (of a picture: the identity)."""
    padding: np.ndarray | None = None
    """[*S] bool: what the file declares to be no part of the image. Its values are the lowest of the others, and count
    in no statistic. None: nothing is."""
    notes: tuple[Note, ...] = ()
    """What the header leaves open or says in two ways, and how it was decided; and what the image shows."""


def fill(values: np.ndarray, padding: np.ndarray | None) -> None:
    """Gives padding the lowest of the other values, in place; 0 if there is no other."""
    if padding is not None:
        values[padding] = values[~padding].min() if not padding.all() else 0
