"""What a user may call a run: its id, its digest, how either begins, its folder, or a registered model."""

import re
from collections.abc import Iterable, Sequence

from premed.errors import UserError
from premed.tracking import model_registry
from premed.tracking.client import masked
from premed.tracking.run_store import Run, RunStore

SHORTEST = 6  # characters of an id or a digest
KINDS = ("pretrain", "cooldown", "finetune", "test", "experiment")
LISTED = 5  # runs that a message names


def find_run(store: RunStore, reference: str, kinds: Sequence[str] = KINDS) -> Run:
    """Returns the run that `reference` names.

    reference: a run's id, or how it begins; a stage's digest, or how that begins; its folder, with its path or without
    (`test-aa46…`); `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Of several runs of one digest, the newest. Raises
    UserError, which lists some runs, if there is none, or more than one.
    """
    if reference.startswith("models:/"):
        return get_run(store, model_registry.run_of(store.client, reference), reference)
    if re.fullmatch("[0-9a-f]{32}", reference):
        return get_run(store, reference, reference)
    begin = re.sub("^[a-z]+-", "", reference.rstrip("/").rpartition("/")[2])  # finetune-aa46…
    found: dict[str, Run] = {}
    if re.fullmatch(f"[0-9a-f]{{{SHORTEST},64}}", begin):
        for name in ("attributes.run_id", "tags.`premed.digest`"):
            for run in store.search({}, condition=f"{name} LIKE '{begin}%'"):
                if run.tags.get("premed.kind") in kinds:
                    found.setdefault(run.tags.get("premed.digest", run.run_id), run)
    if len(found) == 1:
        return next(iter(found.values()))
    if not found and (guess := model_registry.nearest(reference, model_registry.references(store.client))):
        raise UserError(f"{reference}: no such run; did you mean {guess}?")
    what = f"{len(found)} runs begin like that" if found else "no such run"
    raise UserError(f"{reference}: {what} in {masked(store.uri)}; {listing(found.values() or newest(store))}")


def get_run(store: RunStore, run_id: str, reference: str) -> Run:
    """Returns a run by its id. Raises UserError if it does not exist."""
    try:
        return store.get(run_id)
    except Exception as error:
        if getattr(error, "error_code", "") not in model_registry.UNKNOWN:
            raise
        raise UserError(f"{reference}: no such run in {masked(store.uri)}; {listing(newest(store))}") from None


def newest(store: RunStore) -> list[Run]:
    """The newest finished experiments; without any, stages."""
    for tags in ({"premed.kind": "experiment"}, {}):
        if runs := list(store.search(tags, "FINISHED", limit=LISTED)):
            return runs
    return []


def listing(runs: Iterable[Run]) -> str:
    """The finished ones of `runs`, experiments first, in words."""
    finished = [run for run in runs if run.status == "FINISHED"]
    named = sorted(finished, key=lambda run: run.tags.get("premed.kind") != "experiment")
    if not named:
        return "it holds no finished run: set PREMED_HOME or MLFLOW_TRACKING_URI, or run an experiment"
    return "there are " + ", ".join(f"{run.run_id[:8]} ({run.experiment} {run.name})" for run in named[:LISTED])
