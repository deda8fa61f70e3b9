"""Ray Tune around the trials of a sweep: how many are under way, and which fall behind and are stopped.

A trial as Tune knows it is a process that holds no CPU: it passes on what the driver tells of the trial (`attend`), so
that Tune's schedulers see it. Its work is done by the driver's threads and worker groups, which wait for room stage by
stage. So a trial that waits holds nothing, and no trial's process can keep another's workers from their place.

What Tune knows is gone when the command ends: the study is what a sweep goes on from, and nothing pickled is read.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from premed.execution.cluster import actor
from premed.tuning.reporter import TrialReports, trainable
from premed.tuning.space import Asha
from premed.tuning.study import TrialRecord

VALUE, TIME = "value", "validation"


class Work(Protocol):
    """What is done about the trials, as Tune comes to them."""

    def next(self) -> TrialRecord | None: ...

    def begin(self, number: int) -> None: ...

    def rule(self, number: int, step: int) -> None: ...

    def stop(self, number: int, failure: str = "") -> None: ...


class Suggestions(Searcher):
    """Hands the study's next trial to Tune."""

    def __init__(self, work: Work, news: Any):
        super().__init__()
        self.work, self.news = work, news

    def suggest(self, trial_id: str) -> Any:
        told = self.work.next()
        return Searcher.FINISHED if told is None else {"number": told.number, "news": self.news}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The study hears of it from the trial itself."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "") -> None:
        """The study is kept elsewhere."""


class TrialCallback(TrialProgressCallback):
    """Begins a trial's work with it, and stops it with it. It has the place of the callback that would print."""

    def __init__(self, work: Work):
        super().__init__()
        self.work = work

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.work.begin(trial.config["number"])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        if not result.get("done"):
            self.work.rule(trial.config["number"], result["step"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.work.stop(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.work.stop(trial.config["number"], "its process ended again and again")


def rungs(asha: Asha | None, total: int) -> set[int]:
    """The validations after which a trial may be stopped: grace, and each time `reduction` times as many."""
    if asha is None:
        return set()
    numbers, at = set(), float(asha.grace)
    while at < total:
        numbers.add(int(-(-at // 1)))
        at *= asha.reduction
    return numbers


def scheduler_of(asha: Asha | None, mode: str, total: int, before: Iterable[TrialRecord]) -> Any:
    """Tune's scheduler, told of all trials before. total: the validations of a fine-tuning."""
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
    at = rungs(asha, total)
    for told in before:
        trial: Any = SimpleNamespace(trial_id=f"before {told.number}")
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        for validation, value in told.curve.items():
            if validation in at:
                scheduler.on_trial_result(None, trial, {TIME: validation, VALUE: value})  # type: ignore[arg-type]
    return scheduler


def conduct(work: Work, told: Callable[[Any], None], scheduler: Any, concurrency: int, folder: Path) -> None:
    """Runs all trials; back when there are no more. told: takes the `News` actor, before any of them begins.

    folder: for what Tune writes; removed afterwards.
    """
    for name, value in {
        "RAY_AIR_NEW_OUTPUT": "0",  # it prints even where it is to be silent
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": str(concurrency),
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may end before it was scored
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    from ray import tune

    news = actor(TrialReports)
    told(news)
    try:
        tune.run(
            trainable,
            name="tune",
            storage_path=str(folder),
            search_alg=Suggestions(work, news),
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=concurrency,
            resources_per_trial={"cpu": 0, "memory": 1},  # nothing at all is no request to Ray
            max_failures=3,  # of the process alone: a trial that fails ends in order
            raise_on_failed_trial=False,
            reuse_actors=True,
            callbacks=[TrialCallback(work)],
            verbose=0,
            log_to_file=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
