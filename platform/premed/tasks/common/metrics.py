"""Metrics as pure functions: Dice, Hausdorff distance in mm, AUC, accuracy.

A *row* has the numbers of one case. Segmentation: `dice/<class>`, `hd95/<class>`, `state/<class>`; classification:
`y/<class>` (0, 1 or NaN: unknown) and `p/<class>`. Undefined numbers are NaN in a row and left out of a summary.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Returns 2 |A ∩ B| / (|A| + |B|) of two boolean masks of one shape; NaN if both are empty."""
    prediction, truth = _masks(prediction, truth)
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / total if total else float("nan")


def hd95(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | np.ndarray) -> float:
    """Returns the Hausdorff distance in mm: the larger of the two directed 95th percentiles of the surfaces' distances.

    Equal to MONAI's `compute_hausdorff_distance(percentile=95, spacing=spacing)` if neither mask is empty. One empty
    mask gives the image's diagonal in mm; two give NaN. `spacing`: mm per voxel along each axis; or, of a grid
    whose axes are not at right angles, [axes, axes], the edges of a voxel in mm as columns (`geometry.voxel_edges`).
    """
    prediction, truth = _masks(prediction, truth)
    edges = np.asarray(spacing, float)
    if edges.shape not in ((truth.ndim,), (truth.ndim,) * 2):
        raise ValueError(f"spacing {tuple(spacing)} has {len(spacing)} numbers, the masks have {truth.ndim} axes")
    if not (prediction.any() and truth.any()):
        return _diagonal(truth.shape, edges) if prediction.any() or truth.any() else float("nan")
    from scipy.spatial import KDTree

    box = _box(prediction | truth)
    predicted, true = (_millimetres(_surface(mask[box]), edges) for mask in (prediction, truth))
    # grid points need no median splits, and an unbalanced tree is faster to build
    forwards = KDTree(true, balanced_tree=False).query(predicted)[0]
    backwards = KDTree(predicted, balanced_tree=False).query(true)[0]
    return float(max(np.quantile(forwards, 0.95), np.quantile(backwards, 0.95)))


