"""Preprocessing: resamples images to a common grid, clips and normalises them, and stores them compactly.

Axes: C channels; *S spatial axes, (H, W) of a picture or three axes in the orientation of the preprocessing (RAS:
indices increase to the right, the front, the top). An affine [4, 4] maps voxel indices to millimetres (of a picture: to
pixels of its file).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from premed.config.image_processing import Preprocessing
from premed.data.io import geometry
from premed.data.io.image_file import ImageFile, Note
from premed.data.io.readers import read_finite
from premed.errors import UserError

CHANNELS = "fix the file, the list of its channels, or task.channels"
MOST_LABEL = 255
WHOLE = 1e-3  # a label's distance from a whole number, at most: float32 rounds a slope and an intercept
QUANTISED = (
    0.05  # from a whole number at most: labels 0 to 25 in 256 steps are less than this away, interpolated ones not
)


@dataclass
class Prepared:
    """A preprocessed image. Its values are stored * scale + offset; crops are padded with stored 0."""

    image: np.ndarray  # [C, *S] uint8 if lossless, else int16
    scale: np.ndarray  # [C] float32
    offset: np.ndarray  # [C] float32
    label: np.ndarray | None  # [*S] uint8
    affine: np.ndarray  # [4, 4] of the prepared grid
    native_affine: np.ndarray  # [4, 4] of the file's grid
    native_shape: tuple[int, ...]
    notes: tuple[tuple[int, Note], ...] = ()  # see `ImageFile.notes`, each with its file's number; the label's is last


class Channels(NamedTuple):
    """The files of an image, read."""

    values: np.ndarray  # [C, *S]
    padding: np.ndarray | None  # [C, *S] bool: no part of the image, and of no statistic
    affine: np.ndarray


def prepare(images: Sequence[Path], label: Path | None, preprocessing: Preprocessing) -> Prepared:
    """Reads one image (a file, or one file per channel) and its label map, if there is one, and preprocesses them.

    Raises UserError, which names the file and the fix, for any fault of a file.
    """
    notes: list[tuple[int, Note]] = []
    values, padding, native = _read_channels(images, preprocessing, notes)
    if padding is not None:
        what = "some of its pixels are padding: they are no part of the image, and count in no statistic"
        notes.append((0, Note(what)))
    if preprocessing.spacing and geometry.shear(native) > geometry.SHEARED:
        notes.append((0, Note("its axes are not at right angles: it is resampled to right angles")))
    shape = values.shape[1:]
    target = None if label is None else _read_label(label, shape, native, notes, len(images))
    if preprocessing.dims == 2:
        values, padding, target, affine = _resize(images[0], values, padding, target, native, preprocessing)
    else:
        values, padding, target, affine = _to_grid(values, padding, target, native, preprocessing)
    image, scale, offset = _quantise(values, padding, preprocessing)
    target = None if target is None else np.ascontiguousarray(target)
    return Prepared(image, scale, offset, target, affine, native, shape, tuple(notes))


# Channels and labels -------------------------------------------------------------------------------------------------


def _read_channels(paths: Sequence[Path], preprocessing: Preprocessing, notes: list[tuple[int, Note]]) -> Channels:
    """Channels are the last axis of one file, or in one file each."""
    parts: list[ImageFile] = []
    for number, path in enumerate(paths):
        file = read_finite(path, preprocessing.as_displayed)
        notes += [(number, note) for note in file.notes]
        values = file.values
        if values.ndim == preprocessing.dims:
            values = values[..., None]
        if values.ndim != preprocessing.dims + 1:
            raise UserError(f"{path}: {values.ndim} axes; {preprocessing.dims} (and one of channels) expected")
        if preprocessing.dims == 2 and preprocessing.channels == 1 and (values == values[..., :1]).all():
            values = values[..., :1]  # grey images stored as RGB, such as some NIH X-rays
        if parts and values.shape[:-1] != parts[0].values.shape[:-1]:
            raise UserError(f"{path}: its shape is not that of {paths[0]}; resample it onto that grid")
        if parts and (gap := grid_gap(file.affine, parts[0].affine, values.shape[:-1])):
            raise UserError(f"{path}: its affine is not that of {paths[0]} ({gap}); resample it onto that grid")
        parts.append(file._replace(values=values))
    if preprocessing.dims == 2 and preprocessing.channels == 3 and len(parts) == 1 and parts[0].values.shape[-1] == 1:
        # a grey picture in a data set of colour pictures
        parts[0] = parts[0]._replace(values=parts[0].values.repeat(3, axis=-1))
    channels = sum(part.values.shape[-1] for part in parts)
    if channels != preprocessing.channels:
        raise UserError(f"{paths[0]}: {wrong_channels(channels, preprocessing)}")
    values = parts[0].values if len(parts) == 1 else np.concatenate([part.values for part in parts], axis=-1)
    return Channels(np.moveaxis(values, -1, 0), join_padding(parts), parts[0].affine)


def wrong_channels(channels: int, preprocessing: Preprocessing) -> str:
    """What is wrong with so many; of pictures, more than red, green, blue and alpha are a volume's slices."""
    if preprocessing.dims == 2 and channels > 4:
        return f"a volume of {channels} slices, where pictures are expected; write each slice that is meant to a file"
    return f"{channels} channel(s), {preprocessing.channels} expected; {CHANNELS}"


