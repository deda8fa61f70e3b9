"""A command that is watched while something is done to it, and what is compared in the end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import psutil
import yaml
from support.experiments import SCRATCH, curve, results, store_of, tree

from premed.tracking.run_store import LEASES
from premed.training.storage import StageStorage

CHANGES = (
    SCRATCH,
    {
        "test": False,
        "finetune": {"epochs": 100, "validations": 5},
        "train": {"log_steps": 5, "max_failures": 3, "hang_timeout": 10},
    },
)
"""Of the tiny experiment: one stage, long enough to be disturbed, with a checkpoint every fifth step."""
SEEN = 10  # checkpoints before the fault


@dataclass(frozen=True)
class Finished:
    """What a command leaves."""

    results: list[dict[str, Any]]
    weights: dict[str, bytes]
    curve: dict[str, list[tuple[int, float]]]


def finished_of(home, outcome, store=None) -> Finished:
    """store: where its runs are, if not in the home."""
    stage = outcome["stages"][0]
    folder = StageStorage(*stage["where"].rsplit("/", 1))
    weights = {name: folder.get(name) for name in folder.names() if name.endswith(".safetensors")}
    assert len(weights) >= 2
    found = curve(home, stage["run_id"]) if store is None else curve_in(store, stage["run_id"])
    return Finished(results(outcome), weights, found)


def curve_in(store, run_id):
    names = [name for name in store.get(run_id).metrics if name.startswith(("train/", "val/"))]
    history = store.client.get_metric_history
    return {name: [(point.step, point.value) for point in history(run_id, name)] for name in names}


def compare(row, ours: Finished, theirs: Finished, home, store=None) -> None:
    """Fills the row, and fails where anything is lost or differs."""
    points = {(name, step) for name, points in theirs.curve.items() for step, _ in points}
    found = [(name, step) for name, points in ours.curve.items() for step, _ in points]
    lost, twice = len(points - set(found)), len(found) - len(set(found))
    store = store or store_of(home)
    leases = len(list(store.search({}, experiment=LEASES)))
    spooled = len([path for path in (home / "spool").glob("*.jsonl") if path.stat().st_size])
    left = {"points lost": lost, "points twice": twice, "leases left": leases, "records left": spooled}
    row.lost = ", ".join(f"{number} {what}" for what, number in left.items() if number) or "nothing"
    same = {
        "weights": ours.weights == theirs.weights,
        "curve": ours.curve == theirs.curve,
        "scores": ours.results == theirs.results,
    }
    row.equal = "yes" if all(same.values()) else f"no: {', '.join(name for name, fine in same.items() if not fine)}"
    assert (row.lost, row.equal) == ("nothing", "yes")
    assert {run.status for run in store.search({})} == {"FINISHED"}


def watch(folder, home, chest, *changes, arguments=(), tracking=None, **more) -> "Watched":
    """`premed run --json` of the tiny experiment. tracking: MLflow's URI, if not the home's file. more: environment."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree(chest, *CHANGES, *changes)))
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"PREMED_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment |= ({"MLFLOW_TRACKING_URI": tracking} if tracking else {}) | more
    process = subprocess.Popen(
        [sys.executable, "-m", "premed", "run", "--json", str(folder / "tiny.yaml"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Watched(process)


STARTED: list[subprocess.Popen] = []
"""What a test has started; the fixture `nothing_stays` ends it."""


class Watched:
    """A command; each line of its stderr, or of its stdout if that is all there is, is kept with its time."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.began = process, time.monotonic()
        STARTED.append(process)
        self.lines: list[tuple[float, str]] = []
        self.output: list[str] = []
        self.change = threading.Condition()
        readers = [self._err, self._out] if process.stderr else [self._err]
        self.readers = [threading.Thread(target=each, daemon=True) for each in readers]
        for reader in self.readers:
            reader.start()

    def _err(self) -> None:
        for line in self.process.stderr or self.process.stdout or ():
            with self.change:
                self.lines.append((time.monotonic(), line.rstrip("\n")))
                self.change.notify_all()
        with self.change:
            self.lines.append((time.monotonic(), "<end>"))
            self.change.notify_all()

    def _out(self) -> None:
        assert self.process.stdout
        self.output += list(self.process.stdout)

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def until(self, text: str, since: float = 0.0, count: int = 1, timeout: float = 400) -> tuple[float, str]:
        """Waits for the `count`-th line with `text` that came after `since`: its time, and the line."""
        deadline = time.monotonic() + timeout
        with self.change:
            while True:
                found = [(at, line) for at, line in self.lines if at >= since and text in line]
                if len(found) >= count:
                    return found[count - 1]
                if any(line == "<end>" for _, line in self.lines) or time.monotonic() > deadline:
                    raise AssertionError(f"it never printed {text!r}: {self.text}")
                self.change.wait(1)

    def training(self) -> None:
        """Waits until the stage is well under way."""
        self.until("checkpoint saved", count=SEEN)

    def going_on(self, since: float) -> float:
        """Seconds from `since` until a training goes on from a checkpoint."""
        return self.until("resumed after step", since)[0] - since

    def worker(self) -> psutil.Process:
        """A Ray worker that trains."""
        return next(each for each in self.children() if "RayTrainWorker" in " ".join(each.cmdline()))

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self, number=signal.SIGKILL) -> float:
        """Sends a signal to the command alone; returns when."""
        os.kill(self.process.pid, number)
        return time.monotonic()

    def end(self, timeout: float = 400) -> int:
        """Its exit code."""
        code = self.process.wait(timeout)
        for reader in self.readers:
            reader.join(30)
        return code

    def ended_within(self, seconds: float) -> bool:
        """Whether it ends in that time by itself."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def outcome(self, timeout: float = 600) -> dict[str, Any]:
        assert self.end(timeout) == 0, self.text
        return json.loads("".join(self.output))


def gone(processes: list[psutil.Process], timeout: float = 40) -> bool:
    """Whether all have ended."""
    return psutil.wait_procs(processes, timeout=timeout)[1] == []
