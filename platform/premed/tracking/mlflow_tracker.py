"""MLflowTracker: the runs of one command in MLflow, its leases, and the events of its stages.

A plain object. On Ray an actor holds it, so that workers, trials and the driver share one. Training never waits for
MLflow: metrics go to the outbox, which keeps them on disk until MLflow has them.
"""

import functools
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from premed.errors import LeaseLost, StageFailed, first_line
from premed.events import Event, MetricsLogged, WarningIssued
from premed.tracking import model_registry
from premed.tracking.artifacts import refuse_moved
from premed.tracking.client import is_deleted, is_unknown
from premed.tracking.outbox import Outbox
from premed.tracking.provenance import provenance
from premed.tracking.run_store import RunStore
from premed.tracking.stage_leases import Lease, close_dead_runs
from premed.tracking.tracker import outage

HEARTBEAT = 10.0  # seconds between heartbeats; a lease is stale after 60
RELEASE = 5.0  # seconds that MLflow has to answer before a lease is released
P = ParamSpec("P")
R = TypeVar("R")


def probed(method: "Callable[Concatenate[MLflowTracker, P], R]") -> "Callable[Concatenate[MLflowTracker, P], R]":
    """A method that calls MLflow: it raises ConnectionError, within seconds, if that does not answer."""

    @functools.wraps(method)
    def wrapper(self: "MLflowTracker", *args: P.args, **kwargs: P.kwargs) -> R:
        self.store.probe()
        return method(self, *args, **kwargs)

    return wrapper


