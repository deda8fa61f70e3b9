"""Ray where people have no network but loopback, 64 MB of shared memory, no home, no name, and not the machine alone.

make test-cluster, or pytest -m cluster
"""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from integration.clusters import cluster
from support.commands import HERE, STRANGER, in_namespace
from support.experiments import SCRATCH, tree

from premed.data.phantoms.writers import write_chestxray14

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1000)]

OFFLINE = "ip link set lo up; mount -t tmpfs -o size=64m none /dev/shm; mkdir -m 777 /mnt/ray; cd /mnt; "


@pytest.fixture
def folder():
    """A folder for everybody, with X-rays and tiny.yaml."""
    folder = Path(tempfile.mkdtemp(prefix="premed-"))
    write_chestxray14(folder / "chestxray14", 30, 0, size=32)
    (folder / "home").mkdir()
    more = {"test": False, "task": {"size": 512, "stored": 512}, "encoder": {"patch": 64}, "finetune": {"batch": 32}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree(f"{HERE}/chestxray14", SCRATCH, more)))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    yield folder
    shutil.rmtree(folder)


def test_a_user_without_a_home_trains_offline_in_a_container_s_shared_memory(folder):
    script = f"{OFFLINE} {STRANGER} $PYTHON -m premed run {HERE}/tiny.yaml train.workers=1 train.cpus=1 train.loaders=2"
    more = {"PREMED_HOME": f"{HERE}/home", "RAY_TMPDIR": "/mnt/ray"}
    code, out, err = in_namespace(script, folder, network=False, **more)
    assert code == 0 and "val mean AUC" in out and "Traceback" not in err, err


@pytest.fixture(scope="module")
def other():
    """The Ray of another user."""
    with cluster("--num-cpus=1") as found:
        found.wait_for(1)
        found.folder.chmod(0o755)
        yield found


@contextmanager
def opened(folder, closed):
    """A folder that others may write to as it is, or, if `closed`, only read."""
    before = folder.stat().st_mode
    if closed:
        folder.chmod(0o755)
    try:
        yield
    finally:
        folder.chmod(before)


@pytest.mark.parametrize("closed", [False, True])
def test_beside_another_user_s_ray_a_command_has_its_own_or_says_what_to_do(folder, other, closed):
    """closed: whether the other's folder is shut to others; Ray itself leaves it open."""
    with opened(other.folder / "ray", closed):
        script = (
            f"cd /mnt; {STRANGER} $PYTHON -m premed run {HERE}/tiny.yaml train.workers=1 task.size=64 task.stored=64"
        )
        more = {"PREMED_HOME": f"{HERE}/home", "TMPDIR": str(other.folder)}
        code, out, err = in_namespace(script, folder, **more)
        if closed:
            line = f"premed: {other.folder}/ray may not be written to; set RAY_TMPDIR to a folder of your own"
            assert code == 2 and line in err
        else:
            assert code == 0 and "val mean AUC" in out and os.path.exists(other.folder / "ray"), err
        other.wait_for(1)  # and it goes on
