"""Tracker: the interface through which a command records runs and claims stages; RetryingTracker waits in an outage."""

# pyright: reportReturnType=false
# (the Protocol's methods have a docstring for a body)

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from premed.errors import StageFailed
from premed.events import Event, EventHandler, WarningIssued
from premed.tracking.client import LONGEST_REQUEST, locate_store, transient, unreachable
from premed.tracking.database import is_lasting

SILENCE = 10.0
"""Seconds after which a call that MLflow has not answered is told."""
PATIENCE = 600.0
"""Seconds of an outage after which a stage fails."""
P = ParamSpec("P")
R = TypeVar("R")


class Tracker(Protocol):
    """The runs of one command in a tracking server, and its leases of stages.

    Implemented by `mlflow_tracker.MLflowTracker`. Writes (`log_…`, `set_tags`, `finish`) return at once and are
    delivered later, in order for each run; all other methods call the server and may raise its errors.
    """

    # ---- leases: one command at a time runs a stage

    def acquire(self, digest: str) -> bool:
        """Claims the stage's lease; returns whether the caller holds it. Until `release`, no other can acquire it."""

    def release(self, digest: str) -> None:
        """Releases the lease, if it is held."""

    def lease_lost(self, digest: str) -> bool:
        """Whether the lease was lost: another command took it over after this one's heartbeat stopped."""

    # ---- runs

    def newest_run(self, experiment: str, digest: str, kind: str, ended: bool = True) -> str | None:
        """Returns the id of the newest run of that digest, or None. ended: False skips finished runs."""

    def finished_run(self, digest: str, kind: str) -> str | None:
        """Returns the id of the newest finished run of that digest, or None."""

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
        """Reopens the newest run of that digest that is not finished, or starts a new one; returns its id."""

    def reopen_run(self, run_id: str, params: Mapping[str, Any] | None = None) -> None:
        """Sets an ended run to RUNNING, removes the reason of its failure, and logs the `params` that it lacks."""

    def download(self, run_id: str, folder: str, scored: bool = True) -> bool:
        """Writes a finished stage's files into `folder`, as its storage had them. Returns False if MLflow lost them.

        scored: the stage has a row of scores for each case.
        """

    # ---- writes

    def log_rows(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs metrics, as rows `{"step": int, "time": ms, "metrics": {name: float}}`; see `RunStore.log_rows`."""

    def log_scores(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs the table of scores, one row per case."""

    def log_files(self, run_id: str, folder_or_file: str, path: str = "") -> None:
        """Logs a file, or all files of a folder, at `path` among the run's artifacts."""

    def log_datasets(self, run_id: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """Logs the data sets that the run used; see `RunStore.log_datasets`."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags, after everything logged before is delivered."""

    def finish(self, run_id: str, status: str) -> None:
        """Ends the run, with the present as its end time. status: FINISHED, FAILED or KILLED."""

    def wait_delivered(self, run_id: str, timeout: float = 10.0) -> bool:
        """Waits until all writes of an ended run are delivered. False after `timeout` seconds: the rest is on disk."""

    # ---- models

    def is_registered(self, run_id: str) -> bool | None:
        """Whether the run's network is a version of a registered model; None if the registry fails."""

    def registered_as(self, run_id: str) -> str | None:
        """Returns `models:/NAME/VERSION` of the run's network; None if it is not registered, or the registry fails."""

    def register_model(self, run_id: str, name: str, folder: str, score: float | None) -> str | None:
        """Registers the run's network, exported to a folder of this machine (`model_registry.export`).

        Returns the version; None if the registry fails. score: see `model_registry.register`.
        """

    # ---- events

    def record_event(self, run_id: str, event: Event) -> None:
        """Records an event of a stage's first worker: logs metrics, and keeps the event for `drain_events`.

        Raises LeaseLost if another command took the stage over.
        """

    def drain_events(self) -> list[Event]:
        """Returns the events since the last call. Those of a stage have its `run_id`."""

    def close(self, timeout: float = 60.0) -> int:
        """Releases all leases and delivers what is left; returns how many writes stay on disk for the next start."""


class RetryingTracker:
    """A Tracker that waits while MLflow does not answer, so that an outage between two stages ends no experiment.

    waits: seconds before each retry; raises StageFailed after the last one, and after `patience` seconds: the tries
    themselves take time where a server hangs. pause: sleeps so many seconds.
    """

    def __init__(
        self,
        tracker: Tracker,
        on_event: EventHandler,
        waits: Sequence[float] = (1, 2, 4, 8, *[15] * 40),
        pause: Callable[[float], None] = time.sleep,
        patience: float = PATIENCE,
    ):
        self.tracker, self.on_event, self.waits, self.pause = tracker, on_event, waits, pause
        self.patience = patience

    def retry(self, method: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the method, and again after each wait while MLflow does not answer; warns once."""
        waits, warned, began = iter(self.waits), False, time.monotonic()
        while True:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                if not outage(error):
                    raise
                message, wait = unreachable(error, locate_store()[0]), next(waits, None)
                if wait is None or is_lasting(error) or time.monotonic() - began > self.patience:
                    raise StageFailed(f"{message}; run the same command again to resume") from error
            if not warned:
                self.on_event(WarningIssued(f"{message}; waiting, for at most {self.patience / 60:g} minutes"))
            warned = True
            self.pause(wait)

    def query(self, method: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The same; warns of a server that is silent, whose time limit is much longer than a person's patience."""
        return self.with_notice(LONGEST_REQUEST, lambda: self.retry(method, *args, **kwargs))

    def with_notice(self, most: str, call: Callable[[], R]) -> R:
        """Makes the call, and warns after some seconds that it is waited for, and for how long at most."""
        text = f"MLflow has not answered for {SILENCE:g} s; waiting, for at most {most}"
        timer = threading.Timer(SILENCE, lambda: self.on_event(WarningIssued(text)))
        timer.daemon = True
        timer.start()
        try:
            return call()
        finally:
            timer.cancel()

    def acquire(self, digest: str) -> bool:
        return self.query(self.tracker.acquire, digest)

    def release(self, digest: str) -> None:
        self.query(self.tracker.release, digest)

    def lease_lost(self, digest: str) -> bool:
        return self.retry(self.tracker.lease_lost, digest)

    def newest_run(self, experiment: str, digest: str, kind: str, ended: bool = True) -> str | None:
        return self.query(self.tracker.newest_run, experiment, digest, kind, ended)

    def finished_run(self, digest: str, kind: str) -> str | None:
        return self.query(self.tracker.finished_run, digest, kind)

    def finished_with(self, run_id: str, tags: Mapping[str, str]) -> bool:
        return self.query(self.tracker.finished_with, run_id, tags)

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
        return self.query(self.tracker.open_run, experiment, name, digest, kind, parent, tags, params)

    def reopen_run(self, run_id: str, params: Mapping[str, Any] | None = None) -> None:
        self.query(self.tracker.reopen_run, run_id, params)

    def download(self, run_id: str, folder: str, scored: bool = True) -> bool:
        return self.query(self.tracker.download, run_id, folder, scored)

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
        return self.query(self.tracker.is_registered, run_id)

    def registered_as(self, run_id: str) -> str | None:
        return self.query(self.tracker.registered_as, run_id)

    def register_model(self, run_id: str, name: str, folder: str, score: float | None) -> str | None:
        return self.query(self.tracker.register_model, run_id, name, folder, score)

    def record_event(self, run_id: str, event: Event) -> None:
        self.retry(self.tracker.record_event, run_id, event)

    def drain_events(self) -> list[Event]:
        return self.retry(self.tracker.drain_events)

    def close(self, timeout: float = 60.0) -> int:
        return self.with_notice(f"{timeout} s", lambda: self.retry(self.tracker.close, timeout))


def outage(error: Exception) -> bool:
    """Whether the error is an outage, of MLflow or of what it uses, after which a retry may succeed."""
    return transient(error) and (isinstance(error, OSError) or hasattr(error, "error_code"))
