"""Fixtures of the tests that need a run store: a real SQLite one each."""

import shutil

import pytest
from support.stores import copied

from premed.tracking.run_store import RunStore


@pytest.fixture(scope="session")
def empty_database(shared):
    return shared("empty database", lambda folder: RunStore(f"sqlite:///{folder}/mlflow.db")) / "mlflow.db"


@pytest.fixture
def store(empty_database, tmp_path, nowhere):
    (tmp_path / "home").mkdir()
    shutil.copy(empty_database, tmp_path / "home" / "mlflow.db")
    return RunStore(f"sqlite:///{tmp_path}/home/mlflow.db")


@pytest.fixture
def store_with(shared, empty_database, tmp_path, nowhere):
    """A store, and in it what was put there once in the session."""

    def find(name, fill):
        """fill: takes the new store."""

        def make(folder):
            (folder / "home").mkdir()
            shutil.copy(empty_database, folder / "home" / "mlflow.db")
            fill(RunStore(f"sqlite:///{folder}/home/mlflow.db"))

        home = copied(shared(name, make) / "home", tmp_path / "home")
        return RunStore(f"sqlite:///{home}/mlflow.db")

    return find


@pytest.fixture
def nowhere(monkeypatch, tmp_path_factory):
    """MLflow's own settings point nowhere: whatever leans on them fails."""
    elsewhere = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    yield
    assert not list(elsewhere.iterdir())


@pytest.fixture
def module():
    import torch

    torch.manual_seed(0)  # weights of a test's network, not a draw of premed's
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)
    return torch.nn.Sequential(*layers, torch.nn.Dropout(0.5))
