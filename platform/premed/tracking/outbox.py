"""Outbox: stores writes to MLflow on disk first, and delivers them once MLflow answers.

So neither an outage of MLflow nor the end of this process loses a record: the next process delivers what is left. A
record may be delivered twice (if the process ends before it notes the delivery); RunStore's writes allow for that.
"""

import json
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from premed.errors import first_line
from premed.tracking.client import is_deleted, is_unknown, lost_race, transient, unreachable

if TYPE_CHECKING:
    from premed.tracking.run_store import RunStore

log = logging.getLogger(__name__)
_CALLS = ("log_rows", "log_scores", "log_files", "log_datasets", "set_tags", "finish")
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two attempts


class Outbox:
    """Delivers calls to a RunStore in the background, in order for each run; `folder` keeps what is not delivered.

    A run has one writer: its file is locked until its end is delivered or the outbox is closed. What the disk does not
    take, because it is full, stays in memory until it does.
    """

    def __init__(self, store: "RunStore", folder: Path | str, warn: Callable[[str], None] = log.warning):
        """warn: is told, in a line, what the user should know."""
        self.store, self.folder, self.warn = store, Path(folder), warn
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journals: OrderedDict[str, _Journal] = OrderedDict()
        self._change = threading.Condition()
        self._deadline: float | None = None  # set by close()
        self._recovery = ""  # what is said at the next delivery, if something keeps records from it now
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
            journal = self._journals[run_id]
            is_first, reason = not journal.in_memory, journal.append(line)
            self._change.notify()
        if reason and is_first:
            self.warn(f"{self.folder}: {reason}; what MLflow does not have yet is kept in memory until that is mended")

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
            self._flush()
            self._deadline = time.monotonic() + timeout
            self._change.notify()
        self._writer.join(timeout)
        with self._change:
            left = sum(journal.pending for journal in self._journals.values())
            lost = sum(len(journal.in_memory) for journal in self._journals.values())
        if lost:
            self.warn(f"{self.folder} could not be written: {lost} records are lost; the same command logs them again")
        return left - lost

    def _work(self) -> None:
        wait = _FIRST_WAIT
        while (journal := self._next()) is not None:
            try:
                delivered = self._deliver(journal)
            except Exception as error:  # noqa: BLE001 - of the disk, say: the records of other runs wait for this thread
                if not self._recovery:
                    self.warn(f"{self.folder}: {first_line(error)}; trying again")
                    self._recovery = f"{self.folder} can be used again"
                delivered = False
            if delivered:
                wait = _FIRST_WAIT
                continue
            with self._change:
                self._flush()
                remaining = wait if self._deadline is None else min(wait, self._deadline - time.monotonic())
                if remaining > 0:
                    self._change.wait(remaining)
            wait = min(2 * wait, _LONGEST_WAIT)
        with self._change:
            for journal in self._journals.values():
                journal.close()

    def _flush(self) -> None:
        """Tries again to write what the disk did not take: it may have room now."""
        for journal in self._journals.values():
            if journal.in_memory:
                journal.flush()

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
        with self._change:  # `add` may just be moving what is in memory to the disk
            line = journal.read()
        record, run_id = {}, journal.path.stem
        try:
            self.store.probe(fresh=1.0)
            record = json.loads(line)
            getattr(self.store, record["call"])(*record["args"], **record["kwargs"])
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread must keep running
            if transient(error):
                if not self._recovery and not lost_race(error):
                    self.warn(f"{unreachable(error, self.store.uri)}; records are kept in {self.folder}")
                    self._recovery = "MLflow answers again"
                return False
            if is_deleted(error) and self._restored(run_id):
                return True  # the record is still the next one
            self._reject(journal, line, error)
        else:
            if self._recovery:
                self.warn(self._recovery)
            self._recovery = ""
        with self._change:
            journal.advance(len(line))
            if record.get("call") == "finish" and not journal.pending:
                self._journals.pop(run_id).close()
        return True

    def _restored(self, run_id: str) -> bool:
        """Restores a run that was deleted in MLflow while it is recorded; returns whether that worked."""
        try:
            self.store.restore(run_id)
        except Exception:  # noqa: BLE001 - it is gone for good, or may not be restored: its records are refused, one by one
            return False
        self.warn(f"run {run_id} was deleted in MLflow while it is recorded; it is restored: stop the command first")
        return True

    def _reject(self, journal: "_Journal", line: bytes, error: Exception) -> None:
        """Puts a record aside; says so at once, but only once of a run that is gone."""
        if not (is_deleted(error) or is_unknown(error)):
            self.warn(f"MLflow refuses a record of {journal.path.stem}, kept in {journal.rejected.name}: {error}")
        elif not journal.rejects:
            kept = f"its records are kept in {journal.rejected}"
            self.warn(f"run {journal.path.stem} is gone from MLflow; {kept}, and the same command records it anew")
        journal.reject(line, error)


