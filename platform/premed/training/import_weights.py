"""What a strategy brings in place of a pre-training: weights from elsewhere, saved once as a stage's encoder.

Runs where the command runs: the file need be on that machine alone, all others load what the stage saved.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from premed.config.experiment import Experiment, Stage
from premed.config.plugins import plugin
from premed.config.spec import Spec
from premed.contracts import DataSet, Encoder, Task
from premed.events import EventHandler, WeightsImported
from premed.models.network import load_strictly
from premed.training.artifacts import card
from premed.training.device import peak_memory_mb
from premed.training.storage import StageStorage


def foresee(experiment: Experiment, tasks: Callable[[Spec], Task]) -> None:
    """UserError where the weights that an experiment starts from cannot be had or do not fit. Nothing is saved."""
    first = next(experiment.stages(lambda kind: ""))
    if first.kind == "import":
        brought(first, tasks)


def bring(stage: Stage, storage: StageStorage, on_event: EventHandler, tasks: Callable[[Spec], Task]) -> None:
    """Saves the encoder that an import stage brings, its card and, last, the result."""
    began = time.monotonic()
    task, encoder, state, report = brought(stage, tasks)
    load_strictly(encoder.to_empty(device="cpu"), state, "encoder")
    storage.put_weights("parts/encoder.safetensors", encoder.state_dict())
    storage.put_json("parts/card.json", card(stage, [DataSet(task, task.name)], {"encoder": encoder}, None))
    on_event(WeightsImported(**{name: report[name] for name in ("file", "kept", "changed", "dropped")}))
    result = {
        "kind": stage.kind,
        "digest": stage.digest(),
        "summary": {},
        "num_cases": 0,
        "gate": None,
        "loaded": {"encoder": report},
        "seconds": time.monotonic() - began,
        "peak_memory_mb": peak_memory_mb(torch.device("cpu")),
    }
    storage.put_json("result.json", result)


def brought(
    stage: Stage, tasks: Callable[[Spec], Task]
) -> tuple[Task, Encoder, dict[str, torch.Tensor], dict[str, Any]]:
    """The task, its encoder (without memory), the encoder's state, and what was done to make it."""
    task = tasks(stage.task)
    with torch.device("meta"):
        encoder = plugin("encoders", stage.encoder).build(stage.encoder, task.channels, task.roi)
    return task, encoder, *plugin("pretext", stage.pretext).weights(stage.pretext, encoder, task)