def mask_of(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Returns where a label map has one of a few values; np.isin takes some ten times as long."""
    first, *more = values
    mask = np.asarray(labels == first)
    for value in more:
        mask |= labels == value
    return mask


def region_row(
    prediction: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], spacing: Sequence[float] | np.ndarray
) -> dict[str, Any]:
    """Returns a case's `dice/<class>`, `hd95/<class>` and `state/<class>` for each class of `truth`; masks [*S] bool.

    spacing: as `hd95` takes it.
    state: both, missed (only in the truth), invented (only in the prediction), absent (in neither).
    Missed and invented: Dice 0 and HD95 = the image's diagonal in mm, so that leaving an organ out never pays.
    """
    row: dict[str, Any] = {}
    for name, true_mask in truth.items():
        mask, true_mask = _masks(prediction[name], true_mask)
        found = bool(mask.any()), bool(true_mask.any())
        if all(found):  # neither score looks beyond both
            box = _box(mask | true_mask)
            mask, true_mask = mask[box], true_mask[box]
        row[f"dice/{name}"] = dice(mask, true_mask)
        row[f"hd95/{name}"] = hd95(mask, true_mask, spacing)
        row[f"state/{name}"] = _STATES[found]
    return row


def segmentation_summary(rows: Rows, classes: Sequence[str]) -> dict[str, float]:
    """Returns the mean over cases per class (`dice/<class>`, `hd95/<class>`), then over classes (`dice`, `hd95`).

    Cases that have a class in neither mask are excluded from its mean and counted in `n_excluded`; `n_missed` and
    `n_invented` count the pairs of case and class in only one mask. A class in no case is left out.
    """
    summary: dict[str, float] = {}
    for measure in ("dice", "hd95"):
        by_class = zip(classes, columns(rows, measure, classes).T, strict=True)
        known = {name: column[~np.isnan(column)] for name, column in by_class}
        means = {name: float(column.mean()) for name, column in known.items() if len(column)}
        summary |= {f"{measure}/{name}": mean for name, mean in means.items()}
        if means:
            summary[measure] = float(np.mean(list(means.values())))
    states = [row[f"state/{name}"] for row in rows for name in classes]
    counts = {"n_missed": "missed", "n_invented": "invented", "n_excluded": "absent"}
    return summary | {count: float(states.count(state)) for count, state in counts.items()}


def auc_summary(rows: Rows, classes: Sequence[str]) -> dict[str, float]:
    """Returns `auc/<class>`, their mean `mauc`, and `n_undefined`, the number of classes without an AUC."""
    values = _aucs(rows, classes)
    defined = ~np.isnan(values)
    summary = {f"auc/{name}": float(value) for name, value in zip(classes, values, strict=True) if not np.isnan(value)}
    if defined.any():
        summary["mauc"] = float(values[defined].mean())
    return summary | {"n_undefined": float(np.count_nonzero(~defined))}


def accuracy_summary(rows: Rows, classes: Sequence[str]) -> dict[str, float]:
    """Of exclusive classes: returns `accuracy` (highest p is the true class) and `accuracy/<class>` over its cases.

    Cases with an unknown label are left out, and numbers that then have no case.
    """
    unknown = np.isnan(columns(rows, "y", classes)).sum(axis=1)
    known = [row for row, num in zip(rows, unknown, strict=True) if not num]
    if not known:
        return {}
    truth = columns(known, "y", classes).argmax(1)
    right = probabilities(known, classes).argmax(1) == truth
    per_class = {
        f"accuracy/{name}": float(right[truth == number].mean())
        for number, name in enumerate(classes)
        if (truth == number).any()
    }
    return {"accuracy": float(right.mean()), **per_class}


# (predicted, true)
_STATES = {(True, True): "both", (False, True): "missed", (True, False): "invented", (False, False): "absent"}


def _masks(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _same_shape(prediction, truth)
    return np.asarray(prediction, bool), np.asarray(truth, bool)


def _same_shape(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction's shape {prediction.shape} is not the truth's, {truth.shape}")


def _diagonal(shape: Sequence[int], edges: np.ndarray) -> float:
    """Returns the longest of an image's diagonals in mm, so that no two of its points are further apart."""
    signs = product(*((1, -1),) * len(shape)) if edges.ndim == 2 else [(1,) * len(shape)]
    return max(float(np.linalg.norm(_millimetres(np.multiply(shape, sign), edges))) for sign in signs)


def _millimetres(places: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns the places in mm of voxel indices [..., axes], measured from voxel 0; edges: the `spacing` of `hd95`."""
    return places @ edges.T if edges.ndim == 2 else places * edges


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Returns the bounding box of a non-empty mask."""
    box: tuple[slice, ...] = ()
    for axis in range(mask.ndim):  # each axis within what the ones before leave of it
        inside = mask[box]
        filled = np.flatnonzero(inside.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box = (*box, slice(filled[0], filled[-1] + 1))
    return box


def _surface(mask: np.ndarray) -> np.ndarray:
    """Returns the positions [n, axes] of voxels with a neighbour outside the mask; beyond the image is outside."""
    inside = mask.copy()
    for axis in range(mask.ndim):  # as scipy's binary_erosion, which takes some four times as long
        of_mask, of_inside = np.moveaxis(mask, axis, 0), np.moveaxis(inside, axis, 0)
        of_inside[1:] &= of_mask[:-1]
        of_inside[:-1] &= of_mask[1:]
        of_inside[[0, -1]] = False
    return np.argwhere(mask & ~inside)


def columns(rows: Rows, kind: str, classes: Sequence[str]) -> np.ndarray:
    """Returns the numbers `<kind>/<class>` of all rows, [rows, classes]; None becomes NaN."""
    # itemgetter is fast; a repeated first key makes it always return a tuple
    pick = itemgetter(f"{kind}/{classes[0]}", *(f"{kind}/{name}" for name in classes))
    return np.array([pick(row) for row in rows], float).reshape(len(rows), len(classes) + 1)[:, 1:]


def probabilities(rows: Rows, classes: Sequence[str]) -> np.ndarray:
    table = columns(rows, "p", classes)
    if not np.isfinite(table).all():
        number, column = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(
            f"p/{classes[column]} of {rows[number].get('case', f'row {number}')} is {table[number, column]}"
        )
    return table


def _aucs(rows: Rows, classes: Sequence[str]) -> np.ndarray:
    """Returns AUCs [classes], NaN if undefined: the Mann-Whitney statistic of all classes at once, ties count half."""
    from scipy.stats import rankdata

    truth = columns(rows, "y", classes)
    # cases with an unknown label rank above all others, where they do not change the ranks of these
    ranks = rankdata(np.where(np.isnan(truth), np.inf, probabilities(rows, classes)), axis=0)
    positives, negatives = (truth == 1).sum(0), (truth == 0).sum(0)
    wins = np.where(truth == 1, ranks, 0).sum(0) - positives * (positives + 1) / 2
    pairs = positives * negatives
    return np.divide(wins, pairs, out=np.full(len(classes), np.nan), where=pairs > 0)
