"""Cuts views of many images at once out of one tensor that holds them all, on any device.

A batch is described by small arrays, which are made where its draws are: where each view's voxels are, as an offset for
each of its axes, so that mirroring and quarter turns cost nothing, and what they are multiplied by. Voxels are the
stored integers, and the float32 operations on them are those of `PreparedFile.values` and `transforms`, one by one: the
views are equal to those of `views.py`, bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from premed.data import resizing, transforms
from premed.data.views import ViewParams

CHUNK = 2**24  # voxels that are gathered at once: each needs 8 bytes for where it is
BEYOND = -(2**60)  # an offset that makes any sum of three negative: the voxel is not in the image


class Place(NamedTuple):
    """Where an image is, and what its numbers mean."""

    store: str  # the tensor that has it: there is one for each dtype
    begin: int
    channels: int
    shape: tuple[int, ...]
    scale: np.ndarray  # [C] float32
    offset: np.ndarray  # [C] float32
    label: int | None  # where its label map begins, in a tensor of their own


class Crops(NamedTuple):
    """Views that are not resized: arrays, or tensors once they are on the device."""

    store: str
    rows: Any  # [n] int64: their places in the batch
    scale: Any  # [n, C] float32
    offset: Any  # [n, C] float32
    begins: Any  # [n, C] int64: the first voxel of each channel
    offsets: tuple[Any, ...]  # for each axis of a view, [n, S_i] int64: what is added to that
    inside: bool  # whether all voxels are in their image
    intensity: Any  # [n, 2] float32: factors and shifts; None: no view is changed
    labels: Any  # [n] int64: the first voxel of the label map; None: they have none
    sliced: bool  # whether the views lose their last axis, of length one

    @property
    def work(self) -> int:
        """Voxels that one view takes."""
        return self.begins.shape[1] * prod(each.shape[1] for each in self.offsets)

    def cut(self, store: Tensor) -> Tensor:
        """The views, float32 [n, C, *S]."""
        image = in_units(gather(store, self.begins, self.offsets, self.inside), self.scale, self.offset)
        if self.intensity is not None:
            factor, shift = (each.view(-1, *(1,) * (image.ndim - 1)) for each in self.intensity.T)
            image.mul_(factor).add_(shift)
        return image[..., 0] if self.sliced else image

    def cut_labels(self, store: Tensor) -> Tensor | None:
        """Their label maps, uint8 [n, *S]."""
        if self.labels is None:
            return None
        return gather(store, self.labels[:, None], self.offsets, self.inside)[:, 0]


class Resized(NamedTuple):
    """Random resized crops of 8-bit pictures: arrays, or tensors once they are on the device."""

    store: str
    rows: Any  # [n] int64: their places in the batch
    scale: Any  # [n, C] float32
    offset: Any  # [n, C] float32
    boxes: resizing.Boxes

    @property
    def work(self) -> int:
        """Pixels that one view takes."""
        return self.boxes.work

    def cut(self, store: Tensor) -> Tensor:
        """The views, float32 [n, C, H, W]."""
        return in_units(resizing.resize(store, self.boxes), self.scale, self.offset)

    def cut_labels(self, store: Tensor) -> None:
        """Pictures have no label maps."""


Group = Crops | Resized


# ---- Describing views


def groups_of(places: Sequence[Place], params: Sequence[ViewParams]) -> list[Group]:
    """Describes the views of a batch, those together that are made in the same way."""
    kinds: dict[tuple[str, bool, bool], list[int]] = {}
    for row, (place, each) in enumerate(zip(places, params, strict=True)):
        kinds.setdefault((place.store, each.resize is not None, each.slice is not None), []).append(row)
    return [
        (resized_of if resized else crops_of)(rows, [places[row] for row in rows], [params[row] for row in rows])
        for (_, resized, _), rows in kinds.items()
    ]


def crops_of(rows: Sequence[int], places: Sequence[Place], params: Sequence[ViewParams]) -> Crops:
    """Describes views of images of one store that are not resized."""
    per_view = [offsets_of(*each) for each in zip(places, params, strict=True)]
    offsets = tuple(np.stack(each) for each in zip(*per_view, strict=True))
    intensity = np.array([(each.factor, each.shift) for each in params]).astype(np.float32)
    labels = [place.label for place, each in zip(places, params, strict=True) if each.label_map]
    return Crops(
        places[0].store,
        np.array(rows),
        *units_of(places, params),
        begins_of(places, params),
        offsets,
        inside=all((each >= 0).all() for each in offsets),
        intensity=intensity if (intensity != (1, 0)).any() else None,
        labels=np.array(labels) if labels else None,
        sliced=params[0].slice is not None,
    )


def offsets_of(place: Place, params: ViewParams) -> list[np.ndarray]:
    """For each axis of a view, int64 [S_i]: the sum of one of each is where in its channel a voxel is."""
    offsets = [np.zeros(size, np.int64) for size in params.size]
    for axis, (first, size, length) in enumerate(zip(params.start, params.size, place.shape, strict=True)):
        at = first + np.arange(size)
        along = np.where((at >= 0) & (at < length), at * prod(place.shape[axis + 1 :]), BEYOND)
        moved = transforms.move(
            along.reshape([size if i == axis else 1 for i in range(len(params.size))]), params.moves
        )
        offsets[int(np.argmax(moved.shape)) if size > 1 else axis] += moved.reshape(-1)
    if params.slice is not None:
        offsets[-1] = offsets[-1][params.slice : params.slice + 1]
    return offsets


def resized_of(rows: Sequence[int], places: Sequence[Place], params: Sequence[ViewParams]) -> Resized:
    """Describes pictures of one store that are resized."""
    assert params[0].resize is not None
    corners = np.array([top * place.shape[1] + left for place, ((top, left), *_) in zip(places, params, strict=True)])
    boxes = resizing.boxes_of(
        begins_of(places, params) + corners[:, None],
        [place.shape[1] for place in places],
        [(each.size[0], each.size[1]) for each in params],
        params[0].resize,
        [each.moves.flips for each in params],
    )
    return Resized(places[0].store, np.array(rows), *units_of(places, params), boxes)


def begins_of(places: Sequence[Place], params: Sequence[ViewParams]) -> np.ndarray:
    """Where each view's channels begin, [n, C]."""
    pairs = zip(places, params, strict=True)
    return np.stack([place.begin + prod(place.shape) * channels_of(place, each) for place, each in pairs])


