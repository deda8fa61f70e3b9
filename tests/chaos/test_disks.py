"""Disks that fill up, files that are cut, and many commands in one home.

make chaos
"""

import subprocess
import time

import pytest
from chaos.harness import CHANGES, compare, finished_of, watch
from support.experiments import beside, last, results, runs_of, store_of

from premed.tracking.run_store import LEASES

pytest_plugins = ["support.experiment_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 32 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", disk], capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk):
    """Takes all the room that there is; the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(b"0" * size):
                    pass
            except OSError:
                continue
    return filler


def test_disk_full(row, chest, tmp_path, undisturbed, small_disk):
    """The disk of PREMED_HOME full to the last byte in mid-stage, freed some seconds later."""
    reference = undisturbed()
    (home := small_disk / "home").mkdir()
    watched = watch(tmp_path, home, chest)
    watched.training()
    filler = fill(small_disk)
    watched.until("No space left", since=time.monotonic())
    filler.unlink()
    freed = time.monotonic()
    if watched.ended_within(60) and watched.end():  # if not, it went on by itself, and may have ended since
        row.notes.append(f"the command ended with exit code {watched.end()}, and the same one went on")
        watched = watch(tmp_path, home, chest)
        row.seconds = f"{watched.going_on(watched.began):.0f} again"
    else:
        row.seconds = f"{watched.until('checkpoint saved', since=freed)[0] - freed:.0f}"
    compare(row, finished_of(home, watched.outcome()), reference, home)


def test_checkpoint_truncated(row, home, chest, tmp_path, undisturbed):
    """The command killed, and its newest checkpoint cut in half."""
    reference = undisturbed()
    watched = watch(tmp_path, home, chest)
    watched.training()
    watched.kill()
    watched.end()
    files = [path for path in (home / "checkpoints").rglob("checkpoints/*") if path.is_file()]
    newest = max(files, key=lambda path: (path.stem, path.stat().st_size))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    following = watch(tmp_path, home, chest)
    row.seconds = f"{following.going_on(following.began):.0f} again"
    assert "damaged" in following.text, following.text
    row.notes.append("the one before is used, with a word")
    compare(row, finished_of(home, following.outcome()), reference, home)


def test_eight_commands(row, home, chest):
    """Eight commands at once in one home: four seeds, each twice"""
    short = {"epochs": 10, "validations": 2}
    both = [beside(home, chest, *CHANGES, {"finetune": short | {"seed": seed}}) for seed in range(4) for _ in range(2)]
    found = [last(events) for _, events in both]
    pairs = list(zip(found[::2], found[1::2], strict=True))
    alike = all(results(one) == results(other) and one["run_id"] == other["run_id"] for one, other in pairs)
    row.equal = "yes (each pair)" if alike else "no"
    once = sorted(sum(not stage["reused"] for stage in each["stages"]) for each in found) == [0] * 4 + [1] * 4
    row.notes.append("each trained once" if once else "**trained twice**")
    left = list(store_of(home).search({}, experiment=LEASES))
    row.lost = "nothing" if not left else f"{len(left)} leases left"
    row.seconds = "0"
    assert alike and once and not left
    assert [run.status for run in runs_of(home, "finetune")] == ["FINISHED"] * 4
