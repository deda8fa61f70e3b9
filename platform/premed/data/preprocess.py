"""Preprocessing: resamples images to a common grid, clips and normalises them, and stores them compactly.

Axes: C channels; *S spatial axes, (H, W) of a picture or three axes in the orientation of the preprocessing (RAS:
indices increase to the right, the front, the top). An affine [4, 4] maps voxel indices to millimetres (of a picture: to
pixels of its file).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from premed.config.image_processing import Preprocessing
from premed.data.io import geometry
from premed.data.io.readers import read_image
from premed.errors import UserError

CHANNELS = "fix the file, the list of its channels, or task.channels"
TOLERANCE = 1e-3  # mm, between the affines of an image and of its label or of its other channels
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


def prepare(images: Sequence[Path], label: Path | None, preprocessing: Preprocessing) -> Prepared:
    """Reads one image (a file, or one file per channel) and its label map, if there is one, and preprocesses them.

    Raises UserError, which names the file and the fix, for any fault of a file.
    """
    values, native = _read_channels(images, preprocessing)
    shape = values.shape[1:]
    target = None if label is None else _read_label(label, shape, native)
    if preprocessing.dims == 2:
        values, target, affine = _resize(images[0], values, target, native, preprocessing)
    else:
        values, target, affine = geometry.reorient(values, target, native, preprocessing.orientation)
        if preprocessing.spacing:
            values, target, affine = geometry.resample_to_spacing(values, target, affine, preprocessing.spacing)
        if preprocessing.crop_foreground:
            values, target, affine = geometry.crop_to_foreground(
                values, target, affine, preprocessing.window[0] if preprocessing.window else 0
            )
    image, scale, offset = _quantise(values, preprocessing)
    target = None if target is None else np.ascontiguousarray(target)
    return Prepared(image, scale, offset, target, affine, native, shape)


# Channels and labels -------------------------------------------------------------------------------------------------


def _read_channels(paths: Sequence[Path], preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Returns [C, *S] and the affine. Channels are the last axis of one file, or in one file each."""
    parts = []
    for path in paths:
        values, affine = read_image(path, preprocessing.as_displayed)
        if values.ndim == preprocessing.dims:
            values = values[..., None]
        if values.ndim != preprocessing.dims + 1:
            raise UserError(f"{path}: {values.ndim} axes; {preprocessing.dims} (and one of channels) expected")
        if preprocessing.dims == 2 and preprocessing.channels == 1 and (values == values[..., :1]).all():
            values = values[..., :1]  # grey images stored as RGB, such as some NIH X-rays
        if parts and (values.shape[:-1] != parts[0][0].shape[:-1] or not _close(affine, parts[0][1])):
            raise UserError(f"{path}: its shape or affine is not that of {paths[0]}; resample it onto that grid")
        parts.append((values, affine))
    if preprocessing.dims == 2 and preprocessing.channels == 3 and len(parts) == 1 and parts[0][0].shape[-1] == 1:
        parts[0] = parts[0][0].repeat(3, axis=-1), parts[0][1]  # a grey picture in a data set of colour pictures
    channels = sum(values.shape[-1] for values, _ in parts)
    if channels != preprocessing.channels:
        raise UserError(f"{paths[0]}: {channels} channel(s), {preprocessing.channels} expected; {CHANNELS}")
    values = parts[0][0] if len(parts) == 1 else np.concatenate([values for values, _ in parts], axis=-1)
    return np.moveaxis(values, -1, 0), parts[0][1]


def _read_label(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    values, own = read_image(path)
    if values.ndim == len(shape) + 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.shape != shape:
        raise UserError(f"{path}: its shape {values.shape} is not its image's {shape}; resample it onto that grid")
    if not _close(own, affine):
        raise UserError(f"{path}: its affine is not its image's; resample it onto that grid or fix the header")
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


def _close(affine: np.ndarray, other: np.ndarray) -> bool:
    return np.allclose(affine, other, rtol=0, atol=TOLERANCE)


def _resize(path: Path, values, label, affine, preprocessing: Preprocessing):
    if values.dtype != np.uint8 and (preprocessing.equalize or preprocessing.normalise == "grey"):
        raise UserError(f"{path}: not 8 bit; convert it, or set equalize: false and normalise: zscore")
    pictures = [Image.fromarray(np.ascontiguousarray(channel)) for channel in values]
    if preprocessing.equalize:
        pictures = [ImageOps.equalize(picture) for picture in pictures]
    if preprocessing.size and preprocessing.size != values.shape[1:]:
        ratio = np.array([*np.divide(values.shape[1:], preprocessing.size), 1.0, 1.0])
        affine = affine @ np.diag(ratio)
        affine[:, 3] += (ratio - 1) / 2  # pixels are areas: the first centre moves
        size = preprocessing.size[1], preprocessing.size[0]
        pictures = [picture.resize(size, Image.Resampling.BILINEAR) for picture in pictures]
        if label is not None:
            label = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
    return np.stack([np.asarray(picture) for picture in pictures]), label, affine


# Storage -------------------------------------------------------------------------------------------------------------


def _quantise(values: np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns image [C, *S] uint8 or int16, scale [C], offset [C]. Integers are exact, others in 32,767 steps."""
    image = np.empty(values.shape, np.int16)
    scale, offset = np.empty((2, len(values)), np.float32)
    quantise = _quantise_nonzero if preprocessing.normalise == "zscore_nonzero" else _quantise_channel
    for channel, raw in enumerate(values):
        image[channel], scale[channel], offset[channel] = quantise(raw.astype(np.float32), preprocessing)
    return image.astype(np.uint8) if image.min() >= 0 and image.max() <= 255 else image, scale, offset


def _quantise_channel(raw: np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, float, float]:
    raw = _clip(raw, preprocessing)
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
        low, mean, std = float(raw.min()), float(raw.mean(dtype=np.float64)), float(raw.std(dtype=np.float64)) or 1.0
    reach = float(raw.max()) - low
    exact = reach <= 32767 and low.is_integer() and (raw == np.rint(raw)).all()
    step = 1.0 if exact else reach / 32767 or 1.0
    return np.rint((raw - low) / step), step / std, (low - mean) / std


def _quantise_nonzero(raw: np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, float, float]:
    stored, inside = np.zeros_like(raw), raw != 0
    if not inside.any():
        return stored, 1.0, 0.0
    some = _clip(raw[inside], preprocessing)
    some = (some - some.mean(dtype=np.float64)) / (some.std(dtype=np.float64) or 1)
    step = float(np.abs(some).max()) / 32767 or 1.0
    stored[inside] = np.rint(some / step)
    return stored, step, 0.0


def _clip(values: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    if preprocessing.window:
        low, high = preprocessing.window
    elif preprocessing.percentiles:
        low, high = np.percentile(values, preprocessing.percentiles)
    else:
        return values
    return np.clip(values, float(low), float(high))  # Python floats: NumPy's would turn float32 into float64
