"""A task as a network for pictures sees it: one slice of a volume at a time, and one channel where it has too many."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from premed.config.transforms import Augmentation
from premed.contracts import Sample, Task
from premed.rng import SampleRng


class Sliced:
    """`task`, whose views are one slice of its own, drawn, along the last axis; its tiles' are the middle ones.

    channels: as many as the task's, or 1: then a channel is drawn, too, and tiles show the first. A crop of one slice
    (`roi: [64, 64, 1]`) is the cheapest to read, and lies anywhere in the volume. Nothing has a label. All else is the
    task's own.
    """

    def __init__(self, task: Task, channels: int):
        self.task, self.channels = task, channels
        self.dims, self.roi = 2, tuple(task.roi[:2])

    def __getattr__(self, name: str) -> Any:
        if name == "task":  # unpickling asks before there is one
            raise AttributeError(name)
        return getattr(self.task, name)

    def describe(self) -> dict[str, Any]:
        own = {"dims": self.dims, "channels": self.channels, "roi": list(self.roi)}
        return self.task.describe() | own | {"answer": None}

    def view(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> tuple[np.ndarray, None]:
        """[channels, H, W], and no label."""
        image, _ = self.task.view(sample, augment, draw)
        if image.ndim == 4:
            image = image[..., draw.integer("slice", image.shape[-1])]
        first = draw.integer("channel", len(image)) if self.channels < len(image) else 0
        return np.ascontiguousarray(image[first : first + self.channels]), None

    def tiles(self, sample: Sample) -> list[np.ndarray]:
        """[channels, H, W] each."""
        tiles = self.task.tiles(sample)
        flat: Sequence[np.ndarray] = [tile[..., tile.shape[-1] // 2] if tile.ndim == 4 else tile for tile in tiles]
        return [np.ascontiguousarray(tile[: self.channels]) for tile in flat]
