"""Commands where people have no network, no home, no right to write, or no name: what only reads works, else a line."""

import shutil

import pytest
import yaml
from support.commands import HERE, STRANGER, in_namespace
from support.experiments import SCRATCH, run, tree
from support.stores import copied, moved

from premed.errors import UserError
from premed.paths import ensure_home
from premed.tracking.client import only_creator

pytest_plugins = ["support.experiment_fixtures"]


@pytest.fixture
def place(home_after, chest, tmp_path):
    """A folder for everybody: a home in which something was trained, its X-rays, and tiny.yaml; and the run's id."""
    kept, result = home_after("scratch", lambda: run(chest, SCRATCH))
    copied(kept, tmp_path / "home")
    moved(tmp_path / "home" / "mlflow.db", str(tmp_path), HERE)
    shutil.copytree(chest, tmp_path / "chestxray14")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree(f"{HERE}/chestxray14", SCRATCH, {"test": False})))
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))
    return tmp_path, result["run_id"]


def test_a_database_beside_which_no_lock_can_be_is_read_without_and_none_is_made(tmp_path):
    (tmp_path / "mlflow.db.lock").mkdir()
    with pytest.raises(OSError), only_creator(tmp_path / "mlflow.db"):
        pass
    (tmp_path / "mlflow.db").touch()
    with only_creator(tmp_path / "mlflow.db"):
        pass


def test_a_home_that_may_not_be_written_to_is_a_line(monkeypatch):
    monkeypatch.setenv("PREMED_HOME", "/proc/self")
    with pytest.raises(
        UserError, match=r"^PREMED_HOME: /proc/self cannot be written to \(.*\); name a folder that you"
    ):
        ensure_home()


@pytest.mark.slow
def test_what_only_reads_works_with_a_read_only_home_and_leaves_nothing_there(place):
    folder, run_id = place
    before = sorted(folder.rglob("*"))
    script = f"""
        mkdir /mnt/out; cd /mnt; mount --bind {HERE} {HERE}; mount -o remount,bind,ro {HERE}
        premed compare | head -3
        premed predict {run_id} {HERE}/chestxray14/images/00000001_000.png --out /mnt/out | grep rows
        premed data check {HERE}/tiny.yaml | tail -1
        premed run {HERE}/tiny.yaml || echo $?
        {STRANGER} $PYTHON -m premed compare | head -3
    """
    code, out, err = in_namespace(script, folder, PREMED_HOME=f"{HERE}/home")
    assert code == 0 and "rows of probabilities of 1 images in /mnt/out" in out and " 0 errors, " in out, err
    assert out.count("mean AUC") == 2 and "\n2\n" in out
    assert f"premed: PREMED_HOME: {HERE}/home cannot be written to (Read-only file system); name a folder" in err
    assert "Traceback" not in err and sorted(folder.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("network", [True, False])
def test_a_user_without_a_name_and_a_home_trains_and_needs_no_network(place, network):
    folder, _ = place
    script = f"cd /mnt; {STRANGER} $PYTHON -m premed run {HERE}/tiny.yaml finetune.seed=7"
    code, out, err = in_namespace(script, folder, network=network, PREMED_HOME=f"{HERE}/home")
    assert code == 0 and "val mean AUC" in out and "Traceback" not in err, err


@pytest.mark.slow
def test_without_loopback_ray_is_refused_at_once(place):
    folder, _ = place
    script = f"cd /mnt; premed run {HERE}/tiny.yaml finetune.seed=7 train.workers=1"
    code, out, err = in_namespace(script, folder, network=False, PREMED_HOME=f"{HERE}/home")
    assert code == 2 and "premed: 127.0.0.1 cannot be reached (Network is unreachable): bring it up" in err