class _Journal:
    """The records of one run, a line each, and how far they are delivered. Raises Timeout if it is open elsewhere."""

    def __init__(self, path: Path):
        self.path, self.rejected = path, path.with_suffix(".rejected.jsonl")
        self._note = path.with_suffix(".delivered")
        self.rejects, self.pending = 0, 0
        self.in_memory: deque[bytes] = deque()  # records that the disk did not take
        self._file: FileIO | None = None
        self._size, self._delivered = 0, 0  # bytes
        self._lock = FileLock(path.with_suffix(".lock"), thread_local=False)
        try:
            self._open()
        except Timeout:
            raise
        except OSError:  # the first record tells
            pass

    def _open(self) -> "FileIO":
        """Opens the file, if it is not, and counts what ended processes left in it."""
        if self._file:
            return self._file
        if not self._lock.is_locked:
            self._lock.acquire(timeout=0)
        file = FileIO(self.path, "a+")  # unbuffered, so a line is safe once add() returns
        with suppress(FileNotFoundError, ValueError):
            self._delivered = int(self._note.read_text())
        file.seek(0)
        text = file.readall()
        if text and not text.endswith(b"\n"):  # the writer ended in the middle of a line
            file.write(b"\n")
            text += b"\n"
        self._delivered = self._delivered if self._delivered <= len(text) else 0
        self._file, self._size = file, len(text)
        self.pending += text[self._delivered :].count(b"\n")
        return file

    def append(self, line: bytes) -> str | None:
        """Adds a record. Returns why the disk did not take it, if it did not: it is then in memory, and in line."""
        self.in_memory.append(line)
        self.pending += 1
        return self.flush()

    def flush(self) -> str | None:
        """Writes what is in memory to the disk. Returns why that failed, if it did."""
        try:
            file = self._open()
            while self.in_memory:
                write_whole(file, self.in_memory[0])
                self._size += len(self.in_memory.popleft())
        except OSError as error:
            return error.strerror or str(error)
        return None

    def read(self) -> bytes:
        """The next record."""
        if self._delivered >= self._size:
            return self.in_memory[0]
        with open(self.path, "rb") as file:
            file.seek(self._delivered)
            return file.readline()

    def advance(self, by: int) -> None:
        """The record that `read` returned is delivered."""
        self.pending -= 1
        if self._delivered >= self._size:
            self.in_memory.popleft()
            return
        self._delivered += by
        with suppress(OSError):  # not noted, it is delivered again, which changes nothing
            self._note.write_text(str(self._delivered))
        self.flush()

    def reject(self, line: bytes, error: Exception) -> None:
        self.rejects += 1
        with suppress(OSError), open(self.rejected, "a") as file:
            file.write(json.dumps({"error": str(error), "record": line.decode(errors="replace").strip()}) + "\n")

    def close(self) -> None:
        """Removes its files if everything is delivered; the note first, which would be wrong for a new journal."""
        if self._file:
            self._file.close()
        if not self.pending:
            with suppress(OSError):  # left there, the records are delivered again, which changes nothing
                for path in (self._note, self.path, Path(self._lock.lock_file)):
                    path.unlink(missing_ok=True)
        self._lock.release()


def write_whole(file: FileIO, line: bytes) -> None:
    """Appends all of it or, if that fails, none of it: a disk that fills up takes a part."""
    end, left = file.seek(0, os.SEEK_END), line
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else float(value)  # NumPy's and torch's numbers
