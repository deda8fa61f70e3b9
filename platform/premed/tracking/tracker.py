"""The ledger: who may run which stage, every write to MLflow, and what is shown of a stage while it runs.

A plain object; on Ray it lives in an actor of its own (`launch.py`), so that workers, trials and the driver all speak
to one. Training never waits for it: rows go to the spool, which keeps them on disk until MLflow has heard them.
"""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from premed.errors import LeaseLost, StageFailed, first_line
from premed.events import Event, EventHandler, MetricsLogged, WarningIssued
from premed.tracking.client import transient
from premed.tracking.leases import Lease, sweep_dead
from premed.tracking.outbox import Spool
from premed.tracking.provenance import provenance
from premed.tracking.store import RunStore

BEAT = 10.0  # seconds between heartbeats; a lease is stale after 60


class Ledger:
    """One per `premed` command."""

    def __init__(self, uri: str, artifacts: str | None, spool: str):
        self.store = RunStore(uri, artifacts)
        self.spool = Spool(self.store, spool)
        self.spool.replay()
        sweep_dead(self.store)
        self.leases: dict[str, Lease] = {}
        self.held: set[str] = set()
        self.claiming: set[str] = set()
        self.lost: set[str] = set()
        self.digests: dict[str, str] = {}  # of the runs that were opened here
        self.events: deque[Event] = deque(maxlen=10_000)
        self.lock = threading.Lock()  # on Ray it has several threads
        self.closing = threading.Event()
        threading.Thread(target=self._beat, name="premed heartbeat", daemon=True).start()

    # ---- who may run what

    def acquire(self, digest: str) -> bool:
        """Whether whoever asks may now run the stage; nobody else does then, in this command or another."""
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
            lease = self.leases.pop(digest)  # before others may ask for a new one
            self.held.discard(digest)
            lease.release()

    def _beat(self) -> None:
        while not self.closing.wait(BEAT):
            self.beat()

    def beat(self) -> None:
        """Says for each lease that its holder lives; one that was taken away is let go."""
        for digest in list(self.held):
            try:
                alive = self.leases[digest].heartbeat()
            except Exception:  # noqa: BLE001 - MLflow may be away for a while; the next beat tells
                continue
            if not alive and digest in self.held:  # it slept, or was cut off
                self.lost.add(digest)
                self.release(digest)

    def taken(self, digest: str) -> bool:
        """Whether another command took the lease over while this one was silent."""
        return digest in self.lost

    # ---- runs

    def newest(self, experiment: str, digest: str, kind: str, ended: bool = True) -> str | None:
        """The id of the newest run of that digest; only among the unfinished ones, unless `ended`."""
        wanted = {"premed.digest": digest, "premed.kind": kind}
        found = self.store.search(wanted, experiment=experiment)
        return next((run.run_id for run in found if ended or run.status != "FINISHED"), None)

    def open(
        self, experiment: str, name: str, digest: str, kind: str, parent: str | None, tags: dict, params: dict
    ) -> str:
        """The run of that digest: the unfinished one goes on, else a new one starts."""
        if (run_id := self.newest(experiment, digest, kind, ended=False)) is not None:
            self.reopen(run_id)
            self.store.set_tags(run_id, tags)
        else:
            about: dict[str, Any] = {"digest": digest, "kind": kind, "parent": parent, "params": params}
            run_id = self.store.start(experiment, name, tags=tags | provenance(), **about)
        self.digests[run_id] = digest
        return run_id

    def reopen(self, run_id: str) -> None:
        """An ended run goes on; why it failed is no longer true."""
        with suppress(Exception):  # most have not failed
            self.store.client.delete_tag(run_id, "premed.failure")
        self.store.reopen(run_id)

    def finished(self, digest: str, kind: str) -> str | None:
        """The id of the finished run of that digest."""
        found = self.store.find(digest, kind)
        return found.run_id if found else None

    def holds(self, run_id: str, tags: dict[str, str]) -> bool:
        """Whether the run is finished and has these tags."""
        run = self.store.get(run_id)
        return run.status == "FINISHED" and tags.items() <= run.tags.items()

    def fetch(self, run_id: str, folder: str, scored: bool = True) -> bool:
        """A finished stage's files, as its storage had them, into `folder`; False where MLflow no longer has them.

        scored: it has a row of scores for each case.

        An outage is no answer and is raised: a download is waited for, not paid for with a training.
        """
        try:
            self.store.download(run_id, "", folder)
            rows = self.store.scores(run_id) if scored else None  # MLflow's file of that name is laid out for its UI
        except Exception as error:
            if away(error) and type(error) is not OSError:  # MLflow's word for files of its own that are gone
                raise
            self.warn(f"the files of run {run_id} cannot be had: {first_line(error)}")
            return False
        if rows is not None:
            (Path(folder) / "scores.json").write_text(json.dumps(rows))
        (Path(folder) / "scores.csv").unlink(missing_ok=True)
        return True

    def call(self, method: str, run_id: str, *args: Any) -> None:
        """A write to MLflow, some time: see `Spool.call`."""
        self.spool.call(method, run_id, *args)

    def settle(self, run_id: str, timeout: float = 10.0) -> bool:
        """Waits until MLflow has heard all of a run that was told to end; False: not yet, it waits on disk."""
        deadline = time.monotonic() + timeout
        # the spool leaves no file of a run that ended and was delivered
        while any((self.spool.folder / f"{run_id}{suffix}").exists() for suffix in (".jsonl", ".lock")):
            if time.monotonic() > deadline or self.closing.wait(0.02):
                return False
        return True

    def registered(self, run_id: str) -> bool | None:
        """Whether the run's network is a version of a model; None as with `register`."""
        models = self.store.client.search_model_versions
        return self.in_registry(lambda: bool(models(f"run_id = '{run_id}'", max_results=1)))

    def register(self, *args: Any) -> str | None:
        """Registers a model (see `RunStore.register`); None where MLflow will not: that costs nobody a training."""
        return self.in_registry(lambda: self.store.register(*args))

    def in_registry(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:
            if away(error):
                raise
            self.warn(f"the model was not registered: {first_line(error)}")
            return None

    # ---- what workers tell

    def event(self, run_id: str, event: Event) -> None:
        """From a stage's first worker, as it happens. LeaseLost stops it where another command has taken over."""
        if self.taken(self.digests.get(run_id, "")):
            raise LeaseLost("another command took this stage over while this one was silent")
        if isinstance(event, MetricsLogged):
            row = {"step": event.step, "time": event.time, "metrics": {**event.metrics, **event.throughput}}
            self.spool.call("log_rows", run_id, [row])
        self.events.append(replace(event, run_id=run_id))

    def warn(self, text: str) -> None:
        self.events.append(WarningIssued(text))

    def drain(self) -> list[Event]:
        """The events since the last call; those of a stage name its run."""
        with self.lock:
            return [self.events.popleft() for _ in range(len(self.events))]

    def close(self, timeout: float = 60.0) -> int:
        """Ends everything; the number of records that MLflow has not heard (they wait on disk)."""
        self.closing.set()
        for digest in list(self.held):
            self.release(digest)
        return self.spool.close(timeout)


class Patient:
    """A ledger that waits while MLflow is away: an outage between two stages ends no experiment.

    waits: seconds before each new try. StageFailed when they are used up. pause: what waits so long.
    """

    def __init__(
        self,
        ledger: Any,
        show: EventHandler,
        waits: Sequence[float] = (1, 2, 4, 8, *[15] * 40),
        pause: Callable[[float], None] = time.sleep,
    ):
        self.ledger, self.show, self.waits, self.pause = ledger, show, waits, pause

    def __getattr__(self, method: str) -> Any:
        asked = getattr(self.ledger, method)
        return (lambda *args: self.ask(asked, args)) if callable(asked) else asked

    def ask(self, asked: Callable, args: tuple) -> Any:
        for number, wait in enumerate((*self.waits, None)):
            try:
                return asked(*args)
            except Exception as error:
                if not away(error):
                    raise
                said = f"MLflow does not answer ({first_line(error)})"
                if wait is None:
                    raise StageFailed(f"{said}; the same command goes on") from error
            if number == 0:
                self.show(WarningIssued(f"{said}; waiting"))
            self.pause(wait)
        return None


def away(error: Exception) -> bool:
    """Whether MLflow, or what it stands on, may answer later."""
    return transient(error) and (isinstance(error, OSError) or hasattr(error, "error_code"))
