"""One case under inspection: everything that is wrong with its files, and the few facts that its set is judged by.

`images.prepare` stops at the first thing that is wrong; `inspect` goes on. What it gives back is small, whatever the
image's size, so that any number of cases fits into memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel.orientations import aff2axcodes

from premed.config.transforms import Preprocessing
from premed.data import figures
from premed.data.io import geometry
from premed.data.io.readers import LARGEST, read_values
from premed.data.preprocess import CHANNELS, TOLERANCE
from premed.errors import Finding, UserError

ROUNDING = 1e-5  # mm: so far apart come two affines that mean the same, being float32 in the files


class Inspection(NamedTuple):
    """A case to inspect, in whatever process."""

    number: int
    images: tuple[Path, ...]  # absolute
    label: Path | None
    preprocessing: Preprocessing
    labels: tuple[int, ...]  # the values that a label map may hold


@dataclass
class Facts:
    """What is left of a case."""

    number: int
    findings: list[Finding] = field(default_factory=list)
    content: str = ""
    """Hash of the values of all channels; "" where not all could be read."""
    shape: tuple[int, ...] = ()
    """The file's; () where it could not be told."""
    prepared: tuple[int, ...] = ()
    """After orientation, spacing and foreground crop."""
    spacing: tuple[float, ...] = ()
    """mm, of the file, along the recipe's axes; () for pictures."""
    orientation: str = ""
    counts: dict[int, int] = field(default_factory=dict)
    """Voxels per label value."""

    def say(self, severity, where: Path, what: str) -> None:
        self.findings.append(Finding(severity, str(where), what))


class Volume(NamedTuple):
    """A file's values [*S, C] or, of a label map, [*S], and its affine."""

    path: Path
    values: np.ndarray
    affine: np.ndarray


def inspect(job: Inspection) -> Facts:
    """Opens a case's files, one after the other, and tells all that is wrong with them."""
    facts = Facts(job.number)
    image = opened_image(job, facts)
    if image is not None:
        about(image, job.preprocessing, facts)
    label = None if job.label is None else opened(job.label, facts)
    if label is not None:
        values = label.values
        if values.ndim == job.preprocessing.dims + 1 and values.shape[-1] == 1:
            values = values[..., 0]
        if image is not None:
            same_grid(label, values.shape, image, "its image", facts)
        count_labels(label.path, values, job.labels, facts)
    return facts


def opened(path: Path, facts: Facts, shown: bool = False) -> Volume | None:
    """A file's numbers; nothing where it cannot be read, which is told."""
    try:
        volume = Volume(path, *read_values(path, shown))
    except UserError as error:
        facts.say("error", path, str(error).removeprefix(f"{path}: "))
        return None
    except Exception as error:  # whatever a library says of one file: the others are still to be looked at
        facts.say("error", path, f"cannot be read ({type(error).__name__}: {error}); copy it again")
        return None
    if lost := np.count_nonzero(~(np.abs(volume.values) < LARGEST)):
        facts.say("error", path, f"{lost} values are NaN or infinite; mend the file")
    return volume


def opened_image(job: Inspection, facts: Facts) -> Volume | None:
    """All channels as [*S, C], where each file can be read and they fit together."""
    preprocessing, parts, whole = job.preprocessing, [], True
    for path in job.images:
        part = opened(path, facts, preprocessing.as_displayed)
        if part is None:
            whole = False
            continue
        values = part.values
        if values.ndim == preprocessing.dims:
            values = values[..., None]
        if values.ndim != preprocessing.dims + 1:
            facts.say("error", path, f"{values.ndim} axes, where {preprocessing.dims} (and one of channels) are wanted")
            whole = False
            continue
        if preprocessing.dims == 2 and preprocessing.channels == 1 and (values == values[..., :1]).all():
            values = values[..., :1]  # as `images.prepare` does
        part = Volume(path, values, part.affine)
        if parts:
            whole &= same_grid(part, values.shape[:-1], parts[0], str(parts[0].path), facts)
        parts.append(part)
    if not whole:
        return None
    if preprocessing.dims == 2 and preprocessing.channels == 3 and len(parts) == 1 and parts[0].values.shape[-1] == 1:
        parts[0] = parts[0]._replace(values=parts[0].values.repeat(3, axis=-1))  # as `images.prepare` does
    channels = sum(part.values.shape[-1] for part in parts)
    if channels != preprocessing.channels:
        what = f"{channels} channel(s), where {preprocessing.channels} are wanted; {CHANNELS}"
        facts.say("error", job.images[0], what)
    facts.content = blake2b(b"".join(map(content, parts)), digest_size=16).hexdigest()
    values = parts[0].values if len(parts) == 1 else np.concatenate([part.values for part in parts], axis=-1)
    return Volume(job.images[0], values, parts[0].affine)


