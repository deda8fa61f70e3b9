"""Voxel grids: reorients, resamples and crops images; resamples predictions back onto the file's own grid.

`reorient`, `resample_to_spacing` and `crop_to_foreground` take and return an image [C, *S], its label map [*S] or None,
and its affine [4, 4], from voxel indices to millimetres.
"""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import orientations

from premed.data.io.memory import refuse_beyond_memory
from premed.errors import UserError

MAX_VOXELS = 2**31  # a header that claims more is taken for a mistake, before any memory is allocated
SAME = 0.25  # mm, see `tolerance`
ROUNDING = 1e-6  # the cosine that a header's float32 may leave between axes at right angles
SHEARED = 1e-3  # the cosine of the angle between two axes (90 ± 0.06 degrees) from which on a grid counts as sheared


def shear(affine: np.ndarray) -> float:
    """Returns the largest cosine of the angles between the axes of voxels: 0 if all are right angles.

    Where it is not 0 (a gantry tilt; a header that a registration wrote), distances need the whole affine: the lengths
    of its columns are not enough.
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def reorient(values, label, affine, orientation: str):
    """Flips and permutes the axes so that their indices increase as closely as possible towards, say, R, A and S."""
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(orientation))
    )
    affine = affine @ orientations.inv_ornt_aff(turn, values.shape[1:])
    values = np.moveaxis(orientations.apply_orientation(np.moveaxis(values, 0, -1), turn), -1, 0)
    return values, None if label is None else orientations.apply_orientation(label, turn), affine


def voxel_edges(affine: np.ndarray) -> np.ndarray:
    """Returns what makes voxel indices millimetres, up to turning: the edges of a voxel.

    [3], the spacing along each axis, where the axes are at right angles up to the rounding of a header; else [3, 3],
    the edges as the columns of a matrix.
    """
    edges = affine[:3, :3]
    return np.linalg.norm(edges, axis=0) if shear(affine) < ROUNDING else edges


def resample_to_spacing(values, label, affine, spacing: tuple[float, float, float]):
    """Resamples to voxels of `spacing` mm: linearly for the image, nearest neighbour for the label.

    Axes whose spacing is within 0.1 % stay unchanged. The first voxel's centre stays, and the last is the closest to
    the old last one, as in MONAI's Spacing. A sheared grid becomes the box around it, with axes at right angles, so
    that anatomy is not sheared; outside the old grid, image and label repeat its border (as in MONAI, too: an averaged
    grey value stays what it is). UserError if the result exceeds MAX_VOXELS.
    """
    made, new_shape = grid_of_spacing(affine, values.shape[1:], spacing)
    if math.prod(new_shape) > MAX_VOXELS:
        raise UserError(
            f"spacing: {spacing} makes an image of {new_shape} voxels; take a coarser one or fix the header"
        )
    refuse_beyond_memory(f"spacing: {spacing}", (len(values), *new_shape), 8 * len(values) * math.prod(new_shape))
    if shear(affine) > SHEARED:
        return *_straighten(values, label, np.linalg.inv(affine) @ made, new_shape), made
    shape, step = values.shape[1:], _steps(affine, spacing)
    for axis in np.argsort(-step):  # the axis that shrinks most goes first: less work for the others
        at = np.arange(new_shape[axis]) * step[axis]
        values = linear(values, at, axis + 1)
        label = None if label is None else label.take(_nearest(at, shape[axis]), axis)
    return values, label, made


def grid_of_spacing(affine: np.ndarray, shape: Sequence[int], spacing: Sequence[float]) -> tuple[np.ndarray, list[int]]:
    """Returns the affine and the shape that `resample_to_spacing` makes of a grid."""
    made = affine.copy()
    if shear(affine) <= SHEARED:
        step = _steps(affine, spacing)
        made[:3, :3] *= step
        return made, [round((n - 1) / by + 1) for n, by in zip(shape, step, strict=True)]
    rotation, edges = np.linalg.qr(affine[:3, :3])  # the first axis stays, and so does the plane of the first two
    made[:3, :3] = rotation * np.sign(np.diag(edges)) * spacing
    corners = np.array(list(product(*((0, n - 1) for n in shape)))).T
    corners = np.linalg.solve(made[:3, :3], affine[:3, :3] @ corners)  # in new voxels, from the old first voxel on
    made[:3, 3] += made[:3, :3] @ corners.min(axis=1)
    return made, [round(size + 1) for size in np.ptp(corners, axis=1).tolist()]


def _steps(affine: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The new voxel edges, in old voxels."""
    step = np.array(spacing) / np.linalg.norm(affine[:3, :3], axis=0)
    step[np.abs(step - 1) < 1e-3] = 1
    return step


def _straighten(values, label, pull: np.ndarray, shape: Sequence[int]):
    """Resamples image and label to a grid of `shape`; pull: from its voxel indices to the old ones."""
    from scipy.ndimage import affine_transform

    def resample(volume: np.ndarray, order: int) -> np.ndarray:
        how: Any = {"mode": "nearest", "prefilter": False}
        return affine_transform(volume, pull, output_shape=tuple(shape), order=order, **how)

    if label is not None:
        label = resample(label.astype(np.uint8), 0).astype(label.dtype)  # which may be a mask
    return np.stack([resample(volume, 1) for volume in values]), label


def crop_to_foreground(values, label, affine, threshold: float):
    """Crops to the bounding box of the voxels above `threshold`; no crop if there is none."""
    inside = (values > threshold).any(axis=0)
    box = []
    for axis in range(3):
        hit = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, inside.shape[axis]))
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return values[:, *box], None if label is None else label[*box], affine


