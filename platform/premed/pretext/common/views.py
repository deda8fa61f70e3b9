"""Random views of a batch of images, made on its device: what two views of an image differ by in contrastive learning.

Each is a pure function of its image and its key. Beside `views.py`, which cuts one image out of a file.
"""

from math import prod, sqrt

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from premed.config.spec import Spec
from premed.rng import fold, uniform


class Jitter(Spec):
    """How far two views of an image may lie apart; 0, and [1, 1], leave them alike."""

    area: tuple[float, float] = (0.3, 1.0)
    """The share of the area (or the volume) that a view shows, at the image's own size and proportions."""
    contrast: float = Field(default=0.5, ge=0, lt=1)
    """Differences from the mean are multiplied by 1 ± this."""
    brightness: float = Field(default=0.5, ge=0)
    """± this many standard deviations are added."""
    noise: float = Field(default=0.1, ge=0)
    """White noise of up to so many standard deviations."""

    @field_validator("area")
    @classmethod
    def _share(cls, area: tuple[float, float]) -> tuple[float, float]:
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"{list(area)} are not shares of the area: give [low, high] with 0 < low <= high <= 1")
        return area


def jittered(image: Tensor, keys: Tensor, how: Jitter) -> Tensor:
    """Other views of images [B, C, *S], of the same shape, drawn by keys [B]."""
    image = cut(image.float(), keys, how.area)
    axes, ones = tuple(range(2, image.ndim)), (1,) * (image.ndim - 1)
    deviation, mean = torch.std_mean(image, axes, keepdim=True, correction=0)
    contrast, brightness, amount = (draw.view(-1, *ones) for draw in uniform(fold(keys, "intensity"), 3).T)
    image = mean + (image - mean) * (1 + how.contrast * (2 * contrast - 1))
    image = image + deviation * how.brightness * (2 * brightness - 1)
    if how.noise:
        noise = uniform(fold(keys, "noise"), prod(image.shape[1:])).view_as(image)
        image = image + deviation * how.noise * amount * sqrt(12) * (noise - 0.5)  # even noise, of deviation 1
    return image


def cut(image: Tensor, keys: Tensor, area: tuple[float, float]) -> Tensor:
    """A box of a random share of the area, anywhere inside, stretched to the image's size (linearly)."""
    dims = image.ndim - 2
    share, *places = uniform(fold(keys, "box"), 1 + dims).T
    edge = (area[0] + (area[1] - area[0]) * share) ** (1 / dims)
    boxes = torch.zeros(len(image), dims, dims + 1, device=image.device)  # in [-1, 1], as affine_grid has it
    for axis, place in enumerate(places):
        boxes[:, axis, axis] = edge
        boxes[:, axis, dims] = (1 - edge) * (2 * place - 1)
    grid = F.affine_grid(boxes, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)
