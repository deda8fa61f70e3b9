"""What a command leans on goes away: MLflow's server, its database, a node, the disk.

make chaos
"""

import signal
import time
from functools import partial

import pytest
from chaos.harness import compare, finished_of, watch
from integration.databases import postgres
from support.servers import MLflowServer
from support.stores import stop

from premed.tracking.client import with_driver
from premed.tracking.run_store import RunStore

pytest_plugins = ["support.experiment_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]


@pytest.fixture
def server(tmp_path):
    made = MLflowServer(tmp_path, f"sqlite:///{tmp_path}/server.db")
    yield made
    made.signal(signal.SIGCONT)
    stop(made.process)


def through(row, again, server, home, reference, away, back):
    """Trains through an outage; a training that waits for nothing goes on at once. again: starts the command."""
    watched = again()
    watched.training()
    began = time.monotonic()
    away()
    watched.until("checkpoint saved", since=time.monotonic(), count=SOME)
    row.seconds = f"{watched.until('checkpoint saved', since=began)[0] - began:.0f}"
    watched.until("MLflow does not answer", since=began)
    back()
    outcome = watched.outcome()
    if any(path.stat().st_size for path in (home / "spool").glob("*.jsonl")):
        again().outcome()
        row.notes.append("the command ended before MLflow was back; the same one again delivered the rest")
    store = RunStore(server.uri)
    compare(row, finished_of(home, outcome, store), reference, home, store)


SOME = 15
"""Checkpoints that a training saves while MLflow is away."""


def test_mlflow_killed(row, home, chest, tmp_path, undisturbed, server):
    """MLflow's server killed in mid-stage, and back some steps later."""
    reference = undisturbed()
    again = partial(watch, tmp_path, home, chest, tracking=server.uri)
    through(row, again, server, home, reference, lambda: stop(server.process), server.start)


def test_mlflow_hangs(row, home, chest, tmp_path, undisturbed, server):
    """MLflow's server hangs in mid-stage (it accepts, and never answers), and goes on some steps later."""
    reference = undisturbed()
    again = partial(watch, tmp_path, home, chest, tracking=server.uri)
    halt, resume = (lambda number=number: server.signal(number) for number in (signal.SIGSTOP, signal.SIGCONT))
    through(row, again, server, home, reference, halt, resume)


def test_mlflow_hangs_and_the_command_is_stopped(row, home, chest, tmp_path, undisturbed, server):
    """MLflow's server hangs, then SIGTERM"""
    reference = undisturbed()
    watched = watch(tmp_path, home, chest, tracking=server.uri)
    watched.training()
    server.signal(signal.SIGSTOP)
    began = watched.kill(signal.SIGTERM)
    assert watched.end() == 130, watched.text
    row.notes.append(f"the command ended after {time.monotonic() - began:.0f} s")
    server.signal(signal.SIGCONT)
    following = watch(tmp_path, home, chest, tracking=server.uri)
    row.seconds = f"{following.going_on(following.began):.0f} again"
    outcome, store = following.outcome(), RunStore(server.uri)
    compare(row, finished_of(home, outcome, store), reference, home, store)


def test_postgresql_restarted(row, home, chest, tmp_path, undisturbed):
    """PostgreSQL under MLflow's server stopped at once (`--mode=immediate`), and started some steps later."""
    reference = undisturbed()
    with postgres() as database:
        server = MLflowServer(tmp_path, with_driver(database("mlflow"), ""))
        try:
            again = partial(watch, tmp_path, home, chest, tracking=server.uri)
            through(row, again, server, home, reference, lambda: database.stop("immediate"), database.start)
        finally:
            stop(server.process)
