"""Where a training's batches come from: images that stay on its device, where they fit, else files.

The batches are equal either way. `train.resident` says which; a warning says what keeps images from staying.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from premed.config.settings import Finetune, Pretrain
from premed.contracts import BatchIndices, DataSet, Sample
from premed.data.io.memory import memory
from premed.data.loader import PreparedLoader
from premed.data.resident import ResidentLoader, num_bytes, places_of
from premed.errors import UserError
from premed.training.device import is_out_of_memory
from premed.training.setup import StageJob, TrainingSetup

SHARE = 0.5  # of the memory that is free before the first step; networks' activations come after
COMPARED, EPOCHS = 2, 4  # samples of each data set, and views of each, that are compared before the first step


def source_of(job: StageJob, setup: TrainingSetup, warn: Callable[[str], None]) -> PreparedLoader:
    """Returns the BatchLoader of a stage's training. warn: called with why images do not stay on the device."""
    settings, how, device = job.stage.training, job.train, setup.device
    assert isinstance(settings, (Pretrain, Finetune))
    how_drawn: dict[str, Any] = {"seed": settings.seed, "stage": job.stage.draws, "num_loaders": how.loaders}
    files = PreparedLoader(setup.data_sets, setup.train, device=device, **how_drawn)
    if how.resident is False or (how.resident == "auto" and device.type != "cuda"):
        return files
    resident, why = None, unfit(setup.data_sets, setup.train) or too_large(setup.train, device)
    if not why:
        try:
            resident = ResidentLoader(setup.data_sets, setup.train, device=device, **how_drawn)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            why = f"{memory_of(device)} does not hold the images"
    if resident and not same_views(files, resident):
        why = f"views made on {device} differ here from those that CPUs make"
    if why:
        warn(f"train.resident: {why}; they are read from files for each step")
    return resident if resident and not why else files


def unfit(data_sets: Sequence[DataSet], samples: Sequence[Sample]) -> str:
    """Why views of these images can be made on CPUs alone; empty where they can be made on a device."""
    for number, (task, _, augment) in enumerate(data_sets):
        if not has_params(task):
            return f"{task.name} cuts its views in its own way, so that its images do not stay on the device"
        if len(task.roi) == 2 and augment.rand is not None:
            return (
                f"RandAugment ({task.name}: augment.rand) works on CPUs alone, so that images do not stay on the device"
            )
        if len(task.roi) == 2 and augment.scale is not None:
            own = [sample for sample in samples if sample.data_set == number]
            if any(place.store != "uint8" for place in places_of(own)[0]):
                return f"random resized crops ({task.name}: augment.scale) of more than 8 bits are made on CPUs alone"
    return ""


def has_params(task: Any) -> bool:
    """Whether `view_params` describes what `view` makes: one class has both, and of a task that it wraps, too."""
    while task is not None:
        first = {
            name: next((c for c in type(task).__mro__ if name in vars(c)), None) for name in ("view", "view_params")
        }
        if first["view_params"] is None or first["view"] is not first["view_params"]:
            return False
        task = vars(task).get("task")
    return True


def too_large(samples: Sequence[Sample], device: torch.device) -> str:
    """Says that images take more than SHARE of the memory that is free; empty where they fit."""
    needed, fits = num_bytes(places_of(samples)[1]), SHARE * free_memory(device)
    if needed <= fits:
        return ""
    return f"images take {gib(needed)}, and may take {gib(fits)}, half of what is free in {memory_of(device)}"


def free_memory(device: torch.device) -> float:
    """Bytes; on CPUs this worker's share of what the machine has."""
    if device.type != "cuda":
        return 1e9 * memory()[1] / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def memory_of(device: torch.device) -> str:
    return "the GPU's memory" if device.type == "cuda" else "this machine's memory"


def gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def same_views(files: PreparedLoader, resident: ResidentLoader, num_epochs: int = EPOCHS) -> bool:
    """Whether some views of each data set are equal, bit for bit, from files and from the device."""
    for begin in files.views.begins:
        own = range(begin, len(files.views.samples))[:COMPARED]
        for indices in (BatchIndices(epoch, np.array([i])) for i in own for epoch in range(num_epochs)):
            ours, theirs = files.batch(files.views[indices]), resident.batch(resident.views[indices])
            if not all(map(same, *(vars(batch).values() for batch in (ours, theirs)))):
                return False
    return True


def same(ours: Any, theirs: Any) -> bool:
    """Whether two fields of batches are equal, NaN too."""
    if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return ours == theirs if not isinstance(ours, torch.Tensor) else False
    equal_nan = ours.is_floating_point()
    return ours.dtype == theirs.dtype and np.array_equal(ours.cpu().numpy(), theirs.cpu().numpy(), equal_nan)


@contextmanager
def naming_resident(source: PreparedLoader) -> Iterator[None]:
    """A context in which the error of a lack of memory names the images that stay in it, and what to set."""
    try:
        yield
    except (MemoryError, RuntimeError, UserError) as error:
        if not isinstance(source, ResidentLoader) or not is_out_of_memory(error):
            raise
        remedy = f"set train.resident=false, which frees the {gib(source.num_bytes)} of images and trains the same"
        if isinstance(error, UserError):
            raise UserError(f"{error}; or {remedy}") from error
        where = memory_of(source.device)
        raise UserError(f"train.resident: {where} does not hold a step's views beside the images; {remedy}") from error
