"""The ledger: who may run which stage, every write to MLflow, and what is shown of a stage while it runs.

A plain object; on Ray it lives in an actor of its own (`launch.py`), so that workers, trials and the driver all speak to
one. Training never waits for it: rows go to the spool, which keeps them on disk until MLflow has heard them.
"""

import os
import subprocess
import threading
from collections import deque
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from premed.leases import Lease, sweep_dead
from premed.runs import RunStore
from premed.spool import Spool

BEAT = 10.0  # seconds between heartbeats; a lease is stale after 60
PACKAGES = ("premed", "torch", "timm", "monai", "ray", "mlflow", "numpy")


class Ledger:
    """One per `premed` command."""

    def __init__(self, uri: str, artifacts: str | None, spool: str):
        self.store = RunStore(uri, artifacts)
        self.spool = Spool(self.store, spool)
        self.spool.replay()
        sweep_dead(self.store)
        self.leases: dict[str, Lease] = {}
        self.held: set[str] = set()
        self.events: deque[dict[str, Any]] = deque(maxlen=10_000)
        self.closing = threading.Event()
        threading.Thread(target=self._beat, name="premed heartbeat", daemon=True).start()

    # ---- who may run what

    def acquire(self, digest: str) -> bool:
        """Whether this command may now run the stage; nobody else does then."""
        if self.leases.setdefault(digest, Lease(self.store)).acquire(digest, f"premed {os.getpid()}"):
            self.held.add(digest)
        return digest in self.held

    def release(self, digest: str) -> None:
        if digest in self.held:
            self.held.discard(digest)
            self.leases.pop(digest).release()

    def _beat(self) -> None:
        while not self.closing.wait(BEAT):
            for digest in list(self.held):
                try:
                    self.leases[digest].heartbeat()
                except Exception:  # noqa: BLE001 - MLflow may be away for a while; the next beat tells
                    continue

    # ---- runs

    def open(self, experiment: str, name: str, digest: str, kind: str, parent: str | None, tags: dict, params: dict) -> str:
        """The run of that digest: the unfinished one goes on, else a new one starts."""
        wanted = {"premed.digest": digest, "premed.kind": kind}
        for run in self.store.search(wanted, experiment=experiment):
            if kind == "experiment" or run.status != "FINISHED":
                self.store.reopen(run.run_id)
                self.store.set_tags(run.run_id, tags)
                return run.run_id
        return self.store.start(
            experiment, name, digest=digest, kind=kind, parent=parent, tags=tags | provenance(), params=params
        )

    def finished(self, digest: str, kind: str) -> str | None:
        """The id of the finished run of that digest."""
        found = self.store.find(digest, kind)
        return found.run_id if found else None

    def download(self, run_id: str, folder: str) -> None:
        """All of a run's files, into `folder`."""
        self.store.download(run_id, "", Path(folder))

    def call(self, method: str, run_id: str, *args: Any) -> None:
        """A write to MLflow, some time: see `Spool.call`."""
        self.spool.call(method, run_id, *args)

    def register(self, *args: Any) -> str | None:
        """Registers a model (see `RunStore.register`); without MLflow the run is kept and the model is not registered."""
        try:
            return self.store.register(*args)
        except Exception as error:  # noqa: BLE001 - a model that cannot be registered must not lose a training
            self.events.append({"event": "warning", "text": f"the model was not registered: {first_line(error)}"})
            return None

    # ---- what workers tell

    def event(self, run_id: str, event: dict[str, Any]) -> None:
        """From a stage's first worker, as it happens."""
        if event["event"] == "row":
            self.spool.call("log_rows", run_id, [{name: event[name] for name in ("step", "time", "metrics")}])
        self.events.append(event)

    def drain(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        return [self.events.popleft() for _ in range(len(self.events))]

    def close(self, timeout: float = 60.0) -> int:
        """Ends everything; the number of records that MLflow has not heard (they wait on disk)."""
        self.closing.set()
        for digest in list(self.held):
            self.release(digest)
        return self.spool.close(timeout)


def provenance() -> dict[str, str]:
    """Tags: the commit premed runs from, and the versions of what it stands on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], cwd=here, capture_output=True, text=True
    )
    return versions | ({"mlflow.source.git.commit": commit.stdout.strip()} if commit.returncode == 0 else {})


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
