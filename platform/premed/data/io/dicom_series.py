"""Reads the DICOM slices of a folder, or of one of the series in it, as one volume."""

from pathlib import Path
from typing import Any

import numpy as np

from premed.data.io import geometry
from premed.data.io.dicom import MEND, Notes, is_dicom, numbers, pixels, read_dataset, silence_pydicom
from premed.data.io.dicom_tree import series_files
from premed.data.io.image_file import ImageFile, Note, fill
from premed.data.io.memory import refuse_beyond_memory
from premed.errors import UserError

EVEN = 0.05  # tolerated deviation of a slice's position, as a fraction of the slice distance
DECIMALS = (1, 2, 3)  # of positions: these count as rounding
UNIT = 0.01  # tolerated deviation of ImageOrientationPatient from unit vectors at right angles
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes grow to the left and the back
GRID = {"ImageOrientationPatient": 6, "ImagePositionPatient": 3, "PixelSpacing": 2}  # tags, and how many numbers each
ONE_OF_A_SERIES = ("SeriesInstanceUID", "Rows", "Columns", "PhotometricInterpretation")
ALL_OR_NONE = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")


def read(folder: Path) -> ImageFile:
    """Reads a folder of slices as a volume [X, Y, Z] float32, rescaled (CT: Hounsfield units), and its affine in RAS.

    Slices are sorted by ImagePositionPatient. UserError if they are not one series of equal, evenly spaced slices.
    """
    notes: Notes = {}
    with silence_pydicom():
        heads = read_heads(folder)
        order, affine = series_geometry(folder, heads, notes)
        first = heads[order[0]]
        shape = (int(first.Columns), int(first.Rows), len(order))
        if np.prod(shape, dtype=object) > geometry.MAX_VOXELS:
            raise UserError(f"{folder}: its headers claim the shape {shape}; fix or leave out the folder")
        refuse_beyond_memory(folder, shape, int(np.prod(shape, dtype=object)) * 9)  # float32 twice, and padding
        values, padding = np.empty(shape, np.float32), np.zeros(shape, bool)
        for number, path in enumerate(order):
            plane, hidden = pixels(path, read_dataset(path), False, notes)
            if plane.ndim != 2:
                raise UserError(f"{path}: a colour picture, not a slice of a volume; move it out of the folder")
            values[..., number] = plane.T
            if hidden is not None:
                padding[..., number] = hidden.T
    padding = padding if padding.any() else None
    fill(values, padding)  # with the lowest value of the volume, not of each slice
    return ImageFile(values, affine, padding, tuple(notes))


def read_heads(folder: Path) -> dict[Path, Any]:
    """The tags of each slice, without its pixels. UserError if there is no volume."""
    files = [path for path in series_files(folder) if path.suffix.lower() == ".dcm" or is_dicom(path)]
    heads = {path: read_dataset(path, stop_before_pixels=True) for path in files}
    if len(heads) < 2:
        raise UserError(f"{folder}: holds {len(heads)} DICOM slice(s), not a volume; put one whole series there")
    return heads


def series_geometry(folder: Path, heads: dict[Path, Any], notes: Notes) -> tuple[list[Path], np.ndarray]:
    """The slices sorted along the volume, and the affine. UserError if they do not make up a volume."""
    grids = {path: _grid(path, head) for path, head in heads.items()}
    first, *others = heads
    for path in others:
        if different := _difference(heads[first], heads[path]) or _grid_difference(
            grids[first], grids[path], (int(heads[first].Columns), int(heads[first].Rows))
        ):
            raise UserError(f"{path}: {different} is not that of {first.name}; keep one series in one folder")
    normal = np.cross(*grids[first][:3, :2].T)
    order = sorted(heads, key=lambda path: float(grids[path][:3, 3] @ normal))
    track = np.stack([grids[path][:3, 3] for path in order])
    step = (track[-1] - track[0]) / (len(order) - 1)  # not always perpendicular to the slices: tilted gantries
    deviation = np.linalg.norm(track - (track[0] + np.arange(len(order))[:, None] * step), axis=1)
    gaps = np.linalg.norm(np.diff(track, axis=0), axis=1)
    if (at := int(gaps.argmin())) is not None and gaps[at] <= EVEN * np.median(gaps):
        raise UserError(f"{order[at + 1]}: lies where {order[at].name} lies; keep one phase or echo in one folder")
    if deviation.max() > max(EVEN * np.linalg.norm(step), _rounding(track)):
        at = int(np.abs(gaps - np.median(gaps)).argmax())
        gap = f"{gaps[at]:.3g} mm behind {order[at].name}, where {np.median(gaps):.3g} mm are usual"
        raise UserError(f"{order[at + 1]}: lies {gap}; a slice is missing or out of place in {folder.name}")
    _compare_distances(order[0], heads[order[0]], float(np.linalg.norm(step)), notes)
    affine = grids[order[0]].copy()
    affine[:3, 2] = step
    return order, TO_RAS @ affine


