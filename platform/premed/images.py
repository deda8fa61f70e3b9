"""Images as networks want them: put on one grid, clipped, normalised, stored small.

Axes: C channels; *S spatial axes, (H, W) of a picture or three axes in the recipe's orientation (RAS: the numbers grow
to the right, the front, the top). An affine [4, 4] takes voxel numbers to millimetres (a picture's: to its file's
pixels).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from premed import grid
from premed.readers import read_image
from premed.spec import Spec, UserError

CHANNELS = "mend the file, what lists its channels, or task.channels"
TOLERANCE = 1e-3  # mm, between the affines of an image and of its label or of its other channels


class Recipe(Spec):
    """The deterministic preprocessing of one kind of image: done once, before any random view."""

    dims: Literal[2, 3]
    channels: PositiveInt = 1
    size: tuple[PositiveInt, PositiveInt] | None = None
    """2D: resized to (H, W), antialiased; None keeps the file's."""
    equalize: bool = False
    """2D: histogram equalisation of 8-bit images, before resizing."""
    orientation: str = Field(default="RAS", pattern="^[RLAPSI]{3}$")
    """3D: where the numbers of each axis grow to; axes are flipped and permuted to the closest, never rotated."""
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """3D: mm between voxels; linear for the image, nearest for the label; None keeps the file's."""
    crop_foreground: bool = False
    """3D: only the box of voxels above the window's low end (above 0 without a window), seen in the image alone."""
    window: tuple[float, float] | None = None
    """Clip to these values."""
    percentiles: tuple[float, float] | None = None
    """Clip each channel to these percentiles of it (of its non-zero voxels, for `zscore_nonzero`)."""
    normalise: Literal["window", "zscore", "zscore_nonzero", "grey"]
    """`window` to [0, 1]; `zscore` of each channel, `zscore_nonzero` by and of its non-zero voxels; `grey`: 8 bit to
    [0, 1], then (x - mean) / std."""
    mean: float = 0.5  # `grey`: SelfMedMAE's for chest X-rays
    std: PositiveFloat = 0.225

    @model_validator(mode="after")
    def _fits_together(self):
        three = self.spacing is not None or self.crop_foreground or self.orientation != "RAS"
        if self.dims == 2 and three:
            raise ValueError("spacing, crop_foreground and orientation are for dims: 3")
        if self.dims == 3 and (self.size or self.equalize or self.normalise == "grey"):
            raise ValueError("size, equalize and normalise: grey are for dims: 2")
        if any(len({*pair} & {*self.orientation}) != 1 for pair in ("RL", "AP", "SI")):
            raise ValueError(f"orientation: {self.orientation!r} must have one letter each of R/L, A/P and S/I")
        if self.normalise == "window" and self.window is None:
            raise ValueError("normalise: window needs window: [low, high]")
        if self.window and self.percentiles or (self.normalise == "grey" and (self.window or self.percentiles)):
            raise ValueError("window and percentiles exclude each other, and normalise: grey takes neither")
        for name, pair in (("window", self.window), ("percentiles", self.percentiles)):
            if pair and not pair[0] < pair[1]:
                raise ValueError(f"{name}: the first must be below the second")
        if self.percentiles and not (self.percentiles[0] >= 0 and self.percentiles[1] <= 100):
            raise ValueError("percentiles: between 0 and 100")
        return self

    @property
    def shown(self) -> bool:
        """Whether DICOM pictures are taken as a screen shows them (8 bit) rather than as they were measured."""
        return self.equalize or self.normalise == "grey"


@dataclass
class Prepared:
    """An image on the recipe's grid. Its values are stored * scale + offset; stored 0 is air, wherever one pads."""

    image: np.ndarray  # [C, *S] uint8 where that loses nothing, else int16
    scale: np.ndarray  # [C] float32
    offset: np.ndarray  # [C] float32
    label: np.ndarray | None  # [*S] uint8
    affine: np.ndarray  # [4, 4] of the prepared grid
    native_affine: np.ndarray  # [4, 4] of the file's grid
    native_shape: tuple[int, ...]


def prepare(images: Sequence[Path], label: Path | None, recipe: Recipe) -> Prepared:
    """Reads one image (a file, or one file per channel) and its label map, if there is one, and applies the recipe.

    Raises UserError, naming the file and the mend, for whatever is wrong with a file.
    """
    values, native = _read_channels(images, recipe)
    shape = values.shape[1:]
    target = None if label is None else _read_label(label, shape, native)
    if recipe.dims == 2:
        values, target, affine = _resized(images[0], values, target, native, recipe)
    else:
        values, target, affine = grid.oriented(values, target, native, recipe.orientation)
        if recipe.spacing:
            values, target, affine = grid.respaced(values, target, affine, recipe.spacing)
        if recipe.crop_foreground:
            values, target, affine = grid.cropped(values, target, affine, recipe.window[0] if recipe.window else 0)
    image, scale, offset = _stored(values, recipe)
    target = None if target is None else np.ascontiguousarray(target)
    return Prepared(image, scale, offset, target, affine, native, shape)


# Channels and labels -------------------------------------------------------------------------------------------------


