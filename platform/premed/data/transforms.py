"""Random transforms: positions of crops, and augmentations. Each is a pure function of its SampleRng.

A *start* is the first voxel of a crop of the size `roi`; it may lie outside the image, and `PreparedImage.image` then
pads the crop with background. Augmentations keep the dtype and return a C-contiguous array, the input itself if chance
leaves it unchanged.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from premed.contracts import PreparedImage
from premed.rng import SampleRng

Start = tuple[int, ...]


def centre_start(shape: Sequence[int], roi: Sequence[int]) -> Start:
    """The centre crop; a smaller image is padded equally on both sides."""
    return tuple((n - size) // 2 for n, size in zip(shape, roi, strict=True))


def random_start(shape: Sequence[int], roi: Sequence[int], draw: SampleRng) -> Start:
    """A uniformly random crop inside the image; centred along axes on which the image is smaller than `roi`."""
    middle = centre_start(shape, roi)
    free = [n - size for n, size in zip(shape, roi, strict=True)]
    return tuple(draw.integer(f"start{i}", free[i] + 1) if free[i] > 0 else middle[i] for i in range(len(free)))


def shifted_start(shape: Sequence[int], roi: Sequence[int], max_shift: int, draw: SampleRng) -> Start:
    """The centre crop, moved by up to `max_shift` voxels along each axis, possibly beyond the image."""
    return tuple(
        start + draw.integer(f"shift{i}", 2 * max_shift + 1) - max_shift
        for i, start in enumerate(centre_start(shape, roi))
    )


def balanced_start(
    prepared: PreparedImage,
    roi: Sequence[int],
    draw: SampleRng,
    positive_share: float = 0.5,
    ignore: int | None = None,
) -> Start:
    """A crop around a labelled voxel with the probability `positive_share`, else around an unlabelled non-zero one.

    All labelled voxels are equally likely, as in MONAI's RandCropByPosNegLabel; near an edge the crop moves inside. If
    one kind of voxel is absent, the other is used. ignore: a label that is neither.
    """
    counts = {label: count for label, count in prepared.counts.items() if label > 0 and label != ignore}
    if counts and (draw.chance("positive", positive_share) or not prepared.counts.get(0)):
        edges = np.cumsum([*counts.values()])
        pick = draw.uniform("label")[0].astype(np.float64) * edges[-1]
        label = [*counts][min(int(np.searchsorted(edges, pick, side="right")), len(counts) - 1)]
    elif prepared.counts.get(0):
        label = 0
    else:
        return random_start(prepared.shape, roi, draw)
    places = prepared.locations(label)
    centre = places[draw.integer("location", len(places))]
    middle = centre_start(prepared.shape, roi)
    return tuple(
        int(np.clip(centre[i] - roi[i] // 2, 0, n - roi[i])) if n > roi[i] else middle[i]
        for i, n in enumerate(prepared.shape)
    )


def turning_planes(size: Sequence[int], plane: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """The planes with two equal edges, in which a view keeps its size when it is turned; of `plane`, if it is given."""
    some = [(i, j) for i in range(len(size)) for j in range(i + 1, len(size)) if size[i] == size[j]]
    return some if plane is None else [each for each in some if {*each} == {*plane}]


class Moves(NamedTuple):
    """How a view is mirrored, then turned. Axes are the spatial ones."""

    flips: tuple[int, ...] = ()  # the axes along which it is mirrored
    plane: tuple[int, int] = (0, 1)
    quarters: int = 0  # turns by 90 degrees in this plane, as `np.rot90` counts them


def draw_moves(
    size: Sequence[int],
    draw: SampleRng,
    flip: float | Sequence[float] = 0.2,
    rotate: float = 0.2,
    plane: tuple[int, int] | None = None,
) -> Moves:
    """Draws how `flip_rotate` moves a view of that size: mirrored along each axis with the probability `flip` (one
    number, or one per axis), and turned by 90, 180 or 270 degrees with the probability `rotate`, in one of
    `turning_planes`."""
    chances = [flip] * len(size) if isinstance(flip, (int, float)) else flip
    flips = tuple(i for i in range(len(size)) if draw.chance(f"flip{i}", chances[i]))
    planes = turning_planes(size, plane)
    if not planes or not draw.chance("rotate", rotate):
        return Moves(flips)
    return Moves(flips, planes[draw.integer("plane", len(planes))], 1 + draw.integer("quarters", 3))


def move(array: np.ndarray, moves: Moves, before: int = 0) -> np.ndarray:
    """A view of the array, whose spatial axes come after `before` others, mirrored and turned."""
    array = np.flip(array, tuple(before + i for i in moves.flips))
    first, second = moves.plane
    return np.rot90(array, moves.quarters, (before + first, before + second)) if moves.quarters else array


def flip_rotate(image: np.ndarray, label: np.ndarray | None, moves: Moves) -> tuple[np.ndarray, np.ndarray | None]:
    """Image [C, *S] and label [*S] mirrored and turned."""
    if moves == Moves():
        return image, label
    # not ascontiguousarray: it keeps the negative stride of an axis of length one
    moved = np.array(move(image, moves, 1), order="C")
    return moved, None if label is None else np.array(move(label, moves, 0), order="C")


def scale_shift_intensity(image: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """A float32 image times `factor`, plus `shift`."""
    assert image.dtype == np.float32, "intensities are changed in the network's units"
    return image if factor == 1 and shift == 0 else image * factor + shift


def draw_intensity(draw: SampleRng, amount: float = 0.1, chance: float = 0.1) -> tuple[float, float]:
    """Draws the factor, 1 ± amount, and the shift, ± amount, of `scale_shift_intensity`, each with the probability
    `chance`; else 1 and 0."""
    factor = 1 + float(draw.uniform("scale", 1, -amount, amount)[0]) if draw.chance("scales", chance) else 1.0
    shift = float(draw.uniform("shift", 1, -amount, amount)[0]) if draw.chance("shifts", chance) else 0.0
    return factor, shift


def random_resized_crop(
    image: np.ndarray,
    size: tuple[int, int],
    draw: SampleRng,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """torchvision's RandomResizedCrop of a picture [C, H, W] uint8 or float32: a box of a random share of the area and
    a random aspect ratio, resized to `size` (bicubic, antialiased)."""
    from torch import from_numpy
    from torchvision.transforms.v2 import InterpolationMode, functional

    top, left, height, width = draw_box(image.shape[1:], draw, scale, ratio)
    cut = np.ascontiguousarray(image[:, top : top + height, left : left + width])
    resized = functional.resize(from_numpy(cut), list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return np.ascontiguousarray(resized.numpy())


def draw_box(
    shape: Sequence[int],
    draw: SampleRng,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draws the box of `random_resized_crop`, which fits: top, left, height, width."""
    full_height, full_width = shape
    shares = draw.uniform("area", 10, *scale).astype(np.float64)
    aspects = np.exp(draw.uniform("aspect", 10, *np.log(ratio)).astype(np.float64))
    for share, aspect in zip(shares, aspects, strict=True):
        width = round(float(np.sqrt(full_height * full_width * share * aspect)))
        height = round(float(np.sqrt(full_height * full_width * share / aspect)))
        if 0 < width <= full_width and 0 < height <= full_height:
            top, left = draw.integer("top", full_height - height + 1), draw.integer("left", full_width - width + 1)
            return top, left, height, width
    # none of ten fits: the largest centred box with an allowed aspect ratio
    aspect = min(max(full_width / full_height, ratio[0]), ratio[1])
    width, height = min(full_width, round(full_height * aspect)), min(full_height, round(full_width / aspect))
    return (full_height - height) // 2, (full_width - width) // 2, height, width