def _grid(path: Path, head: Any) -> np.ndarray:
    """The affine [4, 4] of a slice in DICOM's axes, its third axis of 1 mm. UserError if it has none."""
    tags = {name: numbers(path, head, name, count) for name, count in GRID.items()}
    if missing := [name for name, found in tags.items() if not found]:
        raise UserError(f"{path}: has no {missing[0]}, so it is no slice of a volume; move it out of the folder")
    height, width = tags["PixelSpacing"]  # of a row, of a column
    if not min(height, width) > 0:
        raise UserError(f"{path}: PixelSpacing {height:g}, {width:g} is not above 0; {MEND}")
    axes = np.array(tags["ImageOrientationPatient"]).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > UNIT:
        raise UserError(f"{path}: ImageOrientationPatient is no pair of unit vectors at right angles; {MEND}")
    along, down = axes
    affine = np.eye(4)
    affine[:3] = np.stack([along * width, down * height, np.cross(along, down), tags["ImagePositionPatient"]], axis=1)
    return affine


def _difference(head: Any, other: Any) -> str:
    """The name of the first tag that differs between two slices and must not; "" if none does."""
    for name in ONE_OF_A_SERIES:
        if head.get(name) != other.get(name):
            return name
    for name in ALL_OR_NONE:
        if (name in head) != (name in other):
            return name
    return ""


def _grid_difference(grid: np.ndarray, other: np.ndarray, size: tuple[int, int]) -> str:
    """The name of the tag by which two slices have another grid, wherever they lie; "" if it is the same."""
    lengths = np.linalg.norm(grid[:3, :3], axis=0)
    moved = other.copy()
    moved[:3, 3] = grid[:3, 3]
    if geometry.corner_gap(grid, moved, size) <= geometry.tolerance(grid):
        return ""
    moved[:3, :3] *= lengths / np.linalg.norm(moved[:3, :3], axis=0)
    turned = geometry.corner_gap(grid, moved, size) > geometry.tolerance(grid)
    return "ImageOrientationPatient" if turned else "PixelSpacing"


def _rounding(track: np.ndarray) -> float:
    """How far rounded positions [n, 3] may lie from even ones, in mm; 0 if they are not rounded.

    Also 0 where a slice may be missing: one distance is longer than rounding makes it, or rounding could hide that.
    """
    decimals = next((n for n in DECIMALS if np.abs(track - track.round(n)).max() < 1e-6), None)
    if decimals is None:
        return 0.0
    error = 0.5 * 10.0**-decimals * float(np.sqrt(np.count_nonzero(np.ptp(track, axis=0))))  # of a position
    gaps = np.sort(np.linalg.norm(np.diff(track, axis=0), axis=1))
    usual = gaps[(len(gaps) - 1) // 2]
    even = gaps[-1] - usual < 4 * error + 1e-6 and usual > 8 * error  # with a missing slice: usual - 4 * error or more
    # even positions lie between the first and the last, which are rounded, too
    return 2 * error + 1e-6 if even else 0.0


def _compare_distances(path: Path, head: Any, step: float, notes: Notes) -> None:
    """Adds a note if SpacingBetweenSlices is not the distance of the positions: slices may be missing evenly."""
    stated = numbers(path, head, "SpacingBetweenSlices", 1)
    if stated and abs(abs(stated[0]) - step) > EVEN * step:
        what = f"{stated[0]:g} mm against {step:.4g} mm; the positions are used; look whether slices are missing"
        notes[Note(f"SpacingBetweenSlices and the positions of the slices contradict each other: {what}")] = None
