"""Processes killed, stopped and told to end: workers, the driver, all of Ray.

make chaos
"""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from chaos.harness import compare, finished_of, gone, watch

pytest_plugins = ["support.experiment_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]


def again(row, folder, home, chest, reference, arguments=()):
    """The same command once more, to its end."""
    following = watch(folder, home, chest, arguments=arguments)
    row.seconds = f"{following.going_on(following.began):.0f} again"
    compare(row, finished_of(home, following.outcome()), reference, home)


def test_worker_killed(row, home, chest, tmp_path, undisturbed):
    """SIGKILL of a Ray worker (of two)."""
    reference = undisturbed(2)
    watched = watch(tmp_path, home, chest, arguments=["train.workers=2"])
    watched.training()
    children = watched.children()
    watched.worker().kill()
    row.seconds = f"{watched.going_on(time.monotonic()):.0f}"
    compare(row, finished_of(home, watched.outcome()), reference, home)
    assert gone(children)


def test_worker_out_of_memory(row, home, chest, tmp_path, undisturbed):
    """OOM kill of a Ray worker (of two)."""
    reference = undisturbed(2)
    watched = watch(tmp_path, home, chest, arguments=["train.workers=2"])
    watched.training()
    worker = watched.worker()
    began = time.monotonic()
    if starve(worker):
        row.fault = "OOM kill of a Ray worker (of two): the kernel's own, in a cgroup without memory"
    else:
        worker.kill()
        row.fault = "OOM kill of a Ray worker (of two): SIGKILL, which is what the kernel sends (no cgroup to be had)"
    row.seconds = f"{watched.going_on(began):.0f}"
    compare(row, finished_of(home, watched.outcome()), reference, home)


def starve(worker: psutil.Process) -> bool:
    """Puts a process into a cgroup that has no memory; returns whether the kernel then killed it for that."""
    one, two = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (one, "memory.limit_in_bytes") if one.is_dir() else (two, "memory.max")
    group = root / f"premed-chaos-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text("1048576")
        (group / "cgroup.procs").write_text(str(worker.pid))
        worker.wait(60)
        counted = (group / ("memory.oom_control" if one.is_dir() else "memory.events")).read_text()
        return any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in counted.splitlines())
    except (OSError, psutil.TimeoutExpired):
        return False
    finally:
        if group.is_dir():
            group.rmdir()


def test_worker_stuck(row, home, chest, tmp_path, undisturbed):
    """SIGSTOP of a Ray worker (of two), `train.hang_timeout: 10`."""
    reference = undisturbed(2)
    watched = watch(tmp_path, home, chest, arguments=["train.workers=2"])
    watched.training()
    children, worker = watched.children(), watched.worker()
    worker.suspend()
    try:
        row.seconds = f"{watched.going_on(time.monotonic()):.0f} (10 of them the time-out)"
        assert "was stuck for more than 10 s in " in watched.text
        compare(row, finished_of(home, watched.outcome()), reference, home)
        assert gone(children)
    finally:
        if worker.is_running():
            worker.kill()


def test_driver_killed(row, home, chest, tmp_path, undisturbed):
    """SIGKILL of the driver (a Ray worker trains)."""
    watched = watch(tmp_path, home, chest, arguments=["train.workers=1"])
    watched.training()
    children = watched.children()
    began = watched.kill()
    watched.end()
    assert gone(children, 180), "processes of Ray stay"  # its two agents notice last
    row.notes.append(f"the last of Ray's processes ended {time.monotonic() - began:.0f} s later by itself")
    again(row, tmp_path, home, chest, undisturbed(1), ["train.workers=1"])


def test_ray_killed(row, home, chest, tmp_path, undisturbed):
    """SIGKILL of all of Ray in mid-stage (GCS, raylet, workers, dashboard), the driver lives."""
    watched = watch(tmp_path, home, chest, arguments=["train.workers=1"])
    watched.training()
    children = watched.children()
    for child in children:
        child.kill()
    began = time.monotonic()
    code = watched.end()
    row.notes.append(f"the command ended {time.monotonic() - began:.0f} s later with exit code {code} and one line")
    printed = [line for _, line in watched.lines if line.startswith("premed: ")]
    assert code == 1 and "run the same command again" in printed[-1] and "Traceback" not in watched.text, watched.text
    again(row, tmp_path, home, chest, undisturbed(1), ["train.workers=1"])


GRACE = 30
"""Seconds that schedulers leave between SIGTERM and SIGKILL, at the least."""


@pytest.mark.parametrize("workers", [0, 1])
def test_preempted(row, home, chest, tmp_path, undisturbed, workers):
    """SIGTERM, and SIGKILL 30 s later, with `save_minutes: 5`."""
    where = "a Ray worker" if workers else "without Ray"
    row.fault = f"Spot preemption: SIGTERM, and SIGKILL {GRACE} s later; `save_minutes: 5`, {where}"
    arguments = ["train.save_minutes=5", f"train.workers={workers}"]
    watched = watch(tmp_path, home, chest, arguments=arguments)
    watched.until("validation")
    began = watched.kill(signal.SIGTERM)
    assert watched.end(GRACE) == 130, watched.text
    row.notes.append(f"ended after {time.monotonic() - began:.0f} s")
    assert any(line.startswith("premed: stopped at step ") for _, line in watched.lines), watched.text
    again(row, tmp_path, home, chest, undisturbed(workers), arguments)


def test_hung_up(row, home, chest, tmp_path, undisturbed):
    """SIGHUP (the terminal or the connection goes away), without Ray."""
    watched = watch(tmp_path, home, chest)
    watched.training()
    watched.kill(signal.SIGHUP)
    assert watched.end() != 0
    again(row, tmp_path, home, chest, undisturbed())
