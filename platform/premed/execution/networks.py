"""Before images are prepared: builds the networks of all stages without weights: no mistake costs a training."""

import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from premed.config.experiment import Experiment
from premed.contracts import Objective, Task
from premed.data.datamodule import Tasks, stage_cases, stage_data_sets
from premed.errors import UserError
from premed.execution.machine import refuse_full_disk
from premed.models.network import load_resized
from premed.paths import storage
from premed.training.checkpoint import KEPT
from premed.training.policy import merge
from premed.training.schedule import planned
from premed.training.setup import StageJob, make_objective
from premed.training.supervised import Supervised

BUILDING = threading.Lock()
"""`with torch.device(...)` sets a global of torch."""
CHECKPOINTS = KEPT + 1
"""Of a stage on disk: a new one is written before the oldest is removed."""


def build_networks(experiment: Experiment, tasks: Tasks) -> list[Objective]:
    """Builds all networks on the meta device, without weights, and returns them: mistakes in later stages are raised
    at once, before any image is prepared."""
    for stage in experiment.stages(lambda kind: ""):
        if stage.kind == "trunk":
            data_sets = stage_data_sets(stage, tasks)
            planned(stage, [len(stage_cases(stage, data_set.task)[0]) for data_set in data_sets])
    built: list[Objective] = []
    with BUILDING, torch.device("meta"):
        for stage in experiment.stages(lambda kind: ""):
            if stage.kind in ("import", "test"):  # they train nothing; `foresee` looked at the weights
                continue
            job = StageJob(stage, None, experiment.train, "", Path())
            objective, _ = make_objective(job, stage_data_sets(stage, tasks))
            if isinstance(objective, Supervised):
                task = tasks(experiment.task)
                objective.network(torch.zeros(1, task.channels, *task.roi))
                if built:
                    refuse_misfit(built[-1].parts["encoder"], objective.parts["encoder"], task)
            built.append(objective)
    return built


def refuse_full_storage(experiment: Experiment, tasks: Tasks) -> None:
    """Raises UserError if the disk has no room for the checkpoints of the stages."""
    if "://" not in (where := storage(experiment.train.storage)):
        for objective in build_networks(experiment, tasks):
            refuse_full_disk("train.storage", Path(where), CHECKPOINTS * checkpoint_bytes(objective), "checkpoints")


def checkpoint_bytes(objective: Objective) -> int:
    """Of all weights, and the optimizer's two moments of those that are trained."""
    state = sum(tensor.numel() * tensor.element_size() for tensor in objective.state_dict().values())
    return state + 2 * sum(each.numel() * each.element_size() for each in objective.parameters() if each.requires_grad)


def refuse_misfit(pretrained: Any, encoder: Any, task: Task) -> None:
    """Raises UserError if the pre-trained encoder does not fit the task, whose images have another shape."""
    plain = deepcopy(encoder)
    merge(plain)  # weights are loaded before LoRA's matrices are added
    try:
        load_resized(plain, pretrained.state_dict(), pretrained.grid)
    except UserError as error:
        raise UserError(f"pretrain.sources: their encoder does not fit {task.name}: {error}") from None
