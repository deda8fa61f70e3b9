"""Fixtures of the tests that run whole experiments: made-up X-rays, homes with an empty MLflow, the command line."""

import shutil
import signal
import sys

import pytest
from launching import settle_in

from premed import cli
from premed.data.phantoms.writers import write_chestxray14

pytest_plugins = ["store_fixtures"]


@pytest.fixture(scope="session")
def chest(tmp_path_factory):
    return write_chestxray14(tmp_path_factory.mktemp("data") / "chestxray14", 30, 0, size=32)


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


@pytest.fixture
def premed(monkeypatch, capsys):
    """`premed …` in this process: (exit code, stdout, the lines of stderr)."""
    monkeypatch.setattr(signal, "signal", lambda *args: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["premed", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return end.value.code or 0, told.out, told.err.splitlines()

    return call
