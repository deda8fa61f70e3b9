"""Makes the network's inputs from prepared images: random and fixed views [C, *roi] float32, and their label maps.

A random view is a function of its draws. `ViewParams` holds what they come to, so that `resident.py` makes the same
view of an image that is on the device.
"""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from premed.config.image_processing import Augmentation
from premed.contracts import PreparedImage, Sample
from premed.data import transforms
from premed.rng import SampleRng

MOST_TILES = 8  # fixed views per image on which a pre-training is validated
CHUNK, CHUNK_VOXELS = 64, 2**22  # at most so many images at a time, with so many voxels of one view each


class ViewParams(NamedTuple):
    """What a random view's draws come to: a box of an image, and what is done to it."""

    start: transforms.Start  # the box's first voxel; it may lie outside the image
    size: tuple[int, ...]  # the box's edges
    resize: tuple[int, int] | None = None  # the edges of the view, of a random resized crop
    moves: transforms.Moves = transforms.Moves()
    factor: float = 1.0  # values are multiplied by it, then
    shift: float = 0.0  # this is added
    slice: int | None = None  # of the view along its last axis, which it then lacks
    channels: tuple[int, int] | None = None  # the first, and how many; None: all
    label_map: bool = False  # whether its label is the image's label map, cut in the same way
    label: np.ndarray | None = None  # its label, if that is no map


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


def picture_params(
    prepared: PreparedImage, roi: Sequence[int], augment: Augmentation, draw: SampleRng, label: np.ndarray | None = None
) -> ViewParams:
    """What `picture` draws, RandAugment apart; `label`: the picture's."""
    flips = transforms.Moves((1,) if draw.chance("mirror", augment.flip) else ())
    if augment.scale is None:
        start = transforms.centre_start(prepared.shape, roi)
        return ViewParams(start, tuple(roi), moves=flips, label=label)
    top, left, height, width = transforms.draw_box(prepared.shape, draw, augment.scale)
    return ViewParams((top, left), (height, width), (roi[0], roi[1]), flips, label=label)


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
    params = volume_params(prepared, roi, augment, draw, with_label, ignore)
    image = prepared.image(params.start, roi)
    label = prepared.label(params.start, roi) if with_label else None
    image, label = transforms.flip_rotate(image, label, params.moves)
    return transforms.scale_shift_intensity(image, params.factor, params.shift), label


def volume_params(
    prepared: PreparedImage,
    roi: Sequence[int],
    augment: Augmentation,
    draw: SampleRng,
    with_label: bool = False,
    ignore: int | None = None,
    label: np.ndarray | None = None,
) -> ViewParams:
    """What `volume` draws; `label`: the volume's, if that is no map."""
    if augment.positive is not None and with_label:
        start = transforms.balanced_start(prepared, roi, draw, augment.positive, ignore)
    elif augment.shift is not None:
        start = transforms.shifted_start(prepared.shape, roi, augment.shift, draw)
    else:
        start = transforms.random_start(prepared.shape, roi, draw)
    axes = range(len(roi)) if augment.flip_axes is None else augment.flip_axes
    flips = [augment.flip if axis in axes else 0.0 for axis in range(len(roi))]
    moves = transforms.draw_moves(roi, draw, flips, augment.rotate, augment.rotate_plane)
    factor, shift = transforms.draw_intensity(draw, chance=augment.intensity)
    return ViewParams(start, tuple(roi), None, moves, factor, shift, label_map=with_label, label=label)


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
