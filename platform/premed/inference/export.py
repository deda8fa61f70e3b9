"""`premed export`: writes a trained network as safetensors, ONNX or a MONAI bundle.

Each has a `card.json`, which describes how to prepare images and what the output means, and the same as text in
`README.md`. The folder is created atomically.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.torch import save

from premed.config.compose import validate_experiment
from premed.config.plugins import plugin
from premed.config.safe_yaml import parse_yaml
from premed.contracts import Sample, Task
from premed.data.cache import Cache
from premed.errors import StageFailed, UserError, first_line
from premed.inference import monai_bundle
from premed.inference.inputs import find_images, join_channels, nothing_left, prepare_sample
from premed.inference.load import TrainedModel, open_trained
from premed.inference.model_card import output_meaning, preparation_steps, render
from premed.inference.onnx_torchscript import largest_difference, random_views, write_onnx, write_torchscript
from premed.inference.refusals import refuse_options
from premed.models.network import Network
from premed.paths import home
from premed.tracking.run_store import open_store
from premed.training.artifacts import ROOT

MAX_IMAGES = 4  # on which a graph is compared with torch
RANDOM = "random values, because no validation image could be read"


def run(
    reference: str,
    to: Path,
    form: str,
    *,
    check: Sequence[Path] = (),
    part: Sequence[str] = (),
    single_file: bool = False,
) -> dict[str, Any]:
    """Writes the folder `to`; returns the content of `--json`.

    check: images on which to compare a graph with torch. part, single_file (safetensors only): the parts to write, and
    whether to write them to one file. Raises UserError for options that do not fit the format.
    """
    refuse_options(form, to, check=check, part=part, single_file=single_file)
    with open_trained(reference) as trained, atomic_folder(to) as folder:
        card = export_card(trained, form)
        if form == "safetensors":
            card |= write_parts(trained, folder, part, single_file)
        else:
            if trained.card.get("head") is None:
                raise UserError(f"--format {form}: {reference} is a pre-training, which has no head; use safetensors")
            network, task = trained.network()
            card |= write_graph(trained, network, task, form, folder, check)
        reason = card.pop("reason", "")  # it may name a folder of this machine, and the card is for others
        (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        docs = folder / "docs" if form == "monai" else folder
        (docs / "README.md").write_text(render(card), encoding="utf-8")
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    summary = {name: card[name] for name in ("format", "task", "run_id", "model", "check") if name in card}
    return {"folder": str(to), **summary, "files": files, **({"reason": reason} if reason else {})}


@contextmanager
def atomic_folder(to: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `to`, which is renamed to `to` if the context succeeds."""
    try:
        to.absolute().parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=to.absolute().parent, prefix=".premed-") as temporary:
            folder = Path(temporary) / "export"
            folder.mkdir()
            yield folder
            if to.exists():
                to.rmdir()  # it is empty
            folder.rename(to)
    except OSError as error:
        raise StageFailed(f"{to}: cannot be written ({error.strerror or error}); free space or name another") from error


def export_card(trained: TrainedModel, form: str) -> dict[str, Any]:
    """Returns the stage's card, with the preparation of images and the meaning of outputs."""
    card = trained.card
    if "settings" not in card:
        raise UserError(f"{trained.reference}: was trained by an older premed, whose card is incomplete; run it again")
    origin = {"format": form, "premed": version("premed"), "run_id": trained.run_id}
    origin |= {"model": trained.scored.entry} if trained.scored else {}
    return origin | card | {"steps": preparation_steps(card), "meaning": output_meaning(card)}


# Weights -------------------------------------------------------------------------------------------------------------


def write_parts(trained: TrainedModel, folder: Path, part: Sequence[str], single_file: bool) -> dict[str, Any]:
    """Writes a file per part, or one for all with names `part.name`; returns how timm loads the encoder, if it can."""
    parts = trained.card["parts"]
    if unknown := [name for name in part if name not in parts]:
        raise UserError(f"--part: {unknown[0]} is not one of this run's parts: {', '.join(parts)}")
    weights = {name: trained.weights(name) for name in part or parts}
    merged = {f"{name}.{key}": value for name, state in weights.items() for key, value in state.items()}
    for name, state in ({"model": merged} if single_file else weights).items():
        # not save_file, whose error of a full disk is no OSError
        (folder / f"{name}.safetensors").write_bytes(save(state))
    card = trained.card
    arguments = trained.encoder(card["channels"], tuple(card["roi"])).timm()
    if single_file or not arguments or "encoder" not in weights:
        return {}
    written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return {"timm": {"arguments": arguments, "call": f"encoder = timm.create_model({written})"}}


# Graphs --------------------------------------------------------------------------------------------------------------


def write_graph(
    trained: TrainedModel, network: Network, task: Task, form: str, folder: Path, check: Sequence[Path]
) -> dict[str, Any]:
    """Writes ONNX or a bundle and compares it with torch. Raises StageFailed if they differ."""
    views, on, reason = comparison_views(trained, task, check)
    if form == "onnx":
        file, remarks = folder / "model.onnx", []
        graph = write_onnx(network, task, file)
    else:
        remarks = monai_bundle.write(network, task, trained.card, folder)
        file = folder / monai_bundle.MODEL
        graph = write_torchscript(network, task, file)
    difference = largest_difference(network, graph, views, file)
    if form == "monai":
        monai_bundle.verify(folder)
    return {"check": {"views": len(views), "on": on, **difference}, "remarks": remarks, "reason": reason}


def comparison_views(trained: TrainedModel, task: Task, check: Sequence[Path]) -> tuple[list[np.ndarray], str, str]:
    """Returns views [C, *roi] for the comparison, their origin (given images, validation images, or random), and why
    they are random, if they are."""
    views: list[np.ndarray] = []
    if check:
        found, failed = find_images(check, task.dims, Path(os.devnull))
        images, incomplete = join_channels(found, task)
        if failed + incomplete or not images:
            raise nothing_left(failed + incomplete)
        for each in images[:MAX_IMAGES]:
            with prepare_sample(each.path, task.preprocessing, each.more) as sample:
                views += task.tiles(sample)
        return views, f"{len(images[:MAX_IMAGES])} given images", ""
    try:
        samples = validation_samples(trained)
        views = [view for sample in samples for view in task.tiles(sample)]
        reason = "none is prepared on this machine"
    except Exception as error:  # noqa: BLE001 - the data may be elsewhere or deleted: random views replace them
        reason = first_line(error)
    if views:
        return views, f"{len(samples)} validation images", ""
    return random_views(task), f"{RANDOM}: name some with --check", reason


def validation_samples(trained: TrainedModel) -> list[Sample]:
    """Returns a few of the run's validation images that are in this machine's cache."""
    with TemporaryDirectory() as folder:
        file = open_store().download(trained.parent or "", "experiment.yaml", folder)
        experiment = validate_experiment(parse_yaml(file.read_text(encoding="utf-8")))
    config: Any = experiment.task
    here = (trained.storage.get_json(ROOT) or {}).get("root")
    if here is not None and Path(here).is_dir():  # the run's own YAML names no folder of a machine
        config = config.model_copy(update={"root": Path(here)})
    task: Task = plugin("tasks", config).build(config)
    cache = Cache(home() / "cache")
    pairs = [(case, cache.open(case, task.preprocessing)) for case in task.split("val")[:MAX_IMAGES]]
    return [Sample(case, entry) for case, entry in pairs if entry]
