"""The import stage, in place of a pre-training: saves weights from a file or the hub as a stage's encoder.

It runs in the process of the command, so that only that machine needs the file; workers load what the stage saved.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from premed.config.experiment import Experiment, Stage
from premed.config.plugins import plugin
from premed.config.spec import Spec
from premed.contracts import DataSet, Encoder, Task
from premed.errors import UserError
from premed.events import EventHandler, WarningIssued, WeightsImported
from premed.models.network import load_strictly
from premed.training.artifacts import card
from premed.training.device import peak_memory_mb
from premed.training.results import put_result
from premed.training.storage import StageStorage

PROVENANCE = ("model", "licence", "source", "data", "trained_on", "file", "sha256")
"""What of the report the card keeps."""


def foresee(experiment: Experiment, tasks: Callable[[Spec], Task]) -> None:
    """Raises UserError if the weights that an experiment imports cannot be read or do not fit. Saves nothing."""
    first = next(experiment.stages(lambda kind: ""))
    if first.kind == "import":
        brought(first, tasks)


def bring(stage: Stage, storage: StageStorage, on_event: EventHandler, tasks: Callable[[Spec], Task]) -> None:
    """Runs an import stage: saves the encoder, its card and, last of all, the result."""
    began = time.monotonic()
    task, encoder, state, report = brought(stage, tasks)
    load_strictly(encoder.to_empty(device="cpu"), state, "encoder")
    hashes = {"encoder": storage.put_weights("parts/encoder.safetensors", encoder.state_dict())}
    weights = [{"kind": stage.kind} | {name: value for name, value in report.items() if name in PROVENANCE}]
    about = card(stage, [DataSet(task, task.name)], {"encoder": encoder}, None, hashes, weights)
    storage.put_json("parts/card.json", about)
    fields = ("file", "kept", "changed", "dropped", "missing")
    on_event(WeightsImported(**{name: report[name] for name in fields if name in report}))
    if notes := getattr(plugin("pretext", stage.pretext), "preparation_notes", None):
        for note in notes(stage.pretext, task):
            on_event(WarningIssued(f"{note.where} {note.what}"))
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
    put_result(storage, result)


def brought(
    stage: Stage, tasks: Callable[[Spec], Task]
) -> tuple[Task, Encoder, dict[str, torch.Tensor], dict[str, Any]]:
    """Returns the task, its encoder (on the meta device), the encoder's state, and a report of how it was made."""
    task = tasks(stage.task)
    with torch.device("meta"):
        encoder = plugin("encoders", stage.encoder).build(stage.encoder, task.channels, task.roi)
    state, report = plugin("pretext", stage.pretext).weights(stage.pretext, encoder, task)
    if bad := [name for name, w in state.items() if not w.isfinite().all()]:
        raise UserError(f"pretext.weights: {bad[0]} has NaN or infinite values; take another file of these weights")
    return task, encoder, state, report
