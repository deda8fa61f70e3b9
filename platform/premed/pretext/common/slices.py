"""A task as a 2D network sees it: one slice of a volume, and one of its channels if it has too many."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from premed.config.image_processing import Augmentation
from premed.contracts import Sample, Task
from premed.data.views import ViewParams
from premed.rng import SampleRng


class SlicedTask:
    """Wraps `task`: a view is a random slice, along the last axis, of the task's; a tile the middle slice of one.

    channels: the task's number, or 1: views then have a random channel, and tiles the first. A crop of one slice
    (`roi: [64, 64, 1]`) is the cheapest to read, and lies anywhere in the volume. There are no labels. All other
    attributes are the task's.
    """

    def __init__(self, task: Task, channels: int):
        self.task, self.channels = task, channels
        self.dims, self.roi = 2, tuple(task.roi[:2])

    def __getattr__(self, name: str) -> Any:
        if name == "task":  # unpickling looks attributes up before `task` is set
            raise AttributeError(name)
        return getattr(self.task, name)

    def describe(self) -> dict[str, Any]:
        overrides = {"dims": self.dims, "channels": self.channels, "roi": list(self.roi)}
        return self.task.describe() | overrides | {"answer": None}

    def view(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> tuple[np.ndarray, None]:
        """Returns a view [channels, H, W], and no label."""
        image, _ = self.task.view(sample, augment, draw)
        if image.ndim == 4:
            image = image[..., draw.integer("slice", image.shape[-1])]
        first = draw.integer("channel", len(image)) if self.channels < len(image) else 0
        return np.ascontiguousarray(image[first : first + self.channels]), None

    def view_params(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> ViewParams:
        params = self.task.view_params(sample, augment, draw)._replace(label_map=False, label=None)  # type: ignore[attr-defined]
        if len(params.size) == 3:
            params = params._replace(slice=draw.integer("slice", params.size[-1]))
        first = draw.integer("channel", self.task.channels) if self.channels < self.task.channels else 0
        return params._replace(channels=(first, self.channels))

    def tiles(self, sample: Sample) -> list[np.ndarray]:
        """Returns the fixed views [channels, H, W]."""
        tiles = self.task.tiles(sample)
        slices: Sequence[np.ndarray] = [tile[..., tile.shape[-1] // 2] if tile.ndim == 4 else tile for tile in tiles]
        return [np.ascontiguousarray(tile[: self.channels]) for tile in slices]
