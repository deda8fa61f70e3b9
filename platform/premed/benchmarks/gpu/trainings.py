"""The trainings that rows are about: MAE of volumes and of pictures, and UNETR, on made-up images in memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from premed.benchmarks import mae, steps, unetr
from premed.benchmarks.gpu.context import Context
from premed.contracts import Batch, BatchIndices, Objective
from premed.data.samplers import EpochSampler
from premed.models.network import seeded_init
from premed.training.fit import fit
from premed.training.optimizer import make_optimizer
from premed.training.schedule import Schedule

STEPS, LR = 20, 3e-4
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64"}


@dataclass(frozen=True)
class Training:
    """A network with its loss, and what it is trained on. batch: images of a step. classes: of the labels, if any."""

    name: str
    sizes: mae.Sizes | unetr.Sizes
    make: Callable[[Any], Objective]
    channels: int = 1
    classes: int = 0

    @property
    def batch(self) -> int:
        return self.sizes.batch

    @property
    def roi(self) -> tuple[int, ...]:
        return self.sizes.roi

    def build(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Objective:
        """The objective, with the same weights each time."""
        with seeded_init(0, self.name):
            return self.make(self.sizes).to(device, dtype)

    def of_batch(self, batch: int) -> "Training":
        return replace(self, sizes=replace(self.sizes, batch=batch))


def small() -> list[Training]:
    """Small networks, whose steps a CPU computes, too."""
    pictures = replace(mae.PICTURES[1], channels=1)
    return [
        Training("MAE 3-D", mae.VOLUMES[1], mae.build),
        Training("MAE 2-D", pictures, mae.build),
        Training("UNETR", replace(unetr.SIZES[1], batch=2), unetr.build, classes=unetr.CLASSES),
    ]


def full(context: Context) -> list[Training]:
    """The networks of the papers, with the batches that a GPU takes; with --short the small ones."""
    if context.settings.short:
        return small()
    pictures = replace(mae.PICTURES[0], channels=1, batch=mae.PICTURES_ON_GPU)
    return [
        Training("MAE 3-D", replace(mae.VOLUMES[0], batch=mae.VOLUMES_ON_GPU), mae.build),
        Training("MAE 2-D", pictures, mae.build),
        Training("UNETR", replace(unetr.FULL, batch=unetr.ON_GPU), unetr.build, classes=unetr.CLASSES),
    ]


class InMemory:
    """A BatchLoader over `num` made-up images on the device: the same numbers on every device."""

    def __init__(self, training: Training, num: int, device: torch.device, dtype: torch.dtype = torch.float32):
        random = torch.Generator().manual_seed(0)
        coarse = [max(n // 8, 1) for n in training.roi]
        mode = "bilinear" if len(coarse) == 2 else "trilinear"
        image = nn.functional.interpolate(
            torch.randn(num, training.channels, *coarse, generator=random), training.roi, mode=mode
        )
        image += 0.1 * torch.randn(image.shape, generator=random)
        self.image, self.label = image.to(device, dtype), None
        if training.classes:
            label = torch.randint(training.classes, (num, 1, *coarse), generator=random).float()
            self.label = nn.functional.interpolate(label, training.roi)[:, 0].to(device, torch.uint8)
        self.num = num

    def batches(self, indices: Iterable[BatchIndices]) -> Iterator[Batch]:
        """See `BatchLoader.batches`."""
        for each in indices:
            at = torch.from_numpy(each.samples).to(self.image.device)
            keys = torch.from_numpy(np.asarray(each.epoch * self.num + each.samples)).to(self.image.device)
            names = tuple(map(str, each.samples))
            label = None if self.label is None else self.label[at]
            yield Batch(self.image[at], keys, names, label=label, weight=each.weight)


def train(
    objective: Objective,
    source: InMemory,
    batch: int,
    *,
    num_steps: int = STEPS,
    start: int = 0,
    stop: int | None = None,
    optimizer: Any = None,
    precision: torch.dtype = torch.float32,
    accumulate: int = 1,
) -> list[float]:
    """Trains from step `start` to `stop` of `num_steps` by premed's loop, and returns the losses of these steps."""
    losses = list[Tensor]()
    optimizer = optimizer or make_optimizer(objective, steps.BETAS)
    plan = EpochSampler(source.num, batch, stop or num_steps, 0, "bench")
    fit(
        objective,
        source,
        plan,
        Schedule(num_steps, 0, LR),
        optimizer,
        lambda step, loss, metrics: losses.append(loss),
        start=start,
        accumulate=accumulate,
        precision=precision if precision != torch.float64 else torch.float32,
    )
    return torch.stack(losses).tolist()
