"""The rows of `premed bench`, and where each is made. Importing this imports none of them."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import NamedTuple

from premed.benchmarks.settings import Comparison, NotMeasured, Settings
from premed.errors import UserError


class Row(NamedTuple):
    """One row. A row yields comparisons, each after its assertions; what a peer lacks is a `NotMeasured`."""

    name: str
    what: str
    peers: str
    where: str  # module and function
    gpu: bool = False  # whether it computes on `Settings.device`

    def comparisons(self, settings: Settings) -> Iterator[Comparison | NotMeasured]:
        module, _, function = self.where.partition(".")
        return getattr(import_module(f"premed.benchmarks.{module}"), function)(settings)


ROWS = (
    Row("mae-3d", "a training step of MAE on volumes, fp32", "SelfMedMAE", "mae.volumes", gpu=True),
    Row("mae-3d-bf16", "the same in bf16", "SelfMedMAE", "mae.volumes_bf16", gpu=True),
    Row("mae-2d", "a training step of MAE on pictures, fp32", "facebookresearch/mae", "mae.pictures", gpu=True),
    Row("mae-2d-bf16", "the same in bf16", "facebookresearch/mae", "mae.pictures_bf16", gpu=True),
    Row("unetr", "a fine-tuning step of UNETR, fp32", "SelfMedMAE, MONAI", "unetr.step", gpu=True),
    Row("unetr-malloc", "premed's settings of malloc", "glibc's defaults", "unetr.malloc"),
    Row("sliding-window", "the logits of a volume by windows", "MONAI", "sliding_windows.windows", gpu=True),
    Row("scores", "Dice and HD95 of 13 organs", "MONAI", "scores.scores"),
    Row("crops-3d", "random crops of volumes", "MONAI's CacheDataset", "crops.crops"),
    Row("views-2d", "random views of pictures", "PIL, torchvision", "views.pictures"),
    Row("fit", "the training loop with all that it records", "a bare loop", "loop.loop"),
    Row("experiment", "a small experiment, from the command to its end", "a plain script", "whole.experiments"),
    Row("ray-start", "from the command to the first step on Ray", "TorchTrainer in a script", "whole.ray_start"),
    Row("sweep", "a sweep of 18 trials, from the command to its end", "its stages alone", "sweeping.sweep"),
    Row("demo", "the whole of premed demo, by the clock", "none", "demonstration.demo"),
    Row("help", "CPU time of commands that compute nothing", "none", "commands.commands"),
    Row("compare", "CPU time of premed compare over many runs", "none", "comparing.commands"),
)


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows by these names, in the order of ROWS; all without a name. Raises UserError for an unknown one."""
    known = [row.name for row in ROWS]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"bench: there is no row {unknown[0]}; there are {', '.join(known)}")
    return [row for row in ROWS if not names or row.name in names]
