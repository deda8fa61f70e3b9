"""Row scores: Dice and HD95 of 13 organs from two label maps beside MONAI's, with equal values."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from premed.benchmarks import made_up
from premed.benchmarks.floors import copy_floor
from premed.benchmarks.result import Target
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.tasks.common import metrics
from premed.tasks.common.segmentation import Segmentation

SHAPE = (256, 256, 128), (64, 64, 48)
SPACING = (1.5, 1.5, 2.0)
CLASSES = 14


class Organs(Segmentation):
    """The background and 13 organs."""

    classes = tuple(map(str, range(CLASSES)))


def scores(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    from monai.metrics import compute_dice, compute_hausdorff_distance
    from monai.networks.utils import one_hot

    _, truth = made_up.ct(settings.size(*SHAPE))
    prediction, task = a_little_off(truth), Organs()
    volumes = [torch.from_numpy(each)[None, None] for each in (prediction, truth)]

    def ours() -> dict[str, Any]:
        return metrics.region_row(task.known_masks(prediction, truth), task.region_masks(truth), SPACING)

    def theirs() -> tuple[Any, Any]:
        predicted, true = (one_hot(each, CLASSES) for each in volumes)
        dice = compute_dice(predicted, true, include_background=False)
        distance = compute_hausdorff_distance(predicted, true, include_background=False, percentile=95, spacing=SPACING)
        return dice, distance

    same = assert_equal(ours(), *theirs())
    shape = " × ".join(map(str, truth.shape))
    yield Comparison(
        "MONAI",
        ours,
        theirs,
        unit="a case",
        sizes=f"13 classes, {shape} voxels of {' × '.join(map(str, SPACING))} mm",
        same=same,
        floor=lambda: copy_floor(settings, 2 * truth.nbytes, "both label maps, read once"),
        target=Target(12, 20),
    )


def a_little_off(truth: np.ndarray) -> np.ndarray:
    """A prediction: the label map moved by a voxel or two."""
    return np.roll(truth, (1, -2, 1), axis=(0, 1, 2))


def assert_equal(row: dict[str, Any], dice: torch.Tensor, distance: torch.Tensor) -> str:
    """Raises NotTheSame if a score is another than MONAI's."""
    ours = np.array([[row[f"{score}/{label}"] for label in range(1, CLASSES)] for score in ("dice", "hd95")])
    apart = np.abs(ours - np.stack([dice[0].numpy(), distance[0].numpy()])).max(axis=1)
    if not (apart[0] < 1e-6 and apart[1] < 1e-4):
        raise NotTheSame(f"Dice apart by {apart[0]:.1e}, HD95 by {apart[1]:.1e} mm")
    return f"equal Dice and HD95 of each class (apart by {apart[0]:.0e}, {apart[1]:.0e} mm)"
