"""The voxels of each label on which crops are centred, sampled when an image is prepared."""

import numpy as np

from premed.data.preprocess import Prepared
from premed.rng import key, uniform

MAX_LOCATIONS = 5000  # per label


def sampled_locations(prepared: Prepared) -> tuple[np.ndarray, dict[int, tuple[int, int, int]]]:
    """Sampled voxels [n, dims], and for each label: its first row, its number of rows, its number of voxels."""
    label = prepared.label
    assert label is not None
    parts, labels, first = [], {}, 0
    for number in np.flatnonzero(np.bincount(label.ravel(), minlength=256)):
        hit = label == number
        if number == 0:
            hit &= (prepared.image != 0).any(axis=0)
        places = np.flatnonzero(hit)
        count = len(places)
        if count > MAX_LOCATIONS:  # one from each of MAX_LOCATIONS equal intervals
            edges = np.arange(MAX_LOCATIONS + 1) * count // MAX_LOCATIONS
            within = uniform(np.asarray(key("locations", int(number)), np.int64), MAX_LOCATIONS)
            places = places[edges[:-1] + (within.astype(np.float64) * np.diff(edges)).astype(np.intp)]
        if count:
            labels[int(number)] = (first, len(places), count)
            parts.append(np.stack(np.unravel_index(places, label.shape), axis=1))
            first += len(places)
    dtype = np.int16 if max(label.shape) < 2**15 else np.int32
    return np.concatenate(parts).astype(dtype) if parts else np.zeros((0, label.ndim), dtype), labels