def horizontal_flip(image: np.ndarray, draw: SampleRng, chance: float = 0.5) -> np.ndarray:
    """Mirrors a picture [C, H, W] left to right with the probability `chance`."""
    return np.array(image[..., ::-1] if draw.chance("mirror", chance) else image, order="C")


def rand_augment(image: np.ndarray, draw: SampleRng, spec: str = "rand-m9-mstd0.5-inc1") -> np.ndarray:
    """timm's RandAugment of a picture [1 or 3, H, W] uint8; uncovered corners are mid-grey."""
    from PIL import Image

    assert image.dtype == np.uint8 and image.shape[0] in (1, 3), "rand_augment is for 8-bit pictures, before scaling"
    picture = Image.fromarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0).copy())
    augment = _augment(spec, min(image.shape[1:]))
    # timm draws from Python's and NumPy's global generators: seed them for this picture, then restore them
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        seed = int(draw.child("rand_augment").key) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        picture = augment(picture)
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    picture = picture.convert("L") if len(image) == 1 else picture
    return np.array(np.asarray(picture).reshape(*image.shape[1:], -1).transpose(2, 0, 1), order="C")


@lru_cache(maxsize=8)
def _augment(spec: str, side: int):
    from timm.data import auto_augment

    def posterize(picture, bits, **options):  # the strongest leaves 0 bits: black in old Pillow, an error from 13 on
        return auto_augment.posterize(picture, bits, **options) if bits else picture.point(lambda value: 0)

    settings = {"translate_const": int(side * 0.45), "img_mean": (128, 128, 128)}
    transform = auto_augment.rand_augment_transform(spec, settings)
    for op in transform.ops:
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = posterize
    return transform
