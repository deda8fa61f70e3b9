"""Fixtures of the tests that run whole experiments: made-up X-rays, homes with an empty MLflow, the command line."""

import pickle
import shutil
import sys

import pytest
from support.experiments import bare, run, settle_in
from support.stores import copied

from premed.cli import app
from premed.data.phantoms.writers import write_chestxray14
from premed.training import stopping

pytest_plugins = ["support.store_fixtures"]


@pytest.fixture(scope="session")
def chest(shared):
    return shared("chest", lambda folder: write_chestxray14(folder / "chestxray14", 30, 0, size=32)) / "chestxray14"


@pytest.fixture(scope="session")
def new_home(empty_database, tmp_path_factory):
    """Makes a home whose MLflow is empty."""

    def make():
        home = tmp_path_factory.mktemp("home")
        shutil.copy(empty_database, home / "mlflow.db")
        return home

    return make


@pytest.fixture
def home(new_home, monkeypatch):
    """A new home, in use."""
    home = new_home()
    settle_in(monkeypatch, home)
    return home


@pytest.fixture(scope="session")
def home_after(shared, empty_database, tmp_path_factory):
    """A home in which something was run once in the session, as a copy for this process, and what came of it."""

    def find(name, work, whole=False):
        """work: makes it in the home in use, and returns what is told. whole: with pictures and models."""

        def fill(folder):
            (folder / "home").mkdir()
            shutil.copy(empty_database, folder / "home" / "mlflow.db")
            with pytest.MonkeyPatch.context() as patch:
                settle_in(patch, folder / "home")
                bare(patch, whole)
                (folder / "result").write_bytes(pickle.dumps(work()))

        folder = shared(name, fill)
        home = copied(folder / "home", tmp_path_factory.mktemp(name.replace(" ", "_")) / "home")
        return home, pickle.loads((folder / "result").read_bytes())

    return find


@pytest.fixture(scope="session")
def mae_home(home_after, chest):
    """A home in which MAE has run to its end, with pictures and a model, and the outcome."""
    return home_after("mae", lambda: run(chest), whole=True)


@pytest.fixture
def premed(monkeypatch, capsys):
    """`premed …` in this process: (exit code, stdout, the lines of stderr)."""
    monkeypatch.setattr(stopping, "install", lambda: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["premed", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            app.main()
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err.splitlines()

    return call
