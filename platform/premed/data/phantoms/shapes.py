"""Primitives of phantoms: coordinates, soft shapes and band-limited noise, as vectorised functions of points.

Points are arrays [dims, *shape]; a *level* is positive inside a shape and negative outside; `soft` turns a level into
the covered fraction of each pixel, so that edges have partial volume at any resolution.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.fft import next_fast_len

from premed.data.io.geometry import linear
from premed.rng import SampleRng

STEP = 6.0  # mm, the finest grid spacing on which `field_of` draws


def between(draw: SampleRng, name: str, low: float, high: float) -> float:
    """A uniform number in [low, high)."""
    return float(draw.uniform(name, 1, low, high)[0])


def grid(shape: Sequence[int], spacing: Sequence[float] | np.ndarray) -> np.ndarray:
    """Coordinates of the pixel centres, [dims, *shape] float32, in units of `spacing`, 0 at the centre of the grid."""
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def noise(draw: SampleRng, name: str, shape: Sequence[int], smooth: float | Sequence[float] | np.ndarray) -> np.ndarray:
    """A random field [*shape] float32, mean 0 and deviation 1, without detail finer than `smooth` (sigma, in pixels).

    It is periodic: white noise, filtered in the frequency domain, which is five times as fast as in space.
    """
    spectrum = np.fft.rfftn(draw.uniform(name, int(np.prod(shape)), -1, 1).reshape(shape))
    for axis, sigma in enumerate(np.broadcast_to(smooth, len(shape))):
        n = shape[axis]
        frequency = np.fft.rfftfreq(n) if axis == len(shape) - 1 else np.fft.fftfreq(n)
        fall = np.minimum(0.5 * (2 * np.pi * sigma * frequency) ** 2, 20)  # denormal numbers would be slow
        damping = np.exp(-fall).astype(np.float32)
        spectrum *= damping.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    spectrum.flat[0] = 0  # the mean
    field = np.fft.irfftn(spectrum, s=shape, axes=range(len(shape)))
    return field / (field.std() + np.float32(1e-12))


def field_of(draw: SampleRng, name: str, shape: Sequence[int], room: Sequence[float] | np.ndarray, smooth: float):
    """`noise` over a field of view of `room` mm, without detail finer than `smooth` mm: the same at any `shape`."""
    step = max(STEP, smooth / 3)
    wanted = np.maximum(np.ceil(np.asarray(room) / step).astype(int), 4)
    # a prime number of points would take far longer
    coarse = [int(next_fast_len(n, real=True) or n) for n in wanted.tolist()]
    values = noise(draw, name, coarse, smooth * np.array(coarse) / np.asarray(room))
    for axis, (n, m) in enumerate(zip(shape, coarse, strict=True)):
        values = linear(values, (np.arange(n) + 0.5) * m / n - 0.5, axis)
    return values


def soft(level: np.ndarray, edge: float) -> np.ndarray:
    """A smooth step from 0 (level far below 0) to 1 (far above), 0.5 at level 0; `edge` is its half width."""
    return 0.5 + 0.5 * np.tanh(level * (1.5 / edge))


def bump(distance: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """A Gaussian of the distance, 1 at 0, with `width` as its sigma: lines, bands and spots."""
    return np.exp(-0.5 * (distance / width) ** 2)


def ellipsoid(
    points: np.ndarray, centre: Sequence[float] | np.ndarray, radii: Sequence[float | np.ndarray], power: float = 2.0
) -> np.ndarray:
    """The level of an ellipsoid: 1 at its centre, 0 on its surface. A higher power makes it boxier."""
    terms = (abs((p - c) / r) ** power for p, c, r in zip(points, centre, radii, strict=True))
    return 1 - np.sum(list(terms), axis=0)


def tube(points: np.ndarray, path: Sequence[Any], radii: Sequence[float] | np.ndarray) -> np.ndarray:
    """The level, in mm, of a tube through the points of `path`; its radius is interpolated between `radii`."""
    level, nodes = np.full(points.shape[1:], -np.inf, np.float32), np.array(path, np.float32)
    for a, b, r, s in zip(nodes[:-1], nodes[1:], radii[:-1], radii[1:], strict=True):
        away = points - a.reshape(-1, 1, 1, 1)
        along = np.clip(np.tensordot((b - a) / ((b - a) @ (b - a)), away, 1), 0, 1)
        away -= along * (b - a).reshape(-1, 1, 1, 1)
        level = np.maximum(level, np.float32(r) + np.float32(s - r) * along - np.sqrt((away**2).sum(axis=0)))
    return level


def transform_points(points: np.ndarray, rotation: np.ndarray, shift: Sequence[float] | np.ndarray) -> np.ndarray:
    """`points` in the coordinates of a body that is rotated by `rotation` [dims, dims] and then moved by `shift`."""
    moved = points - np.reshape(np.asarray(shift, np.float32), (-1,) + (1,) * (points.ndim - 1))
    return np.einsum("ij,i...->j...", rotation.astype(np.float32), moved)


def blend(under: np.ndarray | float, over: np.ndarray | float, cover: np.ndarray) -> np.ndarray:
    """Interpolates from `under` (cover 0) to `over` (cover 1)."""
    return under + (over - under) * cover
