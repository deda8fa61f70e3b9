"""A PostgreSQL of a test's own: on a free port of 127.0.0.1, in a folder that goes away, with a password."""

import importlib.util
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.stores import free_port


@dataclass(frozen=True)
class Postgres:
    """`database` makes a database of a name and gives its URL, as does calling this; `stop` takes pg_ctl's mode."""

    database: Callable[[str], str]
    start: Callable[[], None]
    stop: Callable[[str], None]

    def __call__(self, name: str) -> str:
        return self.database(name)


@contextmanager
def postgres() -> Iterator["Postgres"]:
    """A server. Without PostgreSQL or a driver of it tests are skipped by name."""
    programs = [*Path("/usr/lib/postgresql").glob("*/bin"), Path(shutil.which("initdb") or "/nowhere").resolve().parent]
    found = next((folder for folder in sorted(programs, reverse=True) if (folder / "initdb").exists()), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if not any(importlib.util.find_spec(name) for name in ("psycopg2", "psycopg")):
        pytest.skip("no driver of PostgreSQL: pip install psycopg2-binary")
    folder, port, password = Path(tempfile.mkdtemp(prefix="premed-")), free_port(), secrets.token_hex(16)
    folder.chmod(0o711)
    data, word = folder / "data", folder / "password"
    data.mkdir()
    word.write_text(password)
    as_other = []
    if os.getuid() == 0:  # as whom it refuses to run
        as_other = ["runuser", "-u", "postgres", "--"]
        for path in (data, word):
            shutil.chown(path, "postgres")

    def call(program: str, *words: str | Path) -> None:
        command = [*as_other, found / program, *words]
        done = subprocess.run(
            command, cwd="/", env=os.environ | {"PGPASSWORD": password}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + done.stdout

    def database(name: str) -> str:
        call("createdb", "--host=127.0.0.1", f"--port={port}", "--username=premed", name)
        return f"postgresql://premed:{password}@127.0.0.1:{port}/{name}"

    def stop(mode: str) -> None:
        call("pg_ctl", f"--pgdata={data}", f"--mode={mode}", "stop")

    def start() -> None:
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        with (folder / "log").open("a") as log:  # what stays must not hold our pipes
            command = [*as_other, found / "pg_ctl", f"--pgdata={data}", "--wait", "--timeout=120"]
            subprocess.run([*command, f"--options={options}", "start"], cwd="/", stdout=log, stderr=log, check=True)

    call("initdb", f"--pgdata={data}", "--username=premed", "--auth=scram-sha-256", "--locale=C", f"--pwfile={word}")
    start()
    try:
        yield Postgres(database, start, stop)
    finally:
        stop("fast")
        shutil.rmtree(folder)
