"""Makes the network's inputs from prepared images: random and fixed views [C, *roi] float32, and their label maps."""

from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np

from premed.config.image_processing import Augmentation
from premed.contracts import PreparedImage, Sample
from premed.data import transforms
from premed.rng import SampleRng

MOST_TILES = 8  # fixed views per image on which a pre-training is validated
CHUNK, CHUNK_VOXELS = 64, 2**22  # at most so many images at a time, with so many voxels of one view each


def picture(prepared: PreparedImage, roi: Sequence[int], augment: Augmentation, draw: SampleRng) -> np.ndarray:
    """A random 2D view: random resized crop (or centre crop), mirroring, RandAugment, in timm's order."""
    if augment.scale is None:
        image = prepared.stored(transforms.centre_start(prepared.shape, roi), roi)
    else:
        image = transforms.random_resized_crop(prepared.stored(), (roi[0], roi[1]), draw, augment.scale)
    image = transforms.horizontal_flip(image, draw, augment.flip)
    if augment.rand is not None:
        image = transforms.rand_augment(image, draw, augment.rand)
    return prepared.values(image)


def volume(
    prepared: PreparedImage,
    roi: Sequence[int],
    augment: Augmentation,
    draw: SampleRng,
    with_label: bool = False,
    ignore: int | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """A random 3D view: a crop (anywhere, near the centre, or balanced by label), flips, quarter turns, intensities.

    ignore: a label on which no crop is centred (`Task.ignore`).
    """
    if augment.positive is not None and with_label:
        start = transforms.balanced_start(prepared, roi, draw, augment.positive, ignore)
    elif augment.shift is not None:
        start = transforms.shifted_start(prepared.shape, roi, augment.shift, draw)
    else:
        start = transforms.random_start(prepared.shape, roi, draw)
    image, label = prepared.image(start, roi), prepared.label(start, roi) if with_label else None
    axes = range(len(roi)) if augment.flip_axes is None else augment.flip_axes
    flips = [augment.flip if axis in axes else 0.0 for axis in range(len(roi))]
    image, label = transforms.flip_rotate(image, label, draw, flips, augment.rotate, augment.rotate_plane)
    return transforms.scale_shift_intensity(image, draw, chance=augment.intensity), label


def centre(prepared: PreparedImage, roi: Sequence[int]) -> np.ndarray:
    """The centre crop."""
    return prepared.image(transforms.centre_start(prepared.shape, roi), roi)


def tiles(prepared: PreparedImage, roi: Sequence[int]) -> list[np.ndarray]:
    """Adjacent fixed views that cover the image from the centre outwards, at most MOST_TILES."""
    return [prepared.image(start, roi) for start in tile_starts(prepared.shape, roi)]


def tile_starts(shape: Sequence[int], roi: Sequence[int]) -> list[transforms.Start]:
    """The starts of the tiles of an image of that shape."""
    counts = [max(1, n // size) for n, size in zip(shape, roi, strict=True)]
    first = transforms.centre_start(shape, [count * size for count, size in zip(counts, roi, strict=True)])

    def outwards(at: tuple[int, ...]) -> int:
        return sum(abs(2 * i + 1 - n) for i, n in zip(at, counts, strict=True))

    places = sorted(product(*map(range, counts)), key=outwards)
    return [tuple(f + i * size for f, i, size in zip(first, at, roi, strict=True)) for at in places[:MOST_TILES]]


def chunks(samples: Sequence[Sample], roi: Sequence[int]) -> list[Sequence[Sample]]:
    """Groups the samples so that the tiles of a group fit through a network at once."""
    num = max(1, min(CHUNK, CHUNK_VOXELS // prod(roi)))
    return [samples[start : start + num] for start in range(0, len(samples), num)]
