"""What tests do with run stores; the fixtures are beside it."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from premed.tracking import model_registry
from premed.tracking.run_store import RunStore


def start(store, digest="d", kind="test", **more):
    return store.start("chest", "a run", digest=digest, kind=kind, **more)


def rows(*steps, time=0, metric="loss", value=None):
    return [{"step": s, "time": time + s, "metrics": {metric: s / 2 if value is None else value}} for s in steps]


def steps(store, run_id, metric="loss"):
    return [each.step for each in store.client.get_metric_history(run_id, metric)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def unreachable(port=None):
    """A store that answered once, as another process got it, and now does not."""
    store = RunStore.__new__(RunStore)
    store.__dict__.update(uri=f"http://127.0.0.1:{port or free_port()}", artifacts=None)
    return store


def come_up(server, port):
    """Waits until the process answers there, as MLflow's server."""
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        except OSError:
            try:
                server.wait(0.5)
                raise RuntimeError("the server ended")
            except subprocess.TimeoutExpired:
                continue
    raise TimeoutError("the server did not come up")


def stop(server):
    """Kills the process and all that it started; it leads a session of its own."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def copied(home, to):
    """A copy of a home, whose MLflow has its files there."""
    shutil.copytree(home, to)
    moved(to / "mlflow.db", str(home), str(to))
    return to


def moved(database, here, there):
    """Puts one folder's name for another's in all of a database."""
    connection = sqlite3.connect(database)
    with connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if kind.startswith(("VARCHAR", "TEXT", "CLOB")):
                    connection.execute(
                        f"UPDATE {table} SET {column} = replace({column}, :here, :there) "
                        f"WHERE instr({column}, :here) > 0",
                        {"here": here, "there": there},
                    )
    connection.close()


def registered(store, run_id, name, module, example, score, card, warn=print):
    """Exports and registers a network, as a command does; returns its version."""
    with tempfile.TemporaryDirectory() as folder:
        model_registry.export(module, example, card, Path(folder) / "model")
        return model_registry.register(store.client, run_id, name, Path(folder) / "model", score, warn)