def _read_channels(paths: Sequence[Path], recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """[C, *S] and the affine: channels last in one file, or one file each."""
    parts = []
    for path in paths:
        values, affine = read_image(path, recipe.shown)
        if values.ndim == recipe.dims:
            values = values[..., None]
        if values.ndim != recipe.dims + 1:
            raise UserError(f"{path}: {values.ndim} axes, where {recipe.dims} (and one of channels) are wanted")
        if recipe.dims == 2 and recipe.channels == 1 and (values == values[..., :1]).all():
            values = values[..., :1]  # grey in colour's clothes, as some of the NIH's X-rays are
        if parts and (values.shape[:-1] != parts[0][0].shape[:-1] or not _close(affine, parts[0][1])):
            raise UserError(f"{path}: its shape or affine is not that of {paths[0]}; resample it onto that grid")
        parts.append((values, affine))
    if recipe.dims == 2 and recipe.channels == 3 and len(parts) == 1 and parts[0][0].shape[-1] == 1:
        parts[0] = parts[0][0].repeat(3, axis=-1), parts[0][1]  # grey among coloured pictures
    channels = sum(values.shape[-1] for values, _ in parts)
    if channels != recipe.channels:
        raise UserError(f"{paths[0]}: {channels} channel(s), where {recipe.channels} are wanted; {CHANNELS}")
    values = parts[0][0] if len(parts) == 1 else np.concatenate([values for values, _ in parts], axis=-1)
    return np.moveaxis(values, -1, 0), parts[0][1]


def _read_label(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    values, own = read_image(path)
    if values.ndim == len(shape) + 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.shape != shape:
        raise UserError(f"{path}: its shape {values.shape} is not its image's {shape}; resample it onto that grid")
    if not _close(own, affine):
        raise UserError(f"{path}: its affine is not its image's; resample it onto that grid or mend the header")
    whole = np.rint(values)
    if np.abs(values - whole).max() > TOLERANCE or whole.min() < 0 or whole.max() > 255:
        raise UserError(f"{path}: labels must be whole numbers in 0..255; found {values.min():g} to {values.max():g}")
    return whole.astype(np.uint8)


def _close(affine: np.ndarray, other: np.ndarray) -> bool:
    return np.allclose(affine, other, rtol=0, atol=TOLERANCE)


def _resized(path: Path, values, label, affine, recipe: Recipe):
    if values.dtype != np.uint8 and (recipe.equalize or recipe.normalise == "grey"):
        raise UserError(f"{path}: not 8 bit; convert it, or set equalize: false and normalise: zscore")
    pictures = [Image.fromarray(np.ascontiguousarray(channel)) for channel in values]
    if recipe.equalize:
        pictures = [ImageOps.equalize(picture) for picture in pictures]
    if recipe.size and recipe.size != values.shape[1:]:
        ratio = np.array([*np.divide(values.shape[1:], recipe.size), 1.0, 1.0])
        affine = affine @ np.diag(ratio)
        affine[:, 3] += (ratio - 1) / 2  # pixels are areas: the first centre moves
        wanted = recipe.size[1], recipe.size[0]
        pictures = [picture.resize(wanted, Image.Resampling.BILINEAR) for picture in pictures]
        if label is not None:
            label = np.asarray(Image.fromarray(label).resize(wanted, Image.Resampling.NEAREST))
    return np.stack([np.asarray(picture) for picture in pictures]), label, affine


# Into small numbers --------------------------------------------------------------------------------------------------


def _stored(values: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image [C, *S] uint8 or int16, scale [C], offset [C]. Whole numbers are kept exactly; others in 32,767 steps."""
    image = np.empty(values.shape, np.int16)
    scale, offset = np.empty((2, len(values)), np.float32)
    one = _stored_nonzero if recipe.normalise == "zscore_nonzero" else _stored_channel
    for channel, raw in enumerate(values):
        image[channel], scale[channel], offset[channel] = one(raw.astype(np.float32), recipe)
    return image.astype(np.uint8) if image.min() >= 0 and image.max() <= 255 else image, scale, offset


def _stored_channel(raw: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, float, float]:
    raw = _clipped(raw, recipe)
    if recipe.normalise == "grey":
        low, mean, std = 0.0, 255 * recipe.mean, 255 * recipe.std
    elif recipe.normalise == "window":
        assert recipe.window
        low, mean, std = recipe.window[0], recipe.window[0], recipe.window[1] - recipe.window[0]
    else:
        low, mean, std = float(raw.min()), float(raw.mean(dtype=np.float64)), float(raw.std(dtype=np.float64)) or 1.0
    reach = float(raw.max()) - low
    exact = reach <= 32767 and low.is_integer() and (raw == np.rint(raw)).all()
    step = 1.0 if exact else reach / 32767 or 1.0
    return np.rint((raw - low) / step), step / std, (low - mean) / std


def _stored_nonzero(raw: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, float, float]:
    stored, inside = np.zeros_like(raw), raw != 0
    if not inside.any():
        return stored, 1.0, 0.0
    some = _clipped(raw[inside], recipe)
    some = (some - some.mean(dtype=np.float64)) / (some.std(dtype=np.float64) or 1)
    step = float(np.abs(some).max()) / 32767 or 1.0
    stored[inside] = np.rint(some / step)
    return stored, step, 0.0


def _clipped(values: np.ndarray, recipe: Recipe) -> np.ndarray:
    if recipe.window:
        low, high = recipe.window
    elif recipe.percentiles:
        low, high = np.percentile(values, recipe.percentiles)
    else:
        return values
    return np.clip(values, float(low), float(high))  # plain floats: NumPy's own would make float64 of float32
