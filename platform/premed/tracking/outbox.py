"""Outbox: stores writes to MLflow on disk first, and delivers them once MLflow answers.

So neither an outage of MLflow nor the end of this process loses a record: the next process delivers what is left. A
record may be delivered twice (if the process ends before it notes the delivery); RunStore's writes allow for that.
"""

import json
import logging
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from premed.tracking.client import lost_race, masked, transient

if TYPE_CHECKING:
    from premed.tracking.run_store import RunStore

log = logging.getLogger(__name__)
_CALLS = ("log_rows", "log_scores", "log_files", "log_datasets", "set_tags", "finish")
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two attempts


class Outbox:
    """Delivers calls to a RunStore in the background, in order for each run; `folder` keeps what is not delivered.

    A run has one writer: its file is locked until its end is delivered or the outbox is closed.
    """

    def __init__(self, store: "RunStore", folder: Path | str):
        self.store, self.folder = store, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journals: OrderedDict[str, _Journal] = OrderedDict()
        self._change = threading.Condition()
        self._deadline: float | None = None  # set by close()
        self._silent = False  # whether MLflow has not answered since the last delivery
        self._writer = threading.Thread(target=self._work, name="premed outbox", daemon=True)
        self._writer.start()

    def add(self, method: str, run_id: str, *args: Any, **kwargs: Any) -> None:
        """Queues `store.method(run_id, *args, **kwargs)` and returns at once. Arguments: JSON, paths or numbers."""
        if method not in _CALLS:
            raise ValueError(f"{method} cannot be delivered later: {', '.join(_CALLS)}")
        if method == "finish":  # the run ends now, not when this is delivered
            kwargs.setdefault("end_time", int(time.time() * 1000))
        line = json.dumps({"call": method, "args": [run_id, *args], "kwargs": kwargs}, default=_plain).encode() + b"\n"
        with self._change:
            if self._deadline is not None:
                raise ValueError("the outbox is closed")
            if run_id not in self._journals:
                self._journals[run_id] = _Journal(self.folder / f"{run_id}.jsonl")
            self._journals[run_id].append(line)
            self._change.notify()

    def replay(self) -> int:
        """Queues the records that ended processes left in the folder; returns their number."""
        num_records = 0
        for path in sorted(self.folder.glob("*.jsonl")):
            run_id = path.name.removesuffix(".jsonl")
            with self._change:
                if run_id.endswith(".rejected") or run_id in self._journals:
                    continue
                try:
                    journal = _Journal(path)
                except Timeout:  # its process is alive
                    continue
                self._journals[run_id] = journal
                num_records += journal.pending
                self._change.notify()
        return num_records

    def close(self, timeout: float = 10.0) -> int:
        """Delivers for at most `timeout` seconds more; returns how many records stay on disk for `replay`."""
        with self._change:
            self._deadline = time.monotonic() + timeout
            self._change.notify()
        self._writer.join(timeout)
        with self._change:
            left = sum(journal.pending for journal in self._journals.values())
        if left:
            log.warning(
                "%d records were not delivered to MLflow: they are kept in %s and delivered at the next start",
                left,
                self.folder,
            )
        return left

    def _work(self) -> None:
        wait = _FIRST_WAIT
        while (journal := self._next()) is not None:
            if self._deliver(journal):
                wait = _FIRST_WAIT
                continue
            with self._change:
                remaining = wait if self._deadline is None else min(wait, self._deadline - time.monotonic())
                if remaining > 0:
                    self._change.wait(remaining)
            wait = min(2 * wait, _LONGEST_WAIT)
        with self._change:
            for journal in self._journals.values():
                journal.close()

    def _next(self) -> "_Journal | None":
        """Waits for the next journal with a record, round robin. Returns None when the thread should end."""
        with self._change:
            while True:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    return None
                for run_id, journal in self._journals.items():
                    if journal.pending:
                        self._journals.move_to_end(run_id)
                        return journal
                if self._deadline is not None:
                    return None
                self._change.wait()

    def _deliver(self, journal: "_Journal") -> bool:
        """Delivers a journal's next record, or moves it to `rejected` if MLflow refuses it. False: try again later."""
        line, record = journal.read(), {}
        try:
            record = json.loads(line)
            getattr(self.store, record["call"])(*record["args"], **record["kwargs"])
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread must keep running
            if transient(error):
                if not self._silent and not lost_race(error):
                    log.warning("MLflow does not answer; records are kept in %s (%s)", self.folder, masked(str(error)))
                self._silent = self._silent or not lost_race(error)
                return False
            log.error("MLflow refuses a record of %s, kept in %s: %s", journal.path.stem, journal.rejected.name, error)
            journal.reject(line, error)
        else:
            if self._silent:
                log.warning("MLflow answers again")
            self._silent = False
        with self._change:
            journal.advance(len(line))
            if record.get("call") == "finish" and not journal.pending:
                self._journals.pop(journal.path.stem).close()
        return True


class _Journal:
    """The records of one run, a line each, and how far they are delivered. Raises Timeout if it is open elsewhere."""

    def __init__(self, path: Path):
        self.path, self.rejected = path, path.with_suffix(".rejected.jsonl")
        self._note = path.with_suffix(".delivered")
        self._lock = FileLock(path.with_suffix(".lock"), thread_local=False)
        self._lock.acquire(timeout=0)
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - stays open; unbuffered, so a line is safe once add() returns
        self._delivered = 0
        with suppress(FileNotFoundError, ValueError):
            self._delivered = int(self._note.read_text())
        self._file.seek(0)
        text = self._file.read()
        if self._delivered > len(text):
            self._delivered = 0
        if text and not text.endswith(b"\n"):  # the writer ended in the middle of a line
            self._file.write(b"\n")
            text += b"\n"
        self.pending = text[self._delivered :].count(b"\n")

    def append(self, line: bytes) -> None:
        self._file.write(line)
        self.pending += 1

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self._delivered)
            return file.readline()

    def advance(self, by: int) -> None:
        self._delivered += by
        self.pending -= 1
        self._note.write_text(str(self._delivered))

    def reject(self, line: bytes, error: Exception) -> None:
        with open(self.rejected, "a") as file:
            file.write(json.dumps({"error": str(error), "record": line.decode(errors="replace").strip()}) + "\n")

    def close(self) -> None:
        """Removes its files if everything is delivered; the note first, which would be wrong for a new journal."""
        self._file.close()
        if not self.pending:
            for path in (self._note, self.path, Path(self._lock.lock_file)):
                path.unlink(missing_ok=True)
        self._lock.release()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else float(value)  # NumPy's and torch's numbers
