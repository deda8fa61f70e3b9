"""Row sliding-window: the logits of a whole volume beside MONAI's `sliding_window_inference`."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from premed.benchmarks import made_up, steps, unetr
from premed.benchmarks.floors import compute_floor, flops_of
from premed.benchmarks.result import Target
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.config.settings import Train
from premed.contracts import Batch
from premed.tasks.common.sliding_window import sliding_window
from premed.training.device import precision_of

LEAST = 0.995  # of the voxels have the same class
VOLUME = (160, 160, 128), (64, 48, 32)
STEPS = 20, 30  # of training, so that the network answers as trained ones do: not all classes alike


def windows(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    from monai.inferers.utils import sliding_window_inference

    sizes = settings.size(*unetr.SIZES)
    precision = precision_of(Train(gpu=settings.device != "cpu"))
    image, label = made_up.ct(settings.size(*VOLUME))
    volume = torch.from_numpy(image)[None].to(settings.device)
    torch.manual_seed(0)
    objective = unetr.build(sizes).to(settings.device)
    learn(settings, objective, volume, torch.from_numpy(label).to(settings.device), precision)
    network = objective.network.eval()

    @torch.no_grad()
    def ours() -> Tensor:
        with steps.autocast(settings, precision):
            return sliding_window(volume, sizes.roi, network)

    @torch.no_grad()
    def theirs(own: torch.dtype = torch.float32) -> Tensor:
        with steps.autocast(settings, own):
            stitched: Any = sliding_window_inference(volume[None], sizes.roi, 4, network, overlap=0.5)
        return stitched[0]

    flops, found = 0, list[Tensor]()
    flops = flops_of(lambda: found.append(ours()))
    names = {torch.float32: "fp32", torch.bfloat16: "bf16"}
    floor: Any = lambda: compute_floor(settings, flops, precision)  # noqa: E731
    shape = " × ".join(map(str, volume.shape[1:]))
    about = f"{shape}, windows {sizes.roi[0]}³ that overlap by half; UNETR as in the row unetr"
    same = same_classes(found[0], theirs())
    yield Comparison(
        "MONAI in fp32",
        ours,
        theirs,
        "a volume",
        f"{about}; premed in {names[precision]}",
        same,
        floor,
        Target(1.1, 1.5),
    )
    if precision != torch.float32:
        same = same_classes(found[0], theirs(precision))
        yield Comparison(
            f"MONAI in {names[precision]}",
            ours,
            lambda: theirs(precision),
            "a volume",
            about,
            same,
            floor,
            Target(1.1, 1.5),
        )


def learn(settings: Settings, objective: Any, volume: Tensor, label: Tensor, precision: torch.dtype) -> None:
    """Trains on one crop for some steps."""
    roi = objective.network.encoder.grid
    size = [n * edge for n, edge in zip(roi, objective.network.encoder.patch, strict=True)]
    place = tuple(slice((n - edge) // 2, (n - edge) // 2 + edge) for n, edge in zip(label.shape, size, strict=True))
    keys = torch.zeros(1, dtype=torch.int64, device=volume.device)
    batch = Batch(volume[(slice(None), *place)][None], keys, ("0",), label=label[place][None])
    step = steps.premed_step(objective, batch, precision, lr=4e-3)
    for _ in range(settings.size(*STEPS)):
        step()


def same_classes(ours: Tensor, theirs: Tensor) -> str:
    """Raises NotTheSame if the most likely classes differ in more than a few voxels, or if there is one class alone."""
    a, b = ours.argmax(dim=0), theirs.argmax(dim=0)
    share, classes = float((a == b).double().mean()), len(b.unique())
    if share < LEAST:
        raise NotTheSame(f"the most likely class is the same in {share:.2%} of the voxels, not in {LEAST:.1%}")
    return f"the same most likely class in {share:.2%} of the voxels ({classes} classes occur)"