class MLflowTracker:
    """One per `premed` command; see `tracker.Tracker`."""

    def __init__(self, uri: str, artifacts: str | None, outbox: str):
        """outbox: the folder of the writes that are not delivered yet. uri, artifacts: see `RunStore`."""
        self.events: deque[Event] = deque(maxlen=10_000)
        self.store = RunStore(uri, artifacts)
        self.outbox = Outbox(self.store, outbox, self._warn)
        self.outbox.replay()
        close_dead_runs(self.store)
        self.leases: dict[str, Lease] = {}
        self.held: set[str] = set()
        self.claiming: set[str] = set()
        self.lost: set[str] = set()
        self.digests: dict[str, str] = {}  # of the runs that were opened here
        self.lock = threading.Lock()  # an actor has several threads
        self.closing = threading.Event()
        threading.Thread(target=self._beat, name="premed heartbeat", daemon=True).start()

    # ---- leases

    @probed
    def acquire(self, digest: str) -> bool:
        with self.lock:
            if digest in self.held | self.claiming:
                return False
            self.claiming.add(digest)
        try:
            held = self.leases.setdefault(digest, Lease(self.store)).acquire(digest, f"premed {os.getpid()}")
            if held:
                self.held.add(digest)
                self.lost.discard(digest)
        finally:
            self.claiming.discard(digest)
        return held

    def release(self, digest: str) -> None:
        if digest in self.held:
            lease = self.leases.pop(digest)  # before others can create a new one
            self.held.discard(digest)
            with suppress(ConnectionError):  # the claim goes stale, as after a kill: nobody waits for that
                self.store.probe(RELEASE)
                lease.release()

    def lease_lost(self, digest: str) -> bool:
        return digest in self.lost

    def _beat(self) -> None:
        while not self.closing.wait(HEARTBEAT):
            self.beat()

    def beat(self) -> None:
        """Sends a heartbeat for each lease; releases those that are lost."""
        for digest in list(self.held):
            try:
                self.store.probe()
                alive = self.leases[digest].heartbeat()
            except Exception:  # noqa: BLE001 - an outage, perhaps; the next heartbeat tries again
                continue
            if not alive and digest in self.held:  # this process was suspended or offline
                self.lost.add(digest)
                self.release(digest)

    # ---- runs

    @probed
    def newest_run(self, experiment: str, digest: str, kind: str, ended: bool = True) -> str | None:
        runs = self.store.search({"premed.digest": digest, "premed.kind": kind}, experiment=experiment)
        return next((run.run_id for run in runs if ended or run.status != "FINISHED"), None)

    @probed
    def finished_run(self, digest: str, kind: str) -> str | None:
        run = self.store.find(digest, kind)
        return run.run_id if run else None

    @probed
    def finished_with(self, run_id: str, tags: Mapping[str, str]) -> bool:
        run = self.store.get(run_id)
        return run.status == "FINISHED" and tags.items() <= run.tags.items()

    @probed
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
        if (run_id := self.newest_run(experiment, digest, kind, ended=False)) is not None:
            self.reopen_run(run_id, params)
            self.store.set_tags(run_id, tags)
        else:
            about: dict[str, Any] = {"digest": digest, "kind": kind, "parent": parent, "params": params}
            run_id = self.store.start(experiment, name, tags={**tags, **provenance()}, **about)
        self.digests[run_id] = digest
        return run_id

    @probed
    def reopen_run(self, run_id: str, params: Mapping[str, Any] | None = None) -> None:
        with suppress(Exception):  # most have not failed
            self.store.client.delete_tag(run_id, "premed.failure")
        try:
            self.store.reopen(run_id)
        except Exception as error:
            if is_unknown(error):
                raise StageFailed(
                    f"run {run_id} is gone from MLflow; run the same command again: it records the rest anew"
                ) from error
            if not is_deleted(error):
                raise
            self.store.restore(run_id)
            self.store.reopen(run_id)
            self._warn(f"run {run_id} was deleted in MLflow while it is recorded; it is restored")
        self.store.log_params(run_id, params or {})

    @probed
    def download(self, run_id: str, folder: str, scored: bool = True) -> bool:
        """See `Tracker.download`. Raises in an outage: waiting for the download is cheaper than a training."""
        try:
            self.store.download(run_id, "", folder)
            rows = self.store.scores(run_id) if scored else None  # MLflow's file of that name is laid out for its UI
        except Exception as error:
            if outage(error) and type(error) is not OSError:  # MLflow raises OSError for files that it has lost
                raise
            self._warn(f"the files of run {run_id} cannot be downloaded: {first_line(error)}")
            return False
        if rows is not None:
            (Path(folder) / "scores.json").write_text(json.dumps(rows))
        (Path(folder) / "scores.csv").unlink(missing_ok=True)
        return True

    # ---- writes, delivered by the outbox

    def log_rows(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.outbox.add("log_rows", run_id, rows)

    def log_scores(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.outbox.add("log_scores", run_id, rows)

    def log_files(self, run_id: str, folder_or_file: str, path: str = "") -> None:
        self.outbox.add("log_files", run_id, folder_or_file, path)

    def log_datasets(self, run_id: str, entries: Sequence[Mapping[str, Any]]) -> None:
        self.outbox.add("log_datasets", run_id, entries)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.outbox.add("set_tags", run_id, tags)

    def finish(self, run_id: str, status: str) -> None:
        self.outbox.add("finish", run_id, status)

    def wait_delivered(self, run_id: str, timeout: float = 10.0) -> bool:
        deadline = time.monotonic() + timeout
        # the outbox removes the files of a run that ended and is delivered
        while any((self.outbox.folder / f"{run_id}{suffix}").exists() for suffix in (".jsonl", ".lock")):
            if time.monotonic() > deadline or self.closing.wait(0.02):
                return False
        return True

    # ---- models

    @probed
    def is_registered(self, run_id: str) -> bool | None:
        search = self.store.client.search_model_versions
        return self._ask_registry(lambda: bool(search(f"run_id = '{run_id}'", max_results=1)))

    @probed
    def registered_as(self, run_id: str) -> str | None:
        return self._ask_registry(lambda: model_registry.version_of(self.store.client, run_id))

    @probed
    def register_model(self, run_id: str, name: str, folder: str, score: float | None) -> str | None:
        def register() -> str:
            refuse_moved(self.store.get(run_id).artifact_uri, self.store.artifacts)
            return model_registry.register(self.store.client, run_id, name, Path(folder), score, self._warn)

        return self._ask_registry(register)

    def _ask_registry(self, call: Callable[[], Any]) -> Any:
        """Returns the call's result; None, with a warning, if the registry fails: that must not fail a training."""
        try:
            return call()
        except Exception as error:
            if outage(error):
                raise
            self._warn(f"MLflow's model registry failed: {first_line(error)}")
            return None

    # ---- events

    def record_event(self, run_id: str, event: Event) -> None:
        if self.lease_lost(self.digests.get(run_id, "")):
            raise LeaseLost("another command took over this stage, because this one sent no heartbeat")
        if isinstance(event, MetricsLogged):
            metrics = {**event.metrics, **event.throughput}
            self.log_rows(run_id, [{"step": event.step, "time": event.time, "metrics": metrics}])
        self.events.append(replace(event, run_id=run_id))

    def _warn(self, text: str) -> None:
        self.events.append(WarningIssued(text))

    def drain_events(self) -> list[Event]:
        with self.lock:
            return [self.events.popleft() for _ in range(len(self.events))]

    def close(self, timeout: float = 60.0) -> int:
        began = time.monotonic()
        self.closing.set()
        for digest in list(self.held):
            self.release(digest)
        return self.outbox.close(max(timeout - (time.monotonic() - began), 1.0))
