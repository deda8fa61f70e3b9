"""Inspects one case: lists all faults of its files, and the facts by which `check.Check` judges the data set.

`preprocess.prepare` stops at the first fault; `inspect` lists them all. Its result is small whatever the image's size,
so that any number of cases fits into memory.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel.orientations import aff2axcodes

from premed.config.image_processing import Preprocessing
from premed.data import figures
from premed.data.content import hash_channels, hash_image, is_dicom_picture
from premed.data.io import geometry
from premed.data.io.image_file import ImageFile
from premed.data.io.readers import not_finite, read_file
from premed.data.preprocess import foreground_threshold, join_padding, label_fault, wrong_channels
from premed.errors import Finding, UserError

ROUNDING = 1e-4  # mm: corners of equal grids may differ by this much, because files hold float32


class Inspection(NamedTuple):
    """A case to inspect; pickled to other processes."""

    number: int
    images: tuple[Path, ...]  # absolute
    label: Path | None
    preprocessing: Preprocessing
    labels: tuple[int, ...]  # the values that a label map may hold
    ignore: int | None = None  # see `Task.ignore`


@dataclass
class Facts:
    """What `inspect` found out about a case."""

    number: int
    findings: list[Finding] = field(default_factory=list)
    content: tuple[str, ...] = ()
    """Hashes of the channels, by which `content` tells the same image; () if not all could be read."""
    shape: tuple[int, ...] = ()
    """Of the file; () if it could not be read."""
    prepared: tuple[int, ...] = ()
    """After orientation, spacing and foreground crop."""
    spacing: tuple[float, ...] = ()
    """mm from voxel to voxel of the file, along the axes of the preprocessing's orientation; () for pictures."""
    orientation: str = ""
    counts: dict[int, int] = field(default_factory=dict)
    """Voxels per label value."""

    def add(self, severity, where: Path, what: str) -> None:
        self.findings.append(Finding(severity, str(where), what))


class Volume(NamedTuple):
    """The values of a file, [*S, C] or (label maps) [*S], its affine, and its padding."""

    path: Path
    values: np.ndarray
    affine: np.ndarray
    padding: np.ndarray | None = None
    """[*S] bool of a file, [C, *S] of an image; None: there is none."""


def inspect(job: Inspection) -> Facts:
    """Opens the files of a case and returns all their faults."""
    facts = Facts(job.number)
    image = open_image(job, facts)
    if image is not None:
        inspect_grid(image, job.preprocessing, facts)
    label = None if job.label is None else open_volume(job.label, facts)
    if label is not None:
        values = label.values
        if values.ndim == job.preprocessing.dims + 1 and values.shape[-1] == 1:
            values = values[..., 0]
        if image is not None:
            compare_grids(label, values.shape, image, "its image", facts)
        count_labels(label.path, values, job, facts)
    return facts


def open_volume(path: Path, facts: Facts, shown: bool = False) -> Volume | None:
    """Reads a file and adds the notes on its header. Adds an error and returns None if it cannot be read."""
    try:
        file = read_file(path, shown)
    except UserError as error:
        facts.add("error", path, str(error).removeprefix(f"{path}: "))
        return None
    except Exception as error:  # a decoder may raise anything; the other files are still to be inspected
        facts.add("error", path, f"cannot be read ({type(error).__name__}: {error}); copy it again")
        return None
    for note in file.notes:
        facts.add("note", path, note.text)
    if what := not_finite(file.values):
        facts.add("error", path, what)
    return Volume(path, file.values, file.affine, file.padding)


