"""What all tests share: where real images are, what is made once for all of them, and quiet, bounded machinery."""

import gc
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # four processes, whose jobs premed has none of

import psutil
import pytest
from filelock import FileLock
from sqlalchemy import event
from sqlalchemy.engine import Engine
from support.suite import REAL_DATA

LEFT_OUT = {"slow", "cluster", "browser", "chaos"}  # by make test
WORK, PATIENCE = 20, 120  # seconds of CPU and, where others keep it busy, of a clock that a test may take without them


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """A folder of real images by name; the test is skipped, by name, where it is absent."""

    def find(folder: str) -> Path:
        path = REAL_DATA / folder
        if not path.is_dir():
            pytest.skip(f"real images: {folder} is not at {REAL_DATA}")
        return path

    return find


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A folder by its name, filled once for all processes of the session; who changes something in it copies it."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    base.mkdir(exist_ok=True)

    def find(name: str, fill: Callable[[Path], object]) -> Path:
        name = name.replace(" ", "-")  # MLflow writes a path's blanks in a way of its own
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed at it
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return find


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Golden numbers and bitwise equality are stated for one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def frugal(request, monkeypatch) -> None:
    """Stages that a test runs draw pictures and register models only where it is marked as `whole`."""
    if "premed.training.stage" in sys.modules:
        from support import experiments

        experiments.bare(monkeypatch, whole=request.node.get_closest_marker("whole") is not None)


@event.listens_for(Engine, "connect")
def trust_the_disk(connection: object, record: object) -> None:
    """Databases of tests need not outlive a power cut: their processes' ends they outlive in any case."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


# ---- make test-slow and test-cluster: what comes last is what the others wait for

LONGEST = ["execution/test_soak.py", "gpu/test_run.py", "execution/test_stuck_workers.py", "execution/test_runner.py"]
LONGEST += ["tuning/test_sweep_killed.py"]
LONGEST += [f"integration/test_{name}.py" for name in ("slurm", "nodes", "jobs", "browser")]
"""The first in order."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get("/".join(item.path.parts[-2:]), len(LONGEST)))


# ---- make test stays short


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look at it again, as statsmodels asks it to for each p-value."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    before = spent()
    result = yield
    if not LEFT_OUT & {marker.name for marker in item.iter_markers()}:
        refuse_long(*(now - then for now, then in zip(spent(), before, strict=True)))
    return result


def refuse_long(work: float, clock: float) -> None:
    """Fails a test that took too long for make test. A slow or busy machine makes `clock` long, and hardly `work`."""
    if work > WORK or clock > PATIENCE:
        pytest.fail(f"took {work:.0f} s of CPU in {clock:.0f} s: make it shorter or mark it slow", pytrace=False)


def spent() -> tuple[float, float]:
    """Seconds of CPU of this process, of its children that ended, and of those of its forkserver; and a clock's."""
    times = os.times()
    work = times.user + times.system + times.children_user + times.children_system
    if (server := forkserver._forkserver._forkserver_pid) is not None:  # type: ignore[attr-defined]
        with suppress(psutil.NoSuchProcess):  # else it ended, and is counted with the children
            work += sum(psutil.Process(server).cpu_times()[:4])
    return work, times.elapsed
