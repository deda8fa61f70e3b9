"""Random augmentation of a batch of images on its device, for contrastive learning.

Each view is a pure function of its image and its key. `data/views.py` crops single images from files.
"""

from math import prod, sqrt

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from premed.config.spec import Spec
from premed.rng import fold, uniform


class Jitter(Spec):
    """Strength of the random differences between two views; 0, and [1, 1], turn a difference off."""

    area: tuple[float, float] = (0.3, 1.0)
    """Range of a random resized crop's area (or volume), as shares; it keeps the image's size and proportions."""
    contrast: float = Field(default=0.5, ge=0, lt=1)
    """Differences from the mean are multiplied by 1 ± this at the most."""
    brightness: float = Field(default=0.5, ge=0)
    """An offset of up to ± this many standard deviations."""
    noise: float = Field(default=0.1, ge=0)
    """White noise with a deviation of up to this many standard deviations of the image."""

    @field_validator("area")
    @classmethod
    def _share(cls, area: tuple[float, float]) -> tuple[float, float]:
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"{list(area)} are not shares of the area: give [low, high] with 0 < low <= high <= 1")
        return area


def jitter(image: Tensor, keys: Tensor, config: Jitter) -> Tensor:
    """Returns a random view of each image [B, C, *S], of the same shape, drawn by keys [B]."""
    image = random_resized_crop(image.float(), keys, config.area)
    axes, ones = tuple(range(2, image.ndim)), (1,) * (image.ndim - 1)
    deviation, mean = torch.std_mean(image, axes, keepdim=True, correction=0)
    contrast, brightness, amount = (draw.view(-1, *ones) for draw in uniform(fold(keys, "intensity"), 3).T)
    image = mean + (image - mean) * (1 + config.contrast * (2 * contrast - 1))
    image = image + deviation * config.brightness * (2 * brightness - 1)
    if config.noise:
        noise = uniform(fold(keys, "noise"), prod(image.shape[1:])).view_as(image)
        image = image + deviation * config.noise * amount * sqrt(12) * (noise - 0.5)  # uniform noise with deviation 1
    return image


def random_resized_crop(image: Tensor, keys: Tensor, area: tuple[float, float]) -> Tensor:
    """Crops a random share of the area at a random place and resizes it to the image's size, linearly."""
    dims = image.ndim - 2
    share, *places = uniform(fold(keys, "box"), 1 + dims).T
    edge = (area[0] + (area[1] - area[0]) * share) ** (1 / dims)
    boxes = torch.zeros(len(image), dims, dims + 1, device=image.device)  # in [-1, 1], the coordinates of affine_grid
    for axis, place in enumerate(places):
        boxes[:, axis, axis] = edge
        boxes[:, axis, dims] = (1 - edge) * (2 * place - 1)
    grid = F.affine_grid(boxes, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)