def open_image(job: Inspection, facts: Facts) -> Volume | None:
    """All channels as [*S, C]. Adds an error and returns None if a file cannot be read or they do not fit together."""
    preprocessing, parts, complete = job.preprocessing, [], True
    for path in job.images:
        part = open_volume(path, facts, preprocessing.as_displayed)
        if part is None:
            complete = False
            continue
        values = part.values
        if values.ndim == preprocessing.dims:
            values = values[..., None]
        if values.ndim != preprocessing.dims + 1:
            facts.add("error", path, f"{values.ndim} axes; {preprocessing.dims} (and one of channels) expected")
            complete = False
            continue
        if preprocessing.dims == 2 and preprocessing.channels == 1 and (values == values[..., :1]).all():
            values = values[..., :1]  # as `preprocess.prepare` does
        part = part._replace(values=values)
        if parts:
            complete &= compare_grids(part, values.shape[:-1], parts[0], str(parts[0].path), facts)
        parts.append(part)
    if not complete:
        return None
    if preprocessing.dims == 2 and preprocessing.channels == 3 and len(parts) == 1 and parts[0].values.shape[-1] == 1:
        parts[0] = parts[0]._replace(values=parts[0].values.repeat(3, axis=-1))  # as `preprocess.prepare` does
    channels = sum(part.values.shape[-1] for part in parts)
    if channels != preprocessing.channels:
        facts.add("error", job.images[0], wrong_channels(channels, preprocessing))
    facts.content = tuple(dict.fromkeys(each for part in parts for each in hash_part(part, preprocessing.dims)))
    values = parts[0].values if len(parts) == 1 else np.concatenate([part.values for part in parts], axis=-1)
    padding = join_padding([ImageFile(part.values, part.affine, part.padding) for part in parts])
    return Volume(job.images[0], values, parts[0].affine, padding)


def hash_part(part: Volume, dims: int) -> tuple[str, ...]:
    """What `hash_image` returns for a file that is read."""
    if dims == 2 and is_dicom_picture(part.path):
        with suppress(UserError):  # it cannot be read in the form that the preprocessing does not ask for
            return hash_image(part.path, dims)
    return hash_channels(part.values, part.affine, dims)


def compare_grids(part: Volume, shape: tuple[int, ...], other: Volume, name: str, facts: Facts) -> bool:
    """Whether `part` is on the grid of `other` [*S, C]. Adds an error if not, a note if it is within the tolerance."""
    expected = other.values.shape[:-1]
    gap, limit = geometry.corner_gap(part.affine, other.affine, expected), geometry.tolerance(other.affine)
    if shape != expected:
        facts.add(
            "error", part.path, f"its shape {shape} is not that of {name}, {expected}; resample it onto that grid"
        )
    if not gap <= limit:
        apart = f"{gap:.3g} mm apart at the far corner"
        what = f"its affine is not that of {name} ({apart}); resample it onto that grid or fix the header"
        facts.add("error", part.path, what)
    elif gap > ROUNDING:
        facts.add("note", part.path, f"its affine is {gap:.1g} mm apart from that of {name}: taken as the same")
    return shape == expected and gap <= limit


def inspect_grid(image: Volume, preprocessing: Preprocessing, facts: Facts) -> None:
    """Adds the facts and faults of an image's grid and values."""
    values, dims = image.values, preprocessing.dims
    facts.shape = values.shape[:dims]
    if (values == values.flat[0]).all():
        facts.add("note", image.path, f"is {values.flat[0]:g} everywhere; leave it out if that is a mistake")
    if dims == 2:
        facts.prepared = preprocessing.size or facts.shape
        if values.dtype != np.uint8 and (preprocessing.equalize or preprocessing.normalise == "grey"):
            what = "not 8 bit; convert it, or set equalize: false and normalise: zscore"
            facts.add("error", image.path, what)
        return
    facts.orientation = "".join(map(str, aff2axcodes(image.affine)))
    values = np.moveaxis(values, -1, 0)
    if image.padding is not None:
        values = np.where(image.padding, np.float32(-np.inf), values)
    oriented, _, affine = geometry.reorient(values, None, image.affine, preprocessing.orientation)
    facts.spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    if preprocessing.crop_foreground:
        oriented, _, affine = geometry.crop_to_foreground(oriented, None, affine, foreground_threshold(preprocessing))
    facts.prepared = oriented.shape[1:]
    if preprocessing.spacing:
        facts.prepared = tuple(geometry.grid_of_spacing(affine, facts.prepared, preprocessing.spacing)[1])
    if geometry.shear(affine) > geometry.SHEARED:
        facts.add("note", image.path, sheared_grid(affine, preprocessing))
    if math.prod(facts.prepared) > geometry.MAX_VOXELS:
        what = f"spacing {preprocessing.spacing} makes it {facts.prepared} voxels; take a coarser one or fix the header"
        facts.add("error", image.path, what)


