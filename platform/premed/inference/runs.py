"""The training whose network a reference means."""

from premed.errors import UserError
from premed.tracking.references import find_run, get_run
from premed.tracking.run_store import Run, RunStore


def find_stage_run(store: RunStore, reference: str) -> Run:
    """Returns the run of a training; for an experiment or a test, that of its fine-tuning. Raises UserError if none."""
    run = find_run(store, reference)
    kind = run.tags.get("premed.kind")
    if kind == "experiment":
        if "label_fraction" not in run.tags and "pretrain_run" in run.tags:  # a pre-training alone
            return get_run(store, run.tags["pretrain_run"], reference)
        if "finetune_run" not in run.tags:
            raise UserError(f"{reference}: this experiment has not been fine-tuned to its end; run it again")
        run = get_run(store, run.tags["finetune_run"], reference)
    elif kind == "test":
        tested = store.find(run.tags.get("premed.parent_digest", ""), "finetune")
        if tested is None:
            raise UserError(f"{reference}: the fine-tuning that it tested is not in this store; name another run")
        run = tested
    if run.tags.get("premed.kind") == "trunk":
        raise UserError(f"{reference}: is a segment of a trunk, which has no encoder; name a cool-down from it")
    if run.tags.get("premed.kind") not in ("pretrain", "cooldown", "finetune") or run.status != "FINISHED":
        raise UserError(f"{reference}: is not a finished run of premed ({run.status.lower()}); name another, or run it")
    return run
