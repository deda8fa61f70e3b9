"""Finished pre-trainings: what one records for fine-tunings elsewhere, and how these find it by a name.

A pre-training without a fine-tuning records its settings and the hashes of its images (`FILE`). A fine-tuning names it
by its registered encoder, its run, or its digest.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from premed.errors import UserError
from premed.tracking import model_registry
from premed.tracking.artifacts import ArtifactMissing
from premed.tracking.client import masked, transient, unreachable
from premed.tracking.run_store import Run, RunStore

FILE = "pretraining.json"
"""The record, in a stage's folder and among its run's files."""
KINDS = ("pretrain", "cooldown")
"""The stages that end with an encoder."""
SHORTEST = 8  # characters of a digest


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
    run = stage_run(store, reference, where)
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


def stage_run(store: RunStore, reference: str, where: str) -> Run:
    """Returns the run that `reference` names; of an experiment, that of its pre-training."""
    if reference.startswith("models:/"):
        return get(store, model_registry.run_of(store.client, reference), where)
    if re.fullmatch("[0-9a-f]{32}", reference):
        run = get(store, reference, where)
        if run.tags.get("premed.kind") == "experiment":
            if "pretrain_run" not in run.tags:
                raise UserError(f"{where}: is an experiment without a finished pre-training; name another run")
            return get(store, run.tags["pretrain_run"], where)
        return run
    digest = re.sub(f"^({'|'.join(KINDS)})-", "", reference)
    if not re.fullmatch(f"[0-9a-f]{{{SHORTEST},64}}", digest):
        raise UserError(
            f"{where}: is no encoder; write models:/NAME/VERSION, models:/NAME@{model_registry.NEWEST}, a run's id, or "
            "a digest"
        )
    found: dict[str, Run] = {}
    for run in (run for kind in KINDS for run in store.search({"premed.kind": kind}, status="FINISHED")):
        if run.tags["premed.digest"].startswith(digest):
            found.setdefault(run.tags["premed.digest"], run)  # the newest
    if len(found) != 1:
        which = f"{len(found)} pre-trainings" if found else "no finished pre-training"
        raise UserError(f"{where}: {which} in {masked(store.uri)} begin like that; `premed ui` lists them")
    return next(iter(found.values()))


def get(store: RunStore, run_id: str, where: str) -> Run:
    """Returns a run. Raises UserError if it does not exist."""
    try:
        return store.get(run_id)
    except Exception as error:
        if getattr(error, "error_code", "") not in model_registry.UNKNOWN:
            raise
        raise UserError(f"{where}: no such run in {masked(store.uri)}; `premed ui` lists them") from None


def read(store: RunStore, run: Run) -> dict[str, Any] | None:
    """Returns the record of a run; None if it has none."""
    with TemporaryDirectory() as folder:
        try:
            return json.loads(store.file(run, FILE, folder).read_bytes())
        except ArtifactMissing:
            return None
        except Exception as error:
            if not transient(error):
                raise
            raise UserError(f"{unreachable(error, store.uri)}; try again") from None