def sheared_grid(affine: np.ndarray, preprocessing: Preprocessing) -> str:
    """Returns what a note says on a grid whose axes are not at right angles."""
    angle = np.rad2deg(np.arcsin(min(1.0, geometry.shear(affine))))
    what = "is resampled to right angles" if preprocessing.spacing else "stays sheared: set task.spacing to resample it"
    return f"its axes are {angle:.2g} degrees off right angles (a tilted gantry, or a wrong header); it {what}"


def count_labels(path: Path, values: np.ndarray, job: Inspection, facts: Facts) -> None:
    """Counts the voxels of each label value. Adds an error for values that are no label, or none of the job's."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return
    if wrong := label_fault(values):
        facts.add("error", path, wrong)
        return
    counts = np.bincount(np.rint(values).astype(np.uint8))
    facts.counts = {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
    if unknown := {label: count for label, count in facts.counts.items() if job.labels and label not in job.labels}:
        listed = ", ".join(f"{label} ({count} voxels)" for label, count in unknown.items())
        what = (
            f"holds the label {listed}, which no class has (they are {job.labels[0]} to {job.labels[-1]}); fix the map"
        )
        facts.add("error", path, what)
    elif set(facts.counts) == {0}:
        facts.add("note", path, "is 0 everywhere: nothing is labelled")
    elif set(facts.counts) == {job.ignore}:
        facts.add("note", path, f"is {job.ignore} (ignore) everywhere: it counts in neither loss nor scores")


def draw_thumbnail(job: Inspection) -> tuple[int, bytes | None]:
    """A PNG of a case: a slice, and the slice with its labels on it. None if the image is unreadable."""
    facts = Facts(job.number)
    image = open_image(job, facts)
    if image is None:
        return job.number, None
    label = None if job.label is None else open_volume(job.label, facts)
    labels = None
    if label is not None and label.values.size == math.prod(image.values.shape[:-1]):
        labels = np.nan_to_num(label.values).reshape(image.values.shape[:-1]).clip(0, 255).astype(np.uint8)
    values, affine = np.moveaxis(image.values, -1, 0), image.affine
    if job.preprocessing.dims == 3:
        values, labels, affine = geometry.reorient(values, labels, affine, "RAS")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return job.number, figures.thumbnail(values[0], labels, (float(spacing[0]), float(spacing[1])))


def image_facts(facts: Sequence[Facts]) -> dict[str, str]:
    """Shapes, as files have them and prepared, and spacings of images: least, median and most along each axis."""
    ranges = {
        "shape": [each.shape for each in facts if each.shape],
        "prepared": [each.prepared for each in facts if each.prepared],
        "spacing in mm": [each.spacing for each in facts if each.spacing],
    }
    return {name: text for name, values in ranges.items() if (text := axis_ranges(values))}


def axis_ranges(values: Sequence[tuple[float, ...]]) -> str:
    """`28 × 28`, or `181-217-230 × …`: along each axis the least, the median and the most, or what all have."""
    if len({len(each) for each in values}) != 1:
        return ""
    axes = []
    for axis in zip(*values, strict=True):
        ordered = sorted(round(each, 3) for each in axis)
        three = dict.fromkeys((ordered[0], ordered[len(ordered) // 2], ordered[-1]))
        axes.append("-".join(f"{number:g}" for number in three))
    return " × ".join(axes)
