"""Chooses networks, lengths, batches and rates for a machine: `none` against `mae` over three seeds.

On CPUs the recipe is that of `experiments/*/small.yaml`, with as many steps as about a quarter of an hour has room for;
on GPUs that of SelfMedMAE (`experiments/*/base.yaml`), shortened. Seconds are estimates of a core's, measured on two
cores without bf16 (docs/first-look.md): they choose lengths, and need not be right to more than a factor of two.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from premed.planning.choices import Choice, Choices
from premed.planning.images import Grid
from premed.planning.machine import Machine

SEEDS = (0, 1, 2)
PRETRAIN_SECONDS, FINETUNE_SECONDS, VALIDATION_SECONDS = 600, 240, 60  # of a stage that has its share of the cores
MAE_TOKEN, MAE_VOXEL = 0.15e-3, 8e-8  # seconds of a core for an image, in a step of pre-training
TOKEN, VOXEL = 0.27e-3, 3e-6  # the same of fine-tuning; voxels count where a decoder answers for each
NATIVE = 3e-8  # seconds per voxel and class of an image's own grid, when it is scored
PREPARE = 1e-7  # seconds per voxel of an image that is prepared
START = 60  # seconds until Ray and the packages are there, and for pictures and registration at the end
EFFICIENT = 0.8  # of further cores
FEW = {2: 300, 3: 100}  # docs/first-look.md, "The demo", for volumes; of pictures a guess
SIDED = re.compile(r"(^|[^a-z])(left|right|l|r|lt|rt)([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Data:
    """What a training is planned for."""

    dims: int
    channels: int
    classes: tuple[str, ...]
    dense: bool
    """A segmentation."""
    num: dict[str, int]
    """Images: `pretrain`, `train`, `val`, `test`."""
    voxels: float
    """Of a median image on its own grid: what most images cost."""
    most_voxels: float
    """Of the largest image: what memory must hold."""


@dataclass
class Plan:
    """The choices of everything but the task, and what they cost."""

    choices: Choices
    notes: list[str]
    minutes: float | None
    """Estimate for all experiments; None on GPUs, on which nothing was measured."""


class Cost:
    """Estimated seconds of a core."""

    def __init__(self, data: Data, grid: Grid):
        windows = math.prod(max(1, math.ceil(2 * n / edge - 1)) for n, edge in zip(grid.size, grid.roi, strict=True))
        self.pretrain = MAE_TOKEN * grid.tokens + MAE_VOXEL * math.prod(grid.roi)
        self.finetune = TOKEN * grid.tokens + (VOXEL * math.prod(grid.roi) if data.dense else 0)
        windows = windows if data.dense else 1
        self.score = windows * self.finetune / 3 + (NATIVE * data.voxels * len(data.classes) if data.dense else 0)
        self.tiles = min(8, math.prod(max(1, int(n // edge)) for n, edge in zip(grid.size, grid.roi, strict=True)))
        self.prepare = PREPARE * data.voxels


def plan(data: Data, grid: Grid, machine: Machine) -> Plan:
    """Returns the choices for a machine."""
    planned = gpu_plan(data, grid, machine) if machine.gpus else cpu_plan(data, grid, machine)
    if data.num["pretrain"] < FEW[data.dims]:
        what = (
            f"{data.num['pretrain']} images to pre-train on: MAE memorises fewer than about {FEW[data.dims]}, and may"
        )
        planned.notes.append(f"{what} not pass its gate; images without labels would help")
    return planned


def cpu_plan(data: Data, grid: Grid, machine: Machine) -> Plan:
    """Returns the choices for CPU cores alone."""
    cost, notes = Cost(data, grid), list[str]()
    stages = 2 if machine.cores > 1 and not is_large(data, machine) else 1  # at once
    cpus = max(1, machine.cores // stages)
    speed = 1 + EFFICIENT * (cpus - 1)
    epochs = 300 if data.dims == 3 else 100
    pretrain = Length("pretrain", 16 if data.dims == 3 else 64, data.num["pretrain"], epochs, notes)
    pretrain.fit(PRETRAIN_SECONDS * speed / cost.pretrain, least=300, most=3000)
    finetune = Length("finetune", 4 if data.dense else 16 if data.dims == 3 else 32, data.num["train"], epochs, notes)
    finetune.fit(FINETUNE_SECONDS * speed / cost.finetune, least=100, most=600)
    scoring = max(1, data.num["val"]) * cost.score / speed
    validations = max(3, min(6, int(VALIDATION_SECONDS / scoring)))
    views = max(1, data.num["val"]) * cost.tiles * cost.pretrain / speed
    looks = max(3, min(10, int(VALIDATION_SECONDS / views)))
    one = (finetune.seen * cost.finetune + (validations * data.num["val"] + data.num["test"]) * cost.score) / speed + 10
    pre = (pretrain.seen * cost.pretrain) / speed + looks * views + 10
    runs = 2 * len(SEEDS)
    prepare = cost.prepare * sum(data.num[part] for part in ("pretrain", "val", "test")) / machine.cores
    alone = max(0.0, pre - one * len(SEEDS))  # nothing is left to run beside the pre-training
    seconds = START + prepare + (alone + (pre - alone + one * runs) / stages if stages > 1 else pre + one * runs)
    size = "2.7 million parameters: what this machine trains in minutes, and little data supports"
    choices: Choices = {
        "encoder": Choice({"name": "vit", "width": 192, "depth": 6, "heads": 3, "patch": grid.patch}, size)
    }
    decoder = {"decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3}
    choices |= arms(decoder, 0.75)
    choices |= pretrain.choices(1.2e-3 if data.dims == 2 else 1e-3)
    choices |= {
        "pretrain.clip": Choice(1.0),
        "pretrain.validations": Choice(looks),
        "pretrain.augment": pretrain_views(data, grid),
        "finetune.head": head(data, 8),
    }
    choices |= finetune.choices(3e-3 if data.dense else 4e-4)
    choices |= {
        "finetune.clip": Choice(1.0),
        "finetune.validations": Choice(validations, "each scores all of val; the best picks the checkpoint"),
        "finetune.augment": finetune_views(data, grid),
        "finetune.label_fraction": LABELS,
    }
    why = f"{stages} trainings at once, {cpus} core{'s' * (cpus > 1)} each" if stages > 1 else "one training at a time"
    choices["train"] = Choice({"workers": 1, "cpus": cpus}, why)
    return Plan(choices, notes, seconds / 60)


def gpu_plan(data: Data, grid: Grid, machine: Machine) -> Plan:
    """Returns the choices for one GPU or several. Nothing of it was measured."""
    notes, num = list[str](), len(machine.gpus)
    big = min(machine.gpus) >= 16 and data.num["pretrain"] >= 200
    size = "base" if big else "small"
    why = "ViT-B, as in the papers" if big else "ViT-S: ViT-B wants more images, or a larger GPU"
    batch = 256 if data.dims == 2 else max(6, num)
    pretrain = Length("pretrain", batch, data.num["pretrain"], 800 if data.dims == 2 else 500, notes, num)
    pretrain.fit(20_000 * batch, least=1, most=20_000)
    finetune = Length("finetune", batch, data.num["train"], 100 if data.dims == 2 else 300, notes, num)
    finetune.fit(10_000 * batch, least=1, most=10_000)
    decoder = {"decoder_width": 256, "decoder_depth": 8, "decoder_heads": 8} if data.dims == 2 else {}
    decoder = decoder or {"decoder_width": 384, "decoder_depth": 8, "decoder_heads": 12}
    choices: Choices = {"encoder": Choice({"name": "vit", "size": size, "patch": grid.patch}, why)}
    choices |= arms(decoder, 0.75)
    choices |= pretrain.choices(1.5e-4 if data.dims == 3 else 1e-3 * min(1, batch / 1024))
    choices |= {"pretrain.augment": pretrain_views(data, grid), "finetune.head": head(data, 16)}
    choices |= finetune.choices(4e-4 if data.dims == 3 else 1e-3)
    choices |= {
        "finetune.layer_decay": Choice(0.75),
        "finetune.drop_path": Choice(0.1),
        "finetune.augment": finetune_views(data, grid),
        "finetune.label_fraction": LABELS,
    }
    cpus = max(1, machine.cores // num)
    why = "a worker for each GPU; workers: 1 runs as many experiments at once as there are GPUs"
    train = {"workers": num, "gpu": True, "cpus": cpus, "loaders": min(4, max(0, cpus - 1))}
    choices["train"] = Choice(train, why if num > 1 else "")
    return Plan(choices, notes, None)


LABELS = Choice(1.0, "[0.1, 1.0] asks with a tenth of the labels, too, where pre-training has most to give")


def is_large(data: Data, machine: Machine) -> bool:
    """True if two trainings at once might not fit into memory: each holds an answer for all voxels and classes."""
    answer = 3 * 4 * data.most_voxels * len(data.classes) / 2**30 if data.dense else 0.0
    return 2 * (2 + answer) > 0.8 * machine.memory


def arms(decoder: dict[str, Any], mask_ratio: float) -> Choices:
    """Returns the strategies and seeds."""
    mae = {"name": "mae", "mask_ratio": mask_ratio, **decoder}
    return {
        "pretext": Choice(["none", mae], "from random weights, and from a masked autoencoder on the task's own images"),
        "seeds": Choice([*SEEDS], "of the fine-tuning, for its interval; all share one pre-training"),
    }


def head(data: Data, feature_size: int) -> Choice:
    if data.dense:
        return Choice({"name": "unetr", "feature_size": feature_size})
    return Choice({"name": "linear", "pool": "mean"}, "the class token learns little in a short pre-training")


def pretrain_views(data: Data, grid: Grid) -> Choice:
    """Returns the augmentation of a pre-training: mild, for what blurs positions makes MAE's task one of averages."""
    if data.dims == 2:
        return Choice({"scale": [0.8, 1.0]}, "mild, so that position still tells something")
    if grid.covers > 0.6:
        return Choice(
            {"shift": 0}, "crops of the middle: shifted ones blur position, and the gate is passed much later"
        )
    return Choice(
        {"crops": 1}, f"crops from anywhere: the roi has {100 * grid.covers:.0f} % of an edge of the median image"
    )


