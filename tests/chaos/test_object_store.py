"""Checkpoints in an object store that fails and is slow: moto's S3, in an environment of its own.

make chaos
"""

import os
import subprocess
from pathlib import Path

import pytest
from chaos.harness import compare, finished_of, watch
from support.stores import free_port
from support.suite import REPOSITORY

pytest_plugins = ["support.experiment_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

PYTHON = Path(os.environ.get("MOTO_PYTHON") or REPOSITORY / ".venv-moto" / "bin" / "python")


@pytest.fixture
def object_store(monkeypatch):
    """A bucket's URL, which this process and those that it starts can open."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not there: make chaos installs moto into .venv-moto, or set MOTO_PYTHON")
    port = free_port()
    where = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    where |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    command = [PYTHON, Path(__file__).with_name("object_store.py"), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in server.stdout:
        if "Running on" in line:
            break
    else:
        raise RuntimeError("moto did not start")
    reader = subprocess.Popen(["cat"], stdin=server.stdout, stdout=subprocess.DEVNULL)  # what it says must not block it
    from pyarrow.fs import FileSystem

    files, _ = FileSystem.from_uri("s3://premed?allow_bucket_creation=true")
    files.create_dir("premed")
    yield "s3://premed/runs"
    server.kill()
    server.wait()
    reader.wait()


def test_object_store_fails_and_is_slow(row, home, chest, tmp_path, undisturbed, object_store):
    """Checkpoints on S3 where every seventh request fails (503) and every fifth takes a second; the command killed"""
    reference = undisturbed()
    arguments = [f"train.storage={object_store}", "train.save_minutes=0.02"]
    watched = watch(tmp_path, home, chest, arguments=arguments)
    watched.until("checkpoint saved", count=2)
    watched.kill()
    watched.end()
    following = watch(tmp_path, home, chest, arguments=arguments)
    row.seconds = f"{following.going_on(following.began):.0f} again"
    compare(row, finished_of(home, following.outcome()), reference, home)
