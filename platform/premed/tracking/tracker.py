"""Tracker: what a command records of its runs and how it claims stages; and one that waits while MLflow is away."""

# pyright: reportReturnType=false
# (the Protocol's methods have a docstring for a body)

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from premed.errors import StageFailed, first_line
from premed.events import Event, EventHandler, WarningIssued
from premed.tracking.client import transient

P = ParamSpec("P")
R = TypeVar("R")


class Tracker(Protocol):
    """The runs of one command in a tracking server, and its leases of stages.

    Implemented by `mlflow_tracker.MLflowTracker`. Writes (`log_…`, `set_tags`, `finish`) return at once and arrive
    later, in order for each run; everything else asks the server and may raise what that raises.
    """

    # ---- leases: one command at a time runs a stage

    def acquire(self, digest: str) -> bool:
        """Whether the caller may now run the stage; until `release`, nobody else may, in this command or another."""

    def release(self, digest: str) -> None:
        """Gives the lease back; harmless where it is not held."""

    def lease_lost(self, digest: str) -> bool:
        """Whether another command took the lease over while this one's heartbeat was silent."""

    # ---- runs

    def newest_run(self, experiment: str, digest: str, kind: str, ended: bool = True) -> str | None:
        """The id of the newest run of that digest; among unfinished ones only, unless `ended`."""

    def finished_run(self, digest: str, kind: str) -> str | None:
        """The id of the finished run of that digest."""

    def finished_with(self, run_id: str, tags: Mapping[str, str]) -> bool:
        """Whether the run is finished and has these tags."""

    def open_run(
        self,
        experiment: str,
        name: str,
        digest: str,
        kind: str,
        parent: str | None,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> str:
        """The id of the run of that digest: the unfinished one is reopened, else a new one starts."""

    def reopen_run(self, run_id: str) -> None:
        """Sets an ended run to running, and removes the reason of its failure."""

    def download(self, run_id: str, folder: str, scored: bool = True) -> bool:
        """Writes a finished stage's files into `folder`, as its storage had them. False where MLflow has lost them.

        scored: the stage has a row of scores for each case.
        """

    # ---- writes

    def log_rows(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Metrics, as rows `{"step": int, "time": ms, "metrics": {name: float}}`; see `RunStore.log_rows`."""

    def log_scores(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """The table of scores, one row per case."""

    def log_files(self, run_id: str, folder_or_file: str, path: str = "") -> None:
        """A file, or all files of a folder, at `path` among the run's artifacts."""

    def log_datasets(self, run_id: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """The data sets that the run used; see `RunStore.log_datasets`."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Tags, as they are to be once everything before them is delivered."""

    def finish(self, run_id: str, status: str) -> None:
        """Ends the run now: FINISHED, FAILED or KILLED."""

    def wait_delivered(self, run_id: str, timeout: float = 10.0) -> bool:
        """Waits until everything of a finished run is delivered. False after `timeout` seconds: the rest is on disk."""

    # ---- models

    def is_registered(self, run_id: str) -> bool | None:
        """Whether the run's network is a version of a registered model; None where the registry refuses to say."""

    def register_model(
        self, run_id: str, name: str, module: Any, example: Any, score: float, card: dict[str, Any]
    ) -> str | None:
        """Registers the run's network (`registry.register`); returns the version, None where the registry refuses."""

    # ---- events

    def record_event(self, run_id: str, event: Event) -> None:
        """Takes an event of a stage's first worker: metrics are logged, and everything is kept for `drain_events`.

        LeaseLost where another command has taken the stage over.
        """

    def drain_events(self) -> list[Event]:
        """The events since the last call. Those of a stage carry its `run_id`."""

    def close(self, timeout: float = 60.0) -> int:
        """Releases all leases and delivers what is left; returns how many records stay on disk for the next start."""


class RetryingTracker:
    """A Tracker that waits while MLflow is away, so that an outage between two stages ends no experiment.

    waits: seconds before each new try; StageFailed when they are used up. pause: waits that long.
    """

    def __init__(
        self,
        tracker: Tracker,
        on_event: EventHandler,
        waits: Sequence[float] = (1, 2, 4, 8, *[15] * 40),
        pause: Callable[[float], None] = time.sleep,
    ):
        self.tracker, self.on_event, self.waits, self.pause = tracker, on_event, waits, pause

    def retry(self, method: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the method, again after each wait where MLflow does not answer; warns at the first."""
        waits, warned = iter(self.waits), False
        while True:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                if not outage(error):
                    raise
                message, wait = f"MLflow does not answer ({first_line(error)})", next(waits, None)
                if wait is None:
                    raise StageFailed(f"{message}; run the same command again to resume") from error
            if not warned:
                self.on_event(WarningIssued(f"{message}; waiting"))
            warned = True
            self.pause(wait)

    def acquire(self, digest: str) -> bool:
        return self.retry(self.tracker.acquire, digest)

    def release(self, digest: str) -> None:
        self.retry(self.tracker.release, digest)

    def lease_lost(self, digest: str) -> bool:
        return self.retry(self.tracker.lease_lost, digest)

    def newest_run(self, experiment: str, digest: str, kind: str, ended: bool = True) -> str | None:
        return self.retry(self.tracker.newest_run, experiment, digest, kind, ended)

    def finished_run(self, digest: str, kind: str) -> str | None:
        return self.retry(self.tracker.finished_run, digest, kind)

    def finished_with(self, run_id: str, tags: Mapping[str, str]) -> bool:
        return self.retry(self.tracker.finished_with, run_id, tags)

    def open_run(
        self,
        experiment: str,
        name: str,
        digest: str,
        kind: str,
        parent: str | None,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> str:
        return self.retry(self.tracker.open_run, experiment, name, digest, kind, parent, tags, params)

    def reopen_run(self, run_id: str) -> None:
        self.retry(self.tracker.reopen_run, run_id)

    def download(self, run_id: str, folder: str, scored: bool = True) -> bool:
        return self.retry(self.tracker.download, run_id, folder, scored)

    def log_rows(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.retry(self.tracker.log_rows, run_id, rows)

    def log_scores(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.retry(self.tracker.log_scores, run_id, rows)

    def log_files(self, run_id: str, folder_or_file: str, path: str = "") -> None:
        self.retry(self.tracker.log_files, run_id, folder_or_file, path)

    def log_datasets(self, run_id: str, entries: Sequence[Mapping[str, Any]]) -> None:
        self.retry(self.tracker.log_datasets, run_id, entries)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.retry(self.tracker.set_tags, run_id, tags)

    def finish(self, run_id: str, status: str) -> None:
        self.retry(self.tracker.finish, run_id, status)

    def wait_delivered(self, run_id: str, timeout: float = 10.0) -> bool:
        return self.retry(self.tracker.wait_delivered, run_id, timeout)

    def is_registered(self, run_id: str) -> bool | None:
        return self.retry(self.tracker.is_registered, run_id)

    def register_model(
        self, run_id: str, name: str, module: Any, example: Any, score: float, card: dict[str, Any]
    ) -> str | None:
        return self.retry(self.tracker.register_model, run_id, name, module, example, score, card)

    def record_event(self, run_id: str, event: Event) -> None:
        self.retry(self.tracker.record_event, run_id, event)

    def drain_events(self) -> list[Event]:
        return self.retry(self.tracker.drain_events)

    def close(self, timeout: float = 60.0) -> int:
        return self.retry(self.tracker.close, timeout)


def outage(error: Exception) -> bool:
    """Whether MLflow, or what it stands on, may answer later."""
    return transient(error) and (isinstance(error, OSError) or hasattr(error, "error_code"))
