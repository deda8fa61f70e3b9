"""cluster/mlflow/up.sh, as a user starts it: a real PostgreSQL, artifacts through the server, and a password.

make test-cluster, or pytest -m cluster
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.experiments import results, run, settle_in
from support.stores import come_up, free_port
from support.suite import REPOSITORY

from premed.errors import UserError
from premed.tracking.run_store import RunStore

pytest_plugins = ["support.experiment_fixtures"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3000)]

UP = REPOSITORY / "cluster" / "mlflow" / "up.sh"
PYTHON = os.environ.get("MLFLOW_PYTHON", sys.executable)  # one that has cluster/mlflow/requirements.txt


@pytest.fixture
def folder():
    if not (shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if subprocess.run([PYTHON, "-c", "import flask_wtf, mlflow, psycopg2"], capture_output=True).returncode:
        pytest.skip(f"{PYTHON} lacks what cluster/mlflow/requirements.txt names; set MLFLOW_PYTHON to one that has it")
    folder = Path(tempfile.mkdtemp(prefix="premed-"))  # where PostgreSQL's own user gets to
    folder.chmod(0o711)
    yield folder / "mlflow"
    shutil.rmtree(folder)


@contextmanager
def server(folder):
    """Where it answers, from its start to its end by SIGTERM."""
    port = free_port()
    settings = {"MLFLOW_PORT": str(port), "POSTGRES_PORT": str(free_port()), "MLFLOW_WORKERS": "1", "PYTHON": PYTHON}
    settings["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    settings = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")} | settings
    process = subprocess.Popen([UP, folder], env=settings)
    try:
        come_up(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 130
        assert not (folder / "postgres" / "postmaster.pid").exists()


def test_the_server_keeps_runs_and_artifacts_over_a_restart_for_those_who_have_the_password(
    folder, chest, tmp_path, monkeypatch
):
    settle_in(monkeypatch, tmp_path)
    with server(folder) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for password in (None, "password1234"):
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
            if password:
                monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            with pytest.raises(UserError):
                run(chest)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", (folder / "admin.password").read_text())
        found = run(chest)
    assert all((file.stat().st_mode & 0o077) == 0 for file in folder.iterdir())
    shutil.rmtree(tmp_path / "checkpoints")
    with server(folder) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        again = run(chest)
        store = RunStore(address)
        runs = [store.get(stage["run_id"]) for stage in [found, *found["stages"]]]
    assert results(again) == results(found) and all(stage["reused"] for stage in again["stages"])
    assert {each.status for each in runs} == {"FINISHED"} and "test/mauc" in runs[-1].metrics
    assert list((folder / "artifacts").rglob("*.safetensors"))
