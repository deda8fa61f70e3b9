"""What a stage saves: the named parts of its network, their model card, and pictures."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from premed.config.experiment import Stage
from premed.contracts import DataSet, Encoder, Objective, Sample
from premed.errors import UserError
from premed.models.network import load_resized
from premed.safety.curves import read_points
from premed.safety.seals import is_sealed, sealed
from premed.training.privacy import Privacy
from premed.training.storage import StageStorage, is_whole

ROOT = "root.json"
"""In a fine-tuning's folder: where its data lies on this machine. No run in MLflow has it, which names no machine."""
SNAPSHOTS = 4  # of the outputs for fixed cases: after a quarter, half, three quarters and all of a training


def load_encoder(encoder: Encoder, storage: StageStorage, verified: bool = False) -> dict[str, Any]:
    """Loads a stage's encoder, resized if it was trained on another grid; see `models.network.load_resized`.

    verified: see `part_weights`.
    """
    return load_resized(encoder, part_weights(storage, "encoder", verified), tuple(read_card(storage)["grid"]))


def part_weights(storage: StageStorage, part: str, verified: bool = False) -> dict[str, torch.Tensor]:
    """Returns the weights of a part that a stage saved. Raises UserError if they are missing or damaged.

    verified: `damaged_parts` has just been asked for them, so that they are not hashed again.
    """
    name = f"parts/{part}.safetensors"
    content, remedy = storage.get(name), "run the same command again, which makes it anew"
    if content is None:
        raise UserError(f"{storage.where}/{name} is missing: {remedy}")
    if not verified and not is_whole(content, read_card(storage).get("hashes", {}).get(part)):
        raise UserError(f"{storage.where}/{name} is damaged: {remedy}")
    return load(content)


def read_card(storage: StageStorage) -> dict[str, Any]:
    """Returns the model card of a stage. Raises UserError if it is missing, damaged or of another stage."""
    about, remedy = storage.get_json("parts/card.json"), "run the same command again"
    if about is None or not is_sealed(about, "card"):
        raise UserError(f"{storage.where}/parts/card.json is missing or damaged: {remedy}")
    if other := storage.other_stage(about):
        raise UserError(f"{storage.where}/parts/card.json is of another stage, {other}: {remedy}")
    return about


def damaged_parts(storage: StageStorage) -> list[str]:
    """The files of `parts/` that are missing or not as the stage saved them."""
    try:
        about = read_card(storage)
    except UserError:
        return ["parts/card.json"]
    hashes, damaged = about.get("hashes", {}), []
    for part in about["parts"]:
        content = storage.get(f"parts/{part}.safetensors")
        if content is None or not is_whole(content, hashes.get(part)):
            damaged.append(f"parts/{part}.safetensors")
    return damaged


def card(
    stage: Stage,
    data_sets: Sequence[DataSet],
    parts: Mapping[str, nn.Module],
    gate: dict[str, Any] | None,
    hashes: Mapping[str, str],
    weights: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Returns the model card: all that is needed to use the parts without the data they were trained on.

    hashes: SHA-256 of each part's file. weights: where the encoder's come from, in order (`origin_of`); those that
    others trained are the first.
    """
    encoder, head = parts["encoder"], getattr(stage.training, "head", None)
    assert isinstance(encoder, Encoder)
    sources = (
        {"sources": [source(data_set) for data_set in data_sets]} if getattr(stage.training, "sources", None) else {}
    )
    about = (
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
            "hashes": dict(hashes),
        }
        | ({"weights": list(weights)} if weights else {})
    )
    return sealed(about, "card")


def origin_of(parent: StageStorage | None, stage: Stage, task: str) -> list[dict[str, Any]]:
    """Where a stage's encoder comes from: what its parent says, and the stage; empty if it started from random weights.

    A trunk's segment has no card: its result says it.
    """
    if parent is None:
        return []
    about = (parent.get_json("parts/card.json") or parent.get_json("result.json") or {}).get("weights", [])
    own = {"kind": stage.kind, "task": task, "digest": stage.digest()}
    strategy = {"strategy": stage.pretext.name} if stage.pretext else {}  # type: ignore[attr-defined]
    return [*about, own | strategy] if about else []


def source(data_set: DataSet) -> dict[str, Any]:
    """Returns the card's entry for a data set of `pretrain.sources`."""
    task = data_set.task
    about = {"task": task.name, "group": data_set.group, "channels": task.channels, "roi": list(task.roi)}
    return about | {"preprocessing": task.preprocessing.model_dump(mode="json")}


def put_root(storage: StageStorage, root: Path) -> None:
    """Keeps where the data lies; not in a storage that may only be read: `premed export` does without it."""
    with suppress(OSError):
        storage.put_json(ROOT, {"root": str(root)})


def curve_of(storage: StageStorage) -> list[dict[str, Any]]:
    """The points of a stage's curve; of a damaged one those before the damage, and it is put aside."""
    points, damage = read_points(storage.get("curve.jsonl") or b"")
    if damage:
        storage.put_aside("curve.jsonl", damage)
    return points


def save_pictures(storage: StageStorage, objective: Objective, samples: Sequence[Sample], privacy: Privacy) -> None:
    """Saves the objective's pictures and, if there are snapshots, pictures of its progress."""
    if not privacy.pictures:
        return
    files = {int(Path(name).stem): name for name in storage.names() if name.startswith("snapshots/")}
    if len(files) > SNAPSHOTS:  # each segment of a trunk has saved some
        spread = [max(files) * i / SNAPSHOTS for i in range(1, SNAPSHOTS + 1)]
        files = {step: files[step] for step in (min(files, key=lambda step: abs(step - each)) for each in spread)}
    snapshots = {
        step: {privacy.name(case): picture for case, picture in (storage.get_weights(name) or {}).items()}
        for step, name in files.items()
    }
    samples = privacy.samples(samples)
    objective.eval()
    with TemporaryDirectory() as folder:
        paths = objective.pictures(samples, Path(folder))
        if snapshots:
            paths = paths + objective.progress_pictures(samples, snapshots, Path(folder))
        for path in paths:
            storage.put(f"pictures/{path.name}", path.read_bytes())
