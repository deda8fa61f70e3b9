"""Before a pre-training: builds the networks of all stages without weights, so that no mistake costs a training."""

import threading
from pathlib import Path
from typing import Any

import torch

from premed.contracts import Objective, Task
from premed.data.datamodule import stage_cases, stage_data_sets
from premed.errors import UserError
from premed.execution.machine import refuse_full_disk
from premed.execution.preflight import Resolved
from premed.models.network import load_resized
from premed.paths import storage
from premed.training.checkpoint import KEPT
from premed.training.schedule import planned
from premed.training.setup import StageJob, make_objective
from premed.training.supervised import Supervised

BUILDING = threading.Lock()
"""`with torch.device(...)` sets a global of torch."""
CHECKPOINTS = KEPT + 1
"""Of a stage on disk: a new one is written before the oldest is removed."""


def validate_networks(resolved: Resolved, cache: Path) -> None:
    """Builds all networks on the meta device, without weights: mistakes in later stages are raised at once, and so is
    a disk that has no room for their checkpoints."""
    experiment, task, where = resolved.experiment, resolved.task, storage(resolved.experiment.train.storage)
    for stage in experiment.stages(lambda kind: ""):
        if stage.kind == "trunk":
            data_sets = stage_data_sets(stage, resolved.tasks)
            planned(stage, [len(stage_cases(stage, data_set.task)[0]) for data_set in data_sets])
    pretrained = None
    with BUILDING, torch.device("meta"):
        for stage in experiment.stages(lambda kind: ""):
            if stage.kind == "import":  # it trains nothing, and was looked at by `foresee`
                continue
            job = StageJob(stage, None, experiment.train, "", cache)
            objective, _ = make_objective(job, stage_data_sets(stage, resolved.tasks))
            if "://" not in where:
                refuse_full_disk("train.storage", Path(where), CHECKPOINTS * checkpoint_bytes(objective), "checkpoints")
            encoder = objective.parts["encoder"]
            if isinstance(objective, Supervised):
                objective.network(torch.zeros(1, task.channels, *task.roi))
                refuse_misfit(pretrained, encoder, task)
            pretrained = encoder


def checkpoint_bytes(objective: Objective) -> int:
    """Of all weights, and the optimizer's two moments of those that are trained."""
    state = sum(tensor.numel() * tensor.element_size() for tensor in objective.state_dict().values())
    return state + 2 * sum(each.numel() * each.element_size() for each in objective.parameters() if each.requires_grad)


def refuse_misfit(pretrained: Any, encoder: Any, task: Task) -> None:
    """Raises UserError if the pre-trained encoder does not fit the task, whose images have another shape."""
    try:
        load_resized(encoder, pretrained.state_dict(), pretrained.grid)
    except UserError as error:
        raise UserError(f"pretrain.sources: their encoder does not fit {task.name}: {error}") from None