def units_of(places: Sequence[Place], params: Sequence[ViewParams]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of each view's channels, [n, C]."""
    chosen = [channels_of(*each) for each in zip(places, params, strict=True)]
    scale = [place.scale[some] for place, some in zip(places, chosen, strict=True)]
    return np.stack(scale), np.stack([place.offset[some] for place, some in zip(places, chosen, strict=True)])


def channels_of(place: Place, params: ViewParams) -> np.ndarray:
    """The channels of a view."""
    first, number = params.channels or (0, place.channels)
    return np.arange(first, first + number)


# ---- On the device


def gather(store: Tensor, begins: Tensor, offsets: Sequence[Tensor], inside: bool) -> Tensor:
    """Voxels [n, C, *S] of a store, from where channels begin [n, C] and what each axis adds [n, S_i]; else 0."""
    index = begins.view(*begins.shape, *(1,) * len(offsets))
    for axis, each in enumerate(offsets):
        index = index + each.view(len(each), 1, *(-1 if i == axis else 1 for i in range(len(offsets))))
    if inside:
        return store[index]
    known = index >= 0
    return store[index.clamp_(min=0)].mul_(known)


def in_units(stored: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Stored values [n, C, *S] in the units that networks take, float32."""
    ones = (1,) * (stored.ndim - 2)
    return stored.float().mul_(scale.view(*scale.shape, *ones)).add_(offset.view(*offset.shape, *ones))


Tree = TypeVar("Tree")


def mapped(tree: Tree, function: Callable[[Any], Any]) -> Tree:
    """The same with each array or tensor in nested tuples replaced."""
    if isinstance(tree, (np.ndarray, Tensor)):
        return function(tree)
    if not isinstance(tree, tuple):
        return tree
    made = [mapped(each, function) for each in tree]
    return type(tree)(*made) if hasattr(tree, "_fields") else tuple(made)  # type: ignore[return-value]


def parts(group: Group) -> Iterator[Group]:
    """Yields the group in parts of at most CHUNK voxels, or of one view."""
    size = max(1, CHUNK // group.work)
    for first in range(0, len(group.rows), size):
        yield mapped(group, lambda each, first=first: each[first : first + size])
