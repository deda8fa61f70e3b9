"""Resizes boxes of 8-bit pictures on any device, bicubic and antialiased, in whole numbers.

torchvision resizes 8-bit pictures on CPUs with weights that are rounded to 16 bits (as Pillow does), first along rows,
then along columns, each rounded to grey levels. The same sums in 32-bit integers are exact on every device, so that
pictures are equal, value for value; on GPUs torchvision computes in floating point, which differs by a grey level.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SHARPNESS = -0.5  # of the cubic (Keys 1981), as in Pillow and torch where they antialias
MOST_BITS, LARGEST = 22, 2**15  # of weights: fractional digits at the most, and what none of them reaches


class Taps(NamedTuple):
    """Which pixels of a line make each of the pixels to which it is resized, and with which weights."""

    first: np.ndarray  # [size] int32: the first of them
    weights: np.ndarray  # [size, taps] int16; 0 beyond the line
    bits: int  # the weights of a pixel sum to about 2^bits


@lru_cache(maxsize=512)
def taps(num: int, size: int) -> Taps:
    """The taps of a line of `num` pixels that is resized to `size`."""
    scale = num / size
    stretch = max(scale, 1.0)  # antialiasing: the cubic is as wide as what is left out
    centre = scale * (np.arange(size) + 0.5)
    first = np.maximum((centre - 2 * stretch + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + 2 * stretch + 0.5).astype(np.int64), num)
    places = first[:, None] + np.arange(int((end - first).max()))
    weights = np.where(places < end[:, None], cubic((places - centre[:, None] + 0.5) / stretch), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    bits = next((n for n in range(MOST_BITS) if int(0.5 + weights.max() * 2.0 ** (n + 1)) >= LARGEST), MOST_BITS)
    whole = np.trunc(weights * 2.0**bits + np.copysign(0.5, weights)).astype(np.int16)
    return Taps(first.astype(np.int32), whole, bits)


def cubic(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel."""
    x, a = np.abs(x), SHARPNESS
    inner, outer = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


class Lines(NamedTuple):
    """The taps of n pictures along one axis: arrays, or tensors where they are on a device."""

    first: Any  # [n, size] int32
    weights: Any  # [n, size, taps] int16
    bits: Any  # [n] int32
    last: Any  # [n] int32: the last pixel of each line

    @property
    def places(self) -> Tensor:
        """The pixels of all taps, [n, size, taps] int64; those without weight stay on the line."""
        taps = torch.arange(self.weights.shape[2], device=self.first.device)
        return torch.minimum(self.first[..., None] + taps, self.last[:, None, None])


def stacked(lengths: Sequence[int], size: int, mirrored: Sequence[bool]) -> Lines:
    """The taps of several pictures, whose lines of these lengths become `size` pixels; where mirrored, in reverse."""
    each = [taps(length, size) for length in lengths]
    most = max(one.weights.shape[1] for one in each)
    first, weights = [], []
    for one, reverse in zip(each, mirrored, strict=True):
        order = slice(None, None, -1 if reverse else 1)
        first.append(one.first[order])
        weights.append(np.pad(one.weights, ((0, 0), (0, most - one.weights.shape[1])))[order])
    bits, last = [one.bits for one in each], [length - 1 for length in lengths]
    return Lines(np.stack(first), np.stack(weights), np.array(bits, np.int32), np.array(last, np.int32))


class Boxes(NamedTuple):
    """Boxes of n pictures, each of which is resized to [H, W]: arrays, or tensors where they are on a device."""

    begins: Any  # [n, C] int64: the first pixel of each channel's box
    rows: Any  # [n, most] int64: what is added for each of the box's rows; the last one again, up to the highest box's
    lines: Lines  # by which each column becomes H pixels, after
    columns: Lines  # each row became W

    @property
    def work(self) -> int:
        """Pixels that are read for one picture."""
        return self.begins.shape[1] * self.rows.shape[1] * prod(self.columns.weights.shape[1:])


def boxes_of(
    begins: np.ndarray,
    widths: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    to: tuple[int, int],
    mirrored: Sequence[Sequence[int]],
) -> Boxes:
    """Describes boxes of these sizes of pictures of these widths. begins: see `Boxes`. mirrored: the axes along which
    each result is."""
    heights, edges = zip(*sizes, strict=True)
    rows = [
        np.minimum(np.arange(max(heights)), height - 1) * width for height, width in zip(heights, widths, strict=True)
    ]
    lines = stacked(heights, to[0], [0 in axes for axes in mirrored])
    return Boxes(begins, np.stack(rows), lines, stacked(edges, to[1], [1 in axes for axes in mirrored]))


def resize(store: Tensor, boxes: Boxes) -> Tensor:
    """Resizes boxes of pictures whose pixels are in `store` [pixels] uint8: int32 [n, C, H, W], 0 to 255."""
    begins, rows, lines, columns = boxes
    starts = begins[:, :, None] + rows[:, None]
    index = starts[..., None, None] + columns.places[:, None, None]  # [n, C, most, W, taps]
    narrow = rounded((store[index].int() * columns.weights[:, None, None]).sum(-1, dtype=torch.int32), columns.bits)
    num, channels, _, width = narrow.shape
    height, most = lines.weights.shape[1:]
    places = lines.places.reshape(num, 1, height * most, 1).expand(-1, channels, -1, width)
    picked = narrow.gather(2, places).view(num, channels, height, most, width)
    return rounded((picked * lines.weights[:, None, :, :, None]).sum(3, dtype=torch.int32), lines.bits)


def rounded(sums: Tensor, bits: Tensor) -> Tensor:
    """Sums [n, C, H, W] of values times weights to the nearest grey levels."""
    bits = bits.view(-1, 1, 1, 1)
    half = torch.ones_like(bits) << (bits - 1)
    return ((sums + half) >> bits).clamp_(0, 255)
