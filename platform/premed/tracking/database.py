"""The SQLite file of a run store: made whole or not at all, who holds it locked, and what its errors mean."""

import logging
import os
import re
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from premed.errors import UserError
from premed.paths import sqlite_file, sqlite_url

log = logging.getLogger(__name__)
PATIENCE = 60.0  # seconds in which a lock must end; MLflow by itself says nothing of it for 20 s, and gives up then
_MEANINGS = {
    "database is locked": "is locked by {holder}",
    "database or disk is full|No space left on device|disk I/O error": "cannot be written: its disk is full or faulty",
    "attempt to write a readonly database|unable to open database file|Read-only file system": "{unwritable}",
    "no such table": "has no runs in it: it was removed, or is not MLflow's",
    "table .* already exists|duplicate column|found version None": "{half}",
    "malformed|file is not a database": "is damaged: put back a copy of it, or remove it",
}
"""What SQLite says, as a pattern, and what it says about the file."""


def create(file: Path) -> None:
    """Makes the database of MLflow's tables under another name, and then gives it its own: a start that is stopped, or
    a disk that is full, leaves no half of one, which MLflow (3.17) could never open again.
    """
    from mlflow import MlflowClient

    partial = file.with_name(f".{file.name}.partial")
    leftovers = [partial, *(partial.with_name(f"{partial.name}{suffix}") for suffix in ("-journal", "-wal", "-shm"))]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    try:
        uri = sqlite_url(partial)
        MlflowClient(tracking_uri=uri, registry_uri=uri)
        os.replace(partial, file)
    finally:
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)


def wait_unlocked(file: Path, patience: float = PATIENCE) -> None:
    """Waits while another process holds the file locked, and says so. Raises UserError after `patience` seconds."""
    if not file.is_file() or not os.access(file, os.W_OK):
        return
    deadline, waiting = time.monotonic() + patience, False
    while is_locked(file):
        if time.monotonic() > deadline:
            raise UserError(f"{file} is locked by {holder(file)} for more than {patience:.0f} s: end that, or wait")
        if not waiting:
            log.warning("%s is locked by %s; waiting", file, holder(file))
        waiting = True
        time.sleep(0.2)


def is_locked(file: Path) -> bool:
    """Whether another process holds the lock that writing needs, for longer than a second."""
    try:
        with closing(sqlite3.connect(file, timeout=1.0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    except sqlite3.DatabaseError:  # MLflow's own error says what is wrong
        return False
    return False


def holder(file: Path) -> str:
    """The process that holds a lock on the file, by number and name, if Linux tells."""
    with suppress(OSError):
        inode = str(file.stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.replace("->", "").split()  # 1: POSIX ADVISORY WRITE 4711 08:01:131 0 EOF
            if len(words) > 5 and words[5].rpartition(":")[2] == inode and int(words[4]) != os.getpid():
                with suppress(OSError):
                    return f"process {words[4]} ({Path(f'/proc/{words[4]}/comm').read_text().strip()})"
                return f"process {words[4]}"
    return "another process, perhaps on another machine"


def diagnosis(error: BaseException, uri: str) -> str | None:
    """What is wrong with the store's SQLite file, in one line that names it; None for errors of another kind."""
    file, text = sqlite_file(uri), f"{error}"
    if file is None:
        return None
    for pattern, meaning in _MEANINGS.items():
        if re.search(pattern, text):
            removed = not file.exists()
            unwritable = "was removed while it was in use" if removed else "may not be written to: see its permissions"
            half = "was left half made by an earlier start: remove it"
            if meaning == "{half}" and num_runs(file):  # of a locked file the question would wait, too
                half = "was left half upgraded by another MLflow, and holds runs: put back a copy, do not remove it"
            return f"{file} {meaning.format(holder=holder(file), unwritable=unwritable, half=half)}"
    return None


def num_runs(file: Path) -> int:
    """How many runs the file holds, also if its other tables are not as MLflow needs them."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT count(*) FROM runs").fetchone()[0]
    return 0


def is_lasting(error: BaseException) -> bool:
    """Whether an SQLite file stays unusable until someone mends it: waiting for it would be in vain."""
    return re.search("readonly|unable to open|Read-only|no such table|malformed|not a database", str(error)) is not None


def is_whole(file: Path) -> bool:
    """Whether a file is an SQLite database that its own check finds nothing wrong with."""
    try:
        with closing(sqlite3.connect(file)) as base:
            return base.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.Error:
        return False
