"""What a data set's images are like: grids, by their headers; intensities and labels, by a sample of the images.

`premed init` plans with it. Unlike `check` it opens few images, says how many, and finds no fault but unreadable files.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from premed.contracts import Case
from premed.data.io.headers import Header, read_header
from premed.data.io.readers import read_file, read_finite
from premed.errors import UserError

MOST_HEADERS, MOST_SLICES = 1000, 20  # headers that are read; of folders of DICOM slices, which have one each
MOST_PICTURES, MOST_VOLUMES = 60, 8  # images whose values are read
MOST_VALUES = 100_000  # of each image and channel
LARGEST_SAMPLE = 2**28  # voxels: images above it are not opened for their values


@dataclass
class Values:
    """Percentiles of a sample: the lowest value, 0.5 %, 50 %, 99.5 % and the highest."""

    percentiles: tuple[float, float, float, float, float]
    num: int
    """Images that were read."""


@dataclass
class Survey:
    """Facts by which settings are chosen; headers and samples are spread evenly over the cases."""

    total: int
    headers: list[Header] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Messages that name the files."""
    too_large: int = 0
    """Images that were to be opened for their values and have more than LARGEST_SAMPLE voxels."""
    values: Values | None = None
    """Of all voxels; None if no image was read."""
    labelled: Values | None = None
    """Of the voxels that a label map labels."""
    zero_share: float = 0.0
    """The smallest share of voxels of exactly 0 in an image, over its channels: background that was removed."""
    lung_share: float = 0.0
    """The mean share of values of lung (-950 to -600) among those above air (-950): of CT in Hounsfield units."""
    bits: int = 8
    """Of pictures, as they are displayed: 8, or 16 if one has more."""
    colour: bool = False
    """True if a picture's channels differ."""

    @property
    def spacings(self) -> np.ndarray:
        """[n, 3] mm along R, A, S."""
        return np.array([header.spacing for header in self.headers if header.spacing]).reshape(-1, 3)

    @property
    def shapes(self) -> np.ndarray:
        """[n, dims]."""
        return np.array([header.shape for header in self.headers])

    @property
    def modalities(self) -> Counter[str]:
        return Counter(header.modality for header in self.headers if header.modality)


def spread(some: Sequence, most: int) -> list:
    """Returns `most` items, evenly spread."""
    if len(some) <= most:
        return [*some]
    return [some[i * len(some) // most] for i in range(most)]


def survey(cases: Sequence[Case], dims: int, progress: Callable[[int, int], None]) -> Survey:
    """Reads headers, and a sample of the images. progress: called with the number of images done and in total."""
    folders = any(case.image[0].is_dir() for case in cases[:20])
    headed = spread(cases, MOST_SLICES if folders else MOST_HEADERS)
    sampled = spread([case for case in cases if isinstance(case.label, Path)] or cases, MOST_VOLUMES)
    sampled = spread(cases, MOST_PICTURES) if dims == 2 else sampled
    found, total = Survey(len(cases)), len(headed) + len(sampled)
    for done, case in enumerate(headed, 1):
        try:
            found.headers.append(read_header(case.image[0]))
        except UserError as error:
            found.unreadable.append(str(error))
        progress(done, total)
    read_sample(found, sampled, dims, lambda done: progress(len(headed) + done, total))
    return found


def read_sample(found: Survey, cases: Sequence[Case], dims: int, progress: Callable[[int], None]) -> None:
    """Adds what the values of some images say."""
    images, labelled, zeros, lungs = list[np.ndarray](), list[np.ndarray](), list[float](), list[float]()
    for done, case in enumerate(cases, 1):
        try:
            large = not all(map(is_small, case.image))
            found.too_large += large
            channels = [] if large else [read_finite(path, shown=dims == 2) for path in case.image]
        except UserError as error:
            found.unreadable += [str(error)] if str(error) not in found.unreadable else []
            channels = []
        for file in channels:
            values = file.values if file.values.ndim > dims else file.values[..., None]
            if dims == 2:
                found.bits = max(found.bits, 8 if values.dtype == np.uint8 else 16)
                found.colour |= bool((values != values[..., :1]).any())
            zeros += [float((values[..., channel] == 0).mean()) for channel in range(values.shape[-1])]
        if channels:
            values = np.concatenate([thinned(file.values) for file in channels])
            images.append(values)
            inside = values[values > -950]
            lungs.append(float((inside < -600).mean()) if len(inside) else 0.0)
            labelled += labelled_values(case, channels[0].values, dims)
        progress(done)
    if images:
        found.values = Values(percentiles(images), len(images))
        found.zero_share, found.lung_share = min(zeros), float(np.mean(lungs))
    if labelled:
        found.labelled = Values(percentiles(labelled), len(labelled))


def is_small(path: Path) -> bool:
    return int(np.prod(read_header(path).shape)) <= LARGEST_SAMPLE


def thinned(values: np.ndarray) -> np.ndarray:
    """Returns at most some MOST_VALUES values, at even distances, and one at least."""
    flat = values.reshape(-1)
    return flat[:: max(1, len(flat) // MOST_VALUES)].astype(np.float32)


def labelled_values(case: Case, values: np.ndarray, dims: int) -> list[np.ndarray]:
    """Returns the values of an image's labelled voxels; none if its label map is not on its grid or is empty."""
    if not isinstance(case.label, Path):
        return []
    try:
        label = read_file(case.label).values
    except UserError:  # `premed data check` names it
        return []
    label = label.reshape(label.shape[:dims]) if label.ndim == dims + 1 and label.shape[-1] == 1 else label
    channel = values if values.ndim == dims else values[..., 0]
    if label.shape != channel.shape or not (label > 0).any():
        return []
    return [thinned(channel[label > 0])]


def percentiles(samples: Sequence[np.ndarray]) -> tuple[float, float, float, float, float]:
    """Returns the lowest, 0.5 %, 50 %, 99.5 % and highest value over images that count alike, whatever their size."""
    each = min(map(len, samples))
    joined = np.concatenate([sample[:: max(1, len(sample) // max(each, 1000))] for sample in samples])
    low, middle, high = np.percentile(joined, (0.5, 50, 99.5)).tolist()
    lowest, highest = (float(f(list(map(f, samples)))) for f in (np.min, np.max))
    return lowest, low, middle, high, highest
