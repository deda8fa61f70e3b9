"""Ray Tune over the trials of a sweep: how many run at once.

Tune's trials are zero-CPU proxies: each forwards a trial's validation scores to Tune (`reporter.trainable`), so that
its scheduler can stop it. The training itself is done by threads of the command and their worker groups, which wait for
resources stage by stage. So a waiting trial reserves no resources, and no trial's process takes those of another
trial's workers.

Tune's own state is deleted when the command ends: a sweep resumes from its study, and nothing pickled is read.

Imports Ray, so it is imported once this command has its Ray: see `connection.stay_on_loopback`.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from premed.execution.cluster import actor
from premed.tuning.reporter import TrialReports, trainable
from premed.tuning.study import TrialRecord


class TrialRunner(Protocol):
    """Runs the trials that Tune asks for. Tune calls it from one thread."""

    def next_trial(self) -> TrialRecord | None:
        """Returns the next trial to run; None if there are enough."""
        ...

    def start_trial(self, number: int) -> None:
        """Starts the trial, unless it is running; returns once the next one may start."""

    def continue_trial(self, number: int, step: int) -> None:
        """Lets the trial's training continue from its validation at `step`."""

    def stop_trial(self, number: int, failure: str = "") -> None:
        """Stops the trial, if it is still running. failure: why it failed; empty where the scheduler stopped it."""


class StudySearcher(Searcher):
    """Tune's search algorithm: suggests the next trial of the study."""

    def __init__(self, runner: TrialRunner, reports: Any):
        super().__init__()
        self.runner, self.reports = runner, reports

    def suggest(self, trial_id: str) -> Any:
        trial = self.runner.next_trial()
        return Searcher.FINISHED if trial is None else {"number": trial.number, "reports": self.reports}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Does nothing: the thread that runs the trial records its end in the study."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "") -> None:
        """Does nothing: the study is in its own database."""


class TrialCallback(TrialProgressCallback):
    """Starts and stops trials when Tune does. Being Tune's progress callback, it also replaces the one that prints."""

    def __init__(self, runner: TrialRunner):
        super().__init__()
        self.runner = runner

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.runner.start_trial(trial.config["number"])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        if not result.get("done"):
            self.runner.continue_trial(trial.config["number"], result["step"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.runner.stop_trial(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.runner.stop_trial(trial.config["number"], "its process in Ray Tune ended repeatedly")


def run_tune(
    runner: TrialRunner, on_reports: Callable[[Any], None], scheduler: Any, concurrency: int, folder: Path
) -> None:
    """Runs all trials; returns when there are no more.

    on_reports: called with the `TrialReports` actor before any trial starts. folder: for Tune's files; removed at the
    end.
    """
    for name, value in {
        "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints even with verbose=0
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": str(concurrency),
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may end before its first score
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    from ray import tune

    reports = actor(TrialReports)
    on_reports(reports)
    try:
        tune.run(
            trainable,
            name="tune",
            storage_path=str(folder),
            search_alg=StudySearcher(runner, reports),
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=concurrency,
            resources_per_trial={"cpu": 0, "memory": 1},  # Ray takes no request without any resource
            max_failures=3,  # of the proxy process: it does not fail when its trial does
            raise_on_failed_trial=False,
            reuse_actors=True,
            callbacks=[TrialCallback(runner)],
            verbose=0,
            log_to_file=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
