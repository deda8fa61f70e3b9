"""Which trials ASHA stops early, with those in mind that ended in an earlier start of the sweep."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from premed.tuning.search import Asha
from premed.tuning.study import TrialRecord

VALUE, TIME = "value", "validation"
"""Keys of the results that are reported to Tune: the score, and the number of the validation."""


def rungs(asha: Asha | None, total: int) -> set[int]:
    """The validations after which ASHA may stop a trial: `grace`, then each time `reduction` times as many.

    total: the validations of a fine-tuning. Empty without ASHA.
    """
    if asha is None:
        return set()
    numbers, rung = set(), float(asha.grace)
    while rung < total:
        numbers.add(int(-(-rung // 1)))
        rung *= asha.reduction
    return numbers


def make_scheduler(asha: Asha | None, mode: str, total: int, earlier: Iterable[TrialRecord]) -> Any:
    """Tune's scheduler, with the curves of trials that ended in an earlier start of the sweep.

    total: the validations of a fine-tuning.
    """
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if asha is None:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr=TIME,
        metric=VALUE,
        mode=mode,
        max_t=max(total, asha.grace),
        grace_period=asha.grace,
        reduction_factor=asha.reduction,
        stop_last_trials=False,
    )
    reported = rungs(asha, total)
    for record in earlier:
        trial: Any = SimpleNamespace(trial_id=f"before {record.number}")
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        for validation, value in record.curve.items():
            if validation in reported:
                scheduler.on_trial_result(None, trial, {TIME: validation, VALUE: value})  # type: ignore[arg-type]
    return scheduler