def join_padding(parts: Sequence[ImageFile]) -> np.ndarray | None:
    """The padding [C, *S] of files whose values are [*S, C]; None if no file has any."""
    if all(part.padding is None for part in parts):
        return None
    masks = [np.zeros(p.values.shape[:-1], bool) if p.padding is None else p.padding for p in parts]
    return np.stack([mask for mask, p in zip(masks, parts, strict=True) for _ in range(p.values.shape[-1])])


def grid_gap(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> str:
    """How far apart two grids are, in words; "" if they are the same."""
    gap = geometry.corner_gap(affine, other, shape)
    return f"{gap:.3g} mm apart at the far corner" if gap > geometry.tolerance(other) else ""


def _read_label(
    path: Path, shape: tuple[int, ...], affine: np.ndarray, notes: list[tuple[int, Note]], number: int
) -> np.ndarray:
    file = read_finite(path)
    notes += [(number, note) for note in file.notes]
    values = file.values
    if values.ndim == len(shape) + 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.shape != shape:
        raise UserError(f"{path}: its shape {values.shape} is not its image's {shape}; resample it onto that grid")
    if gap := grid_gap(file.affine, affine, shape):
        raise UserError(f"{path}: its affine is not its image's ({gap}); resample it onto that grid or fix the header")
    if wrong := label_fault(values):
        raise UserError(f"{path}: {wrong}")
    return np.rint(values).astype(np.uint8)


def label_fault(values: np.ndarray) -> str:
    """Returns what is wrong with the values of a label map, and how to mend it; empty if they are all labels."""
    rounded = np.rint(values)
    is_whole = np.abs(values - rounded) <= WHOLE
    wrong = ~is_whole | (rounded < 0) | (rounded > MOST_LABEL)
    if not wrong.any():
        return ""
    fractions = values[~is_whole]
    found, counts = np.unique(fractions if fractions.size else values[wrong], return_counts=True)
    usual, times = found[counts.argmax()], int(counts.max())
    if not fractions.size:
        mend = "give its labels numbers from 0 (background) on"
    elif np.abs(fractions - np.rint(fractions)).max() <= QUANTISED:
        mend = "it was stored with a slope (scl_slope): round its values and save them as uint8, without one"
    else:
        mend = "it was interpolated: resample the original map with nearest neighbour, and save it as uint8"
    few = f"{np.count_nonzero(wrong)} voxels are not, {times} of them {usual:g}"
    return f"labels must be whole numbers in 0..{MOST_LABEL}; {few}: {mend}"


# Grids ---------------------------------------------------------------------------------------------------------------


def _to_grid(values, padding, label, affine, preprocessing: Preprocessing):
    """Reorients, resamples and crops a volume. Returns values, padding, label and affine on the new grid."""
    steps: list[tuple[Callable, Any]] = [(geometry.reorient, preprocessing.orientation)]
    if preprocessing.spacing:
        steps.append((geometry.resample_to_spacing, preprocessing.spacing))
    if preprocessing.crop_foreground:
        steps.append((geometry.crop_to_foreground, foreground_threshold(preprocessing)))
    for move, how in steps:
        masks = None
        if padding is not None:  # it goes with the image as label maps do, and is never foreground
            if move is geometry.crop_to_foreground:
                values = np.where(padding, np.float32(-np.inf), values)
            masks = np.stack([move(values, mask, affine, how)[1] for mask in padding])
        values, label, affine = move(values, label, affine, how)
        padding = masks
    return values, padding, label, affine


def foreground_threshold(preprocessing: Preprocessing) -> float:
    """The value above which voxels are foreground (`crop_foreground`); padding is none."""
    return preprocessing.window[0] if preprocessing.window else 0


def _resize(path: Path, values, padding, label, affine, preprocessing: Preprocessing):
    """Equalises and resizes a picture. Returns values, padding, label and affine."""
    if values.dtype != np.uint8 and (preprocessing.equalize or preprocessing.normalise == "grey"):
        raise UserError(f"{path}: not 8 bit; convert it, or set equalize: false and normalise: zscore")
    pictures = [Image.fromarray(np.ascontiguousarray(channel)) for channel in values]
    masks = [None] * len(pictures) if padding is None else [Image.fromarray(~mask) for mask in padding]
    if preprocessing.equalize:
        pictures = [ImageOps.equalize(picture, mask) for picture, mask in zip(pictures, masks, strict=True)]
    if preprocessing.size and preprocessing.size != values.shape[1:]:
        ratio = np.array([*np.divide(values.shape[1:], preprocessing.size), 1.0, 1.0])
        affine = affine @ np.diag(ratio)
        affine[:, 3] += (ratio - 1) / 2  # pixels are areas: the first centre moves
        size = preprocessing.size[1], preprocessing.size[0]
        pictures = [picture.resize(size, Image.Resampling.BILINEAR) for picture in pictures]
        masks = [mask and mask.resize(size, Image.Resampling.NEAREST) for mask in masks]
        if label is not None:
            label = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
    if padding is not None:
        padding = np.stack([~np.asarray(mask) for mask in masks])
    return np.stack([np.asarray(picture) for picture in pictures]), padding, label, affine


# Storage -------------------------------------------------------------------------------------------------------------


def _quantise(
    values: np.ndarray, padding: np.ndarray | None, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns image [C, *S] uint8 or int16, scale [C], offset [C]. Integers are exact, others in 32,767 steps.

    Padding counts in no statistic; it takes the lowest of the other values.
    """
    image = np.empty(values.shape, np.int16)
    scale, offset = np.empty((2, len(values)), np.float32)
    quantise = _quantise_nonzero if preprocessing.normalise == "zscore_nonzero" else _quantise_channel
    for channel, raw in enumerate(values):
        inside = None if padding is None or padding[channel].all() else ~padding[channel]
        image[channel], scale[channel], offset[channel] = quantise(raw.astype(np.float32), inside, preprocessing)
    return image.astype(np.uint8) if image.min() >= 0 and image.max() <= 255 else image, scale, offset


def _quantise_channel(
    raw: np.ndarray, inside: np.ndarray | None, preprocessing: Preprocessing
) -> tuple[np.ndarray, float, float]:
    """inside: which values are no padding; None: all."""
    some = _clip(raw if inside is None else raw[inside], preprocessing)
    if preprocessing.normalise == "grey":
        low, mean, std = 0.0, 255 * preprocessing.mean, 255 * preprocessing.std
    elif preprocessing.normalise == "window":
        assert preprocessing.window
        low, mean, std = (
            preprocessing.window[0],
            preprocessing.window[0],
            preprocessing.window[1] - preprocessing.window[0],
        )
    else:
        low, mean, std = float(some.min()), float(some.mean(dtype=np.float64)), float(some.std(dtype=np.float64)) or 1.0
    reach = float(some.max()) - low
    exact = reach <= 32767 and low.is_integer() and (some == np.rint(some)).all()
    step = 1.0 if exact else reach / 32767 or 1.0
    if inside is None:
        return np.rint((some - low) / step), step / std, (low - mean) / std
    stored = np.full_like(raw, np.rint((some.min() - low) / step))
    stored[inside] = np.rint((some - low) / step)
    return stored, step / std, (low - mean) / std


def _quantise_nonzero(
    raw: np.ndarray, inside: np.ndarray | None, preprocessing: Preprocessing
) -> tuple[np.ndarray, float, float]:
    stored, nonzero = np.zeros_like(raw), raw != 0
    if inside is not None:
        nonzero &= inside
    if not nonzero.any():
        return stored, 1.0, 0.0
    some = _clip(raw[nonzero], preprocessing)
    some = (some - some.mean(dtype=np.float64)) / (some.std(dtype=np.float64) or 1)
    step = float(np.abs(some).max()) / 32767 or 1.0
    stored[nonzero] = np.rint(some / step)
    return stored, step, 0.0


def _clip(values: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    if preprocessing.window:
        low, high = preprocessing.window
    elif preprocessing.percentiles:
        low, high = np.percentile(values, preprocessing.percentiles)
    else:
        return values
    return np.clip(values, float(low), float(high))  # Python floats: NumPy's would turn float32 into float64
