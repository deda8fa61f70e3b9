"""A pre-training alone: records what fine-tunings elsewhere need to know of it, and registers its encoder."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np

from premed.config.experiment import Experiment
from premed.config.plugins import plugin
from premed.config.settings import Pretrain
from premed.contracts import Task
from premed.data.datamodule import stage_data_sets
from premed.errors import StageFailed
from premed.events import ModelRegistrationStarted, WarningIssued
from premed.execution.preflight import Resolved
from premed.execution.recorder import ExperimentRecorder
from premed.execution.session import Session
from premed.models.network import Tokens, load_strictly, seeded_init
from premed.paths import home
from premed.tracking.model_registry import registered_name
from premed.tracking.pretrainings import FILE, RECORD_HASH
from premed.training.artifacts import part_weights, read_card
from premed.training.setup import StageJob, refuse_changed

POLL = 1.0  # seconds between two tries for the lease of the pre-training


def publish(
    job: StageJob, run_id: str, resolved: Resolved, session: Session, recorder: ExperimentRecorder
) -> dict[str, Any]:
    """Records the settings and the images of a finished pre-training, and registers its encoder; each is done once.

    Returns the encoder's digest, run and, unless the registry failed, its name (`models:/NAME/VERSION`). Raises
    UserError if the images are no longer those that it was trained on.
    """
    stage, digest = job.stage, job.stage.digest()
    sources = resolved.experiment.sources(stage.kind)
    assert isinstance(stage.training, Pretrain) and stage.pretext
    settings = {"pretext": stage.pretext, "pretrain": stage.training.model_copy(update={"sources": sources})}
    record: dict[str, Any] = {name: spec.model_dump(mode="json") for name, spec in settings.items()}
    for source in record["pretrain"]["sources"]:  # no paths of a machine
        source["task"].pop("root", None)
    card = read_card(job.stage_storage)
    record = recorder.privacy.fields(record)
    record["card"] = card
    record["data_sets"] = session.record([source.task for source in sources])
    # after the hashes were taken: they are of the files as they are now, and must be of those that were trained on
    refuse_changed(replace(job, content=session.content(stage)), stage_data_sets(stage, session.tasks), known={})
    for image in (image for data_set in record["data_sets"] for image in data_set["images"]):
        image["name"] = recorder.privacy.name(image["name"])
    while not recorder.tracker.acquire(digest):  # another command publishes it
        recorder.pause(POLL)
    try:
        keep(job, run_id, record, recorder)
        name = register(job, run_id, resolved, recorder, card)
    finally:
        recorder.tracker.release(digest)
    return {"digest": digest, "run_id": run_id, "name": name}


def keep(job: StageJob, run_id: str, record: dict[str, Any], recorder: ExperimentRecorder) -> None:
    """Writes the record to the stage's folder and to its run, unless that has it."""
    text = json.dumps(record, sort_keys=True)
    tags = {RECORD_HASH: hashlib.sha256(text.encode()).hexdigest()}
    job.stage_storage.put(FILE, text.encode())
    if recorder.tracker.finished_with(run_id, tags):
        return
    folder = home() / "outbox" / f"{run_id}-record"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(text)
    recorder.copies.setdefault(run_id, []).append(folder.name)
    recorder.tracker.reopen_run(run_id)
    recorder.tracker.log_files(run_id, str(folder / FILE))
    recorder.end(run_id, "FINISHED", tags)


def register(
    job: StageJob, run_id: str, resolved: Resolved, recorder: ExperimentRecorder, card: dict[str, Any]
) -> str | None:
    """Registers the encoder, once; returns `models:/NAME/VERSION`, or None if the registry fails."""
    stage, tracker = job.stage, recorder.tracker
    try:
        if tracker.is_registered(run_id) is not False:
            return tracker.registered_as(run_id)
        name = encoder_name(resolved.experiment, resolved.task)
        recorder.on_event(ModelRegistrationStarted(name))
        data_sets = stage_data_sets(stage, resolved.tasks)
        first, *more = dict.fromkeys((data_set.task.channels, tuple(data_set.task.roi)) for data_set in data_sets)
        with seeded_init(0, "encoder"):
            encoder = plugin("encoders", stage.encoder).build(stage.encoder, *first, *more)
        load_strictly(encoder, part_weights(job.stage_storage, "encoder"), "encoder")
        example = np.zeros((2, first[0], *first[1]), np.float32)
        version = recorder.register_network(run_id, name, Tokens(encoder), example, None, card)
        return version and f"models:/{name}/{version}"
    except StageFailed as error:
        recorder.on_event(WarningIssued(f"the encoder was not registered: {error}"))
        return None


def encoder_name(experiment: Experiment, task: Task) -> str:
    """The name of the registered model: the experiment's, or its task and strategy."""
    return registered_name(f"{experiment.name or f'{task.name}-{experiment.strategy}'}-encoder")