def to_native(
    answer: np.ndarray, affine: np.ndarray, native_affine: np.ndarray, native_shape: tuple[int, ...]
) -> np.ndarray:
    """Resamples a prediction from the prepared grid (`affine`) to a label map uint8 on the file's grid; 0 outside.

    `answer` is a label map [*S], resampled by nearest neighbour, or scores [K, *S], interpolated linearly class by
    class with the argmax taken on the way, so that memory holds only two native float32 maps. Exact if the grids differ
    by flips, permutations and crops only.
    """
    dims = len(native_shape)
    has_scores = answer.ndim == dims + 1
    pull = np.linalg.inv(affine) @ native_affine  # from native voxel indices to prepared ones
    matrix, shift = pull[:dims, :dims], pull[:dims, 3]
    source = np.abs(matrix).argmax(axis=0)  # the prepared axis along each native one
    rest = matrix.copy()
    rest[source, range(dims)] = 0
    if len({*source}) < dims or np.abs(rest).max() * max(native_shape) > 0.01:
        return _to_native_oblique(answer if has_scores else answer[None], matrix, shift, native_shape, has_scores)
    at = [matrix[source[i], i] * np.arange(n) + shift[source[i]] for i, n in enumerate(native_shape)]
    if has_scores and all(np.abs(places - np.rint(places)).max() < 0.01 for places in at):
        answer, has_scores = answer.argmax(axis=0).astype(np.uint8), False
    if has_scores:
        order = sorted(range(dims), key=lambda i: len(at[i]) / answer.shape[1 + source[i]])

        def resample(scores: np.ndarray) -> np.ndarray:
            scores = scores.astype(np.float32, copy=False).transpose(source)
            for i in order:
                scores = linear(scores, at[i], i)
            return scores

        labels = _argmax(answer, resample)
    else:
        labels = answer.transpose(source)
        for i, places in enumerate(at):
            labels = labels.take(_nearest(places, labels.shape[i]), i)
    for i, places in enumerate(at):
        n = answer.shape[has_scores + source[i]]
        labels[(slice(None),) * i + ((places < -0.5) | (places >= n - 0.5),)] = 0
    return labels.astype(np.uint8, copy=False)


def regions_to_native(
    scores: np.ndarray, affine: np.ndarray, native_affine: np.ndarray, native_shape: tuple[int, ...]
) -> np.ndarray:
    """Resamples scores [K, *S] of regions that may overlap to masks [K, *native_shape] bool; False outside.

    A region is where its score is above 0 (its sigmoid above one half). A sigmoid chooses between the score and 0, so
    each region is resampled as `to_native` resamples two classes.
    """
    pairs = (np.stack([np.zeros_like(score), score]) for score in scores)
    return np.stack([to_native(pair, affine, native_affine, native_shape) > 0 for pair in pairs])


def _to_native_oblique(answer, matrix, shift, native_shape, has_scores) -> np.ndarray:
    from scipy.ndimage import affine_transform

    def resample(values: np.ndarray, order: int, mode: str) -> np.ndarray:
        return affine_transform(values, matrix, shift, native_shape, order=order, mode=mode, prefilter=False)

    if not has_scores:
        return resample(answer[0].astype(np.uint8), 0, "grid-constant")
    labels = _argmax(answer, lambda scores: resample(scores.astype(np.float32, copy=False), 1, "nearest"))
    return labels * resample(np.ones(answer.shape[1:], np.uint8), 0, "grid-constant")


def _argmax(scores: np.ndarray, resample) -> np.ndarray:
    """Index of the class with the highest resampled score, at each voxel: uint8."""
    best = resample(scores[0])
    labels = np.zeros(best.shape, np.uint8)
    for number in range(1, len(scores)):
        other = resample(scores[number])
        better = other > best
        labels[better] = number
        best = np.where(better, other, best)
    return labels


def linear(values: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Interpolates float32 values linearly along one axis at the positions `at`, clamped to the ends."""
    last = values.shape[axis] - 1
    at = np.clip(at, 0, last)
    low = at.astype(np.intp)
    weight = (at - low).astype(np.float32)
    below = values.take(low, axis)
    if not weight.any():
        return below
    above = values.take(np.minimum(low + 1, last), axis)
    above -= below
    above *= weight.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    above += below
    return above


def _nearest(at: np.ndarray, n: int) -> np.ndarray:
    return np.clip(np.floor(at + 0.5).astype(np.intp), 0, n - 1)


# Sizes and equality of grids -----------------------------------------------------------------------------------------


def check_size(path: Path, shape: tuple[int, ...]) -> None:
    """UserError for a shape that no image has."""
    if any(n < 1 for n in shape) or not 0 < math.prod(map(int, shape)) <= MAX_VOXELS:
        raise UserError(f"{path}: its header claims the shape {tuple(shape)}; fix or leave out the file")


def extent(shape: tuple[int, ...]) -> np.ndarray:
    """The sizes [3] of a grid's axes in voxels; those that it has not are 1."""
    return np.array([*shape[:3], 1, 1, 1][:3], np.float64)


def tolerance(affine: np.ndarray) -> float:
    """Two grids are the same if no corner of theirs is further apart than this, in mm.

    Over 500 voxels, rounding makes so much of a header: three decimals of a spacing, a rotation as a quaternion in
    float32. Where voxels are small, it is a quarter of their shortest edge, so that each still lies on its own.
    """
    return min(SAME, float(np.linalg.norm(affine[:3, :3], axis=0).min()) / 4)


def corner_gap(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The distance in mm between the places that two affines give to a corner of a grid, of its eight the largest."""
    corners = np.stack(np.meshgrid(*([0, n] for n in extent(shape)), indexing="ij")).reshape(3, 8)
    difference = np.asarray(affine, np.float64) - other
    return float(np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max())