def finetune_views(data: Data, grid: Grid) -> Choice:
    """Returns the augmentation of the fine-tuning."""
    sided = any(SIDED.search(name) for name in data.classes)
    flip = {} if sided else {"flip": 0.5} if data.dims == 2 else {"flip": 0.5, "flip_axes": [0]}
    why = "no mirroring: classes are left or right" if sided else "left-right mirroring; set flip: 0 if sides matter"
    if data.dims == 2:
        return Choice({"scale": [0.7, 1.0], **flip}, why)
    places = {"positive": 0.5} if data.dense and grid.covers < 0.7 else {"shift": 4}
    more = "; half of the crops are centred on a label" if "positive" in places else ""
    return Choice({**places, **flip, "intensity": 0.1}, why + more)


class Length:
    """The length of a training, and its batch: no larger than the data."""

    def __init__(self, field: str, batch: int, num: int, epochs: int, notes: list[str], multiple: int = 1):
        """num: images; epochs: the most that make sense; multiple: of workers."""
        self.field, self.num, self.epochs = field, max(1, num), epochs
        self.batch = max(multiple, min(batch, self.num // multiple * multiple))
        if self.batch < batch:
            notes.append(f"{field}.batch: {self.batch} in place of {batch}, since there are {num} images to learn from")
        self.steps = 1

    def fit(self, images: float, least: int, most: int) -> None:
        """Sets the steps that so many images make."""
        per_epoch = math.ceil(self.num / self.batch)
        steps = min(images / self.batch, most, self.epochs * per_epoch)
        self.steps = max(least, int(steps) if steps < 100 else int(steps // 50 * 50))

    @property
    def seen(self) -> int:
        """Images that all steps see."""
        return self.steps * min(self.batch, self.num)

    def choices(self, rate: float) -> Choices:
        """Returns the fields. rate: the effective learning rate."""
        epochs = max(1, round(self.steps / math.ceil(self.num / self.batch)))
        why = f"{epochs} epoch{'s' * (epochs > 1)} of {self.num} images"
        return {
            f"{self.field}.epochs": Choice(epochs, "`steps` counts in its place"),
            f"{self.field}.warmup_epochs": Choice(float(f"{0.05 * epochs:.2g}"), "5 %"),
            f"{self.field}.steps": Choice(self.steps, why),
            f"{self.field}.batch": Choice(self.batch),
            f"{self.field}.lr": Choice(
                float(f"{rate * 256 / self.batch:.2g}"), f"× batch / 256 = {rate:g}, the effective rate"
            ),
        }
