"""Prepared images that stay on the device: `ResidentLoader` cuts each batch's views there, all at once.

Draws are made on CPUs, from the keys of which `PreparedLoader` makes them, by the loader processes if there are any.
The batches are equal, bit for bit.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from premed.contracts import Batch, BatchIndices, DataSet, Sample
from premed.data.gathering import Group, Place, groups_of, mapped, parts
from premed.data.loader import PreparedLoader, Views
from premed.data.prepared import header

LABELS = "labels"  # the store of label maps; the others have the names of their dtypes


def places_of(samples: Sequence[Sample]) -> tuple[list[Place], dict[str, int]]:
    """Where each sample's image is to be, and how many values each store has. A file is held once."""
    places, sizes = dict[Any, Place](), {LABELS: 0}
    for sample in samples:
        if (path := sample.prepared.path) in places:
            continue
        arrays, facts = header(path)
        dtype, (channels, *shape), _ = arrays["image"]
        begin, label = sizes.get(dtype.name, 0), sizes[LABELS] if has_map(sample) else None
        scale, offset = (np.array(facts[name], np.float32).reshape(-1) for name in ("scale", "offset"))
        places[path] = Place(dtype.name, begin, channels, tuple(shape), scale, offset, label)
        sizes[dtype.name] = begin + channels * prod(shape)
        sizes[LABELS] += 0 if label is None else prod(shape)
    return [places[sample.prepared.path] for sample in samples], sizes


def has_map(sample: Sample) -> bool:
    """Whether its label is a map."""
    return sample.case.label is not None and sample.prepared.has_label


def num_bytes(sizes: Mapping[str, int]) -> int:
    """The bytes of stores with so many values."""
    return sum(size * (1 if store == LABELS else np.dtype(store).itemsize) for store, size in sizes.items())


class KnownImage:
    """What draws ask a PreparedFile for; its shape is kept, so that no file is opened for it."""

    def __init__(self, sample: Sample, place: Place):
        self.prepared, self.shape = sample.prepared, place.shape

    @property
    def counts(self) -> dict[int, int]:
        return self.prepared.counts

    def locations(self, label: int) -> np.ndarray:
        return self.prepared.locations(label)


class DrawnViews(Views):
    """Maps BatchIndices to what `ResidentLoader.batch` makes a batch of: draws, and no voxels."""

    def __init__(self, views: Views, places: Sequence[Place]):
        known: Any = [KnownImage(*pair) for pair in zip(views.samples, places, strict=True)]
        samples = [sample._replace(prepared=image) for sample, image in zip(views.samples, known, strict=True)]
        super().__init__(views.data_sets, samples, views.seed, views.stage, views.num_loaders)
        self.places = places

    def __getitem__(self, indices: BatchIndices) -> Any:
        drawn, params = list(self.drawn(indices)), []
        for i, draw in drawn:
            task, _, augment = self.data_sets[self.samples[i].data_set]
            params.append(task.view_params(self.samples[i], augment, draw))  # type: ignore[attr-defined]
        label = None if params[0].label is None else np.stack([each.label for each in params])
        keys, data_set, names = self.about(drawn)
        groups = groups_of([self.places[i] for i, _ in drawn], params)
        return groups, (label, keys, data_set), names, indices.weight


class ResidentLoader(PreparedLoader):
    """A BatchLoader over images that it holds on the device. Raises torch's out-of-memory error if they do not fit.

    Tasks have `view_params`, see `views.ViewParams`.
    """

    def __init__(self, data_sets: Sequence[DataSet], samples: Sequence[Sample], *, device: torch.device, **how: Any):
        """how: see `PreparedLoader`."""
        super().__init__(data_sets, samples, device=device, **how)
        places, sizes = places_of(samples)
        self.num_bytes = num_bytes(sizes)
        self.stores = {store: torch.empty(n, dtype=dtype_of(store), device=device) for store, n in sizes.items()}
        held = dict[Any, None]()
        for sample, place in zip(samples, places, strict=True):
            if sample.prepared.path not in held:
                held[sample.prepared.path] = None
                self.hold(sample, place)
        self.views = DrawnViews(self.views, places)

    def hold(self, sample: Sample, place: Place) -> None:
        """Copies an image, and its label map, to its place."""
        pairs = [(place.store, place.begin, sample.prepared.stored())]
        pairs += [] if place.label is None else [(LABELS, place.label, sample.prepared.label())]
        for store, begin, values in pairs:
            self.stores[store][begin : begin + values.size].copy_(torch.from_numpy(values.reshape(-1)))

    def batch(self, made: Any) -> Batch:
        """The Batch of what `views` drew."""
        groups, arrays, names, weight = made
        label, keys, data_set = (None if each is None else self.put(each) for each in arrays)
        image, label_map = self.cut([mapped(group, self.put) for group in groups])
        assert keys is not None
        label = label_map if label is None else label
        return Batch(image, keys, tuple(names), label=label, weight=weight, data_set=data_set)

    def put(self, array: np.ndarray) -> Tensor:
        """A copy on the device, for which no earlier work there is waited."""
        tensor = torch.from_numpy(array)
        tensor = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return tensor.to(self.device, non_blocking=True)

    def cut(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor | None]:
        """The views [B, C, *S] of groups on the device, and their label maps."""
        images, labels = [], []
        for part in chain(*map(parts, groups)):
            images.append(part.cut(self.stores[part.store]))
            labels.append(part.cut_labels(self.stores[LABELS]))
        order = torch.cat([group.rows for group in groups]).argsort() if len(groups) > 1 else None
        return joined(images, order), None if labels[0] is None else joined(labels, order)


def joined(views: Sequence[Tensor], order: Tensor | None) -> Tensor:
    """Parts of a batch as one. order: of the batch's rows, where parts are not in it."""
    if len(views) == 1:
        return views[0].contiguous()
    return torch.cat(list(views)) if order is None else torch.cat(list(views))[order]


def dtype_of(store: str) -> torch.dtype:
    return torch.uint8 if store == LABELS else getattr(torch, store)
