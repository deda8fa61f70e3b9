"""A small HSSL, and images for it."""

from typing import Any

import numpy as np

SMALL: dict[str, Any] = {"dim": 6, "hidden_width": 12, "block": 4}


class Images:
    """The little of a task that HSSL asks for; a sample's tiles are drawn from its number."""

    dims, channels, name = 2, 1, "images"

    def __init__(self, roi=(16, 24)):
        self.roi = roi

    def tiles(self, sample) -> list[np.ndarray]:
        rng = np.random.default_rng(sample.number)
        return [rng.normal(size=(1, *self.roi)).astype(np.float32) for _ in range(1 + sample.number % 3)]
