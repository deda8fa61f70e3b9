"""What a stage saves: the named parts of its network, their model card, and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from premed.config.experiment import Stage
from premed.contracts import DataSet, Encoder, Objective, Sample
from premed.errors import UserError
from premed.models.network import load_resized
from premed.training.storage import StageStorage

SNAPSHOTS = 4  # of the outputs for fixed cases: after a quarter, half, three quarters and all of a training


def load_encoder(encoder: Encoder, storage: StageStorage) -> dict[str, Any]:
    """Loads a stage's encoder, resized if it was trained on another grid; see `models.network.load_resized`."""
    about = storage.get_json("parts/card.json")
    assert about is not None, f"{storage.where} has no card"
    return load_resized(encoder, part_weights(storage, "encoder"), tuple(about["grid"]))


def part_weights(storage: StageStorage, part: str) -> dict[str, torch.Tensor]:
    """Returns the weights of a part that a stage saved. Raises UserError if they are missing."""
    weights = storage.get_weights(f"parts/{part}.safetensors")
    if weights is None:
        raise UserError(f"{storage.where}/parts/{part}.safetensors is missing: remove that folder and pre-train again")
    return weights


def card(
    stage: Stage, data_sets: Sequence[DataSet], parts: Mapping[str, nn.Module], gate: dict[str, Any] | None
) -> dict[str, Any]:
    """Returns the model card: all that is needed to use the parts without the data they were trained on."""
    encoder, head = parts["encoder"], getattr(stage.training, "head", None)
    assert isinstance(encoder, Encoder)
    sources = (
        {"sources": [source(data_set) for data_set in data_sets]} if getattr(stage.training, "sources", None) else {}
    )
    return (
        data_sets[0].task.describe()
        | sources
        | {
            "digest": stage.digest(),
            "kind": stage.kind,
            "parts": sorted(parts),
            "encoder": stage.encoder.model_dump(mode="json"),
            "head": head.model_dump(mode="json") if head else None,
            "grid": encoder.grid,
            "patch": encoder.patch,
            "width": encoder.width,
            "gate": gate,
        }
    )


def source(data_set: DataSet) -> dict[str, Any]:
    """Returns the card's entry for a data set of `pretrain.sources`."""
    task = data_set.task
    about = {"task": task.name, "group": data_set.group, "channels": task.channels, "roi": list(task.roi)}
    return about | {"preprocessing": task.preprocessing.model_dump(mode="json")}


def save_pictures(storage: StageStorage, objective: Objective, samples: Sequence[Sample]) -> None:
    """Saves the objective's pictures and, if there are snapshots, pictures of its progress."""
    files = {int(Path(name).stem): name for name in storage.names() if name.startswith("snapshots/")}
    if len(files) > SNAPSHOTS:  # each segment of a trunk has saved some
        spread = [max(files) * i / SNAPSHOTS for i in range(1, SNAPSHOTS + 1)]
        files = {step: files[step] for step in (min(files, key=lambda step: abs(step - each)) for each in spread)}
    snapshots = {step: storage.get_weights(name) or {} for step, name in files.items()}
    objective.eval()
    with TemporaryDirectory() as folder:
        paths = objective.pictures(samples, Path(folder))
        if snapshots:
            paths = paths + objective.progress_pictures(samples, snapshots, Path(folder))
        for path in paths:
            storage.put(f"pictures/{path.name}", path.read_bytes())
