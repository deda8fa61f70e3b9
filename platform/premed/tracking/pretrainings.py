"""Finished pre-trainings: what one records for fine-tunings elsewhere, and how these find it by a name.

A pre-training without a fine-tuning records its settings and the hashes of its images (`FILE`). A fine-tuning names it
by its registered encoder, its run, or its digest.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from premed.errors import UserError
from premed.tracking.artifacts import ArtifactMissing
from premed.tracking.client import transient, unreachable
from premed.tracking.references import find_run, get_run
from premed.tracking.run_store import Run, RunStore

FILE = "pretraining.json"
"""The record, in a stage's folder and among its run's files."""
RECORD_HASH = "premed.pretraining"
"""The tag with its SHA-256."""
KINDS = ("pretrain", "cooldown")
"""The stages that end with an encoder."""


@dataclass(frozen=True)
class FinishedPretraining:
    """A pre-training that a fine-tuning names."""

    reference: str
    """As the user gave it."""
    run_id: str
    kind: str
    digest: str
    record: Mapping[str, Any]
    """`card`, that of its parts; `pretext` and `pretrain`, its settings; `data_sets`, the hashes of its images
    (`leakage.record`)."""


def find_pretraining(store: RunStore, reference: str, field: str) -> FinishedPretraining:
    """Returns the pre-training that `reference` names.

    reference: `models:/NAME/VERSION` or `models:/NAME@ALIAS`; the id of the run of a pre-training, or of an experiment
    with one; the digest of a pre-training, or how it begins, or the name of its folder. field: the reference's, in
    messages. Raises UserError if there is no such pre-training, it is not finished, or it left no record.
    """
    where = f"{field}: {reference}"
    run = stage_run(store, reference, field)
    if run.tags.get("premed.kind") not in KINDS:
        what = run.tags.get("premed.kind", "no run of premed")
        raise UserError(f"{where}: is {what}, and no pre-training; name a pre-training")
    if run.status != "FINISHED":
        raise UserError(f"{where}: is not finished ({run.status.lower()}); run its YAML to the end")
    record = read(store, run)
    if record is None:
        raise UserError(
            f"{where}: recorded no images, so it cannot be told whether it learnt from those of val and test; run its "
            "YAML again, without finetune (finetune=null): it trains nothing and records them"
        )
    return FinishedPretraining(reference, run.run_id, run.tags["premed.kind"], run.tags["premed.digest"], record)


def stage_run(store: RunStore, reference: str, field: str) -> Run:
    """Returns the run that `reference` names; of an experiment, that of its pre-training."""
    try:
        run = find_run(store, reference, (*KINDS, "experiment"))
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    if run.tags.get("premed.kind") == "experiment":
        if "pretrain_run" not in run.tags:
            raise UserError(f"{field}: {reference}: is an experiment without a finished pre-training; name another run")
        return get_run(store, run.tags["pretrain_run"], reference)
    return run


def read(store: RunStore, run: Run) -> dict[str, Any] | None:
    """Returns the record of a run; None if it has none. Raises UserError for one that is not as it was recorded."""
    with TemporaryDirectory() as folder:
        try:
            content = store.file(run, FILE, folder).read_bytes()
        except ArtifactMissing:
            return None
        except Exception as error:
            if not transient(error):
                raise
            raise UserError(f"{unreachable(error, store.uri)}; try again") from None
    return checked(run, content)


def checked(run: Run, content: bytes) -> dict[str, Any]:
    """The record that a run's tag has the SHA-256 of: by its hashes a fine-tuning knows images that it was trained on.

    Raises UserError for another content.
    """
    expected = run.tags.get(RECORD_HASH)
    with suppress(ValueError, RecursionError):
        record = json.loads(content)
        if isinstance(record, dict) and expected in (None, hashlib.sha256(content).hexdigest()):
            return record
    remedy = "delete that run there, and run the pre-training's YAML again, which records it anew"
    raise UserError(f"run {run.run_id}: its {FILE} in MLflow is damaged: {remedy}")