def content(part: Volume) -> bytes:
    """Hash of a file's values, which another compression or another header leaves as it is."""
    values, flags = part.values, part.values.flags
    turned = flags.f_contiguous and not flags.c_contiguous  # as nibabel has it: hashed as it lies, without a copy
    whole = blake2b(np.ascontiguousarray(values.T if turned else values).data, digest_size=16)
    whole.update(str((values.shape, values.dtype.str, turned)).encode())
    return whole.digest()


def same_grid(part: Volume, shape: tuple[int, ...], other: Volume, name: str, facts: Facts) -> bool:
    """Is it on the grid of `other` [*S, C]? What differs is told; what differs within the tolerance is a note."""
    wanted, gap = other.values.shape[:-1], float(np.abs(part.affine - other.affine).max())
    if shape != wanted:
        facts.say("error", part.path, f"its shape {shape} is not that of {name}, {wanted}; resample it onto that grid")
    if gap > TOLERANCE:
        what = f"its affine is not that of {name} ({gap:.3g} apart); resample it onto that grid or mend the header"
        facts.say("error", part.path, what)
    elif gap > ROUNDING:
        facts.say("note", part.path, f"its affine is {gap:.1g} apart from that of {name}: taken as the same")
    return shape == wanted and gap <= TOLERANCE


def about(image: Volume, preprocessing: Preprocessing, facts: Facts) -> None:
    """What the image's grid and values give away."""
    values, dims = image.values, preprocessing.dims
    facts.shape = values.shape[:dims]
    if (values == values.flat[0]).all():
        facts.say("note", image.path, f"is {values.flat[0]:g} everywhere: leave it out, if that is no image")
    if dims == 2:
        facts.prepared = preprocessing.size or facts.shape
        if values.dtype != np.uint8 and (preprocessing.equalize or preprocessing.normalise == "grey"):
            what = "not 8 bit; convert it, or set equalize: false and normalise: zscore"
            facts.say("error", image.path, what)
        return
    facts.orientation = "".join(map(str, aff2axcodes(image.affine)))
    turned, _, affine = geometry.oriented(np.moveaxis(values, -1, 0), None, image.affine, preprocessing.orientation)
    facts.spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    if preprocessing.crop_foreground:
        turned = geometry.cropped(turned, None, affine, preprocessing.window[0] if preprocessing.window else 0)[0]
    spacing = preprocessing.spacing or facts.spacing
    sizes = zip(turned.shape[1:], facts.spacing, spacing, strict=True)
    facts.prepared = tuple(round((n - 1) * old / new + 1) for n, old, new in sizes)
    if math.prod(facts.prepared) > geometry.MAX_VOXELS:
        what = f"spacing {spacing} makes {facts.prepared} voxels of it; take a coarser one or mend the header"
        facts.say("error", image.path, what)


def count_labels(path: Path, values: np.ndarray, labels: Sequence[int], facts: Facts) -> None:
    """Voxels per label value; values that are no label, or none of `labels`, are told."""
    values = values[np.isfinite(values)]
    whole = np.rint(values)
    if values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if np.abs(values - whole).max() > TOLERANCE or low < 0 or high > 255:
        facts.say("error", path, f"labels must be whole numbers in 0..255; found {low:g} to {high:g}")
        return
    found = np.bincount(whole.astype(np.uint8))
    facts.counts = {int(label): int(found[label]) for label in np.flatnonzero(found)}
    if unknown := {label: count for label, count in facts.counts.items() if labels and label not in labels}:
        held = ", ".join(f"{label} ({count} voxels)" for label, count in unknown.items())
        what = f"holds the label {held}, which no class has (they are {labels[0]} to {labels[-1]}); mend the map"
        facts.say("error", path, what)
    elif set(facts.counts) == {0}:
        facts.say("note", path, "is 0 everywhere: nothing is labelled")


def picture(job: Inspection) -> tuple[int, bytes | None]:
    """A PNG of a case for the contact sheet: a slice, and again with its labels on it. None if it is unreadable."""
    facts = Facts(job.number)
    image = opened_image(job, facts)
    if image is None:
        return job.number, None
    label = None if job.label is None else opened(job.label, facts)
    labels = None
    if label is not None and label.values.size == math.prod(image.values.shape[:-1]):
        labels = np.nan_to_num(label.values).reshape(image.values.shape[:-1]).clip(0, 255).astype(np.uint8)
    values, affine = np.moveaxis(image.values, -1, 0), image.affine
    if job.preprocessing.dims == 3:
        values, labels, affine = geometry.oriented(values, labels, affine, "RAS")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return job.number, figures.thumbnail(values[0], labels, (float(spacing[0]), float(spacing[1])))
