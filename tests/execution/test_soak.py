"""Many stages in one command: memory, descriptors, shared memory and processes stay as they were.

SOAK_STAGES=2000 for a long one (make soak), SOAK_WORKERS=1 for one on Ray.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from support.experiments import SCRATCH, tree

pytest_plugins = ["support.experiment_fixtures"]

STAGES, WORKERS = int(os.environ.get("SOAK_STAGES", 32)), int(os.environ.get("SOAK_WORKERS", 0))
PER_STAGE, SLACK = 40 * 2**10, 16 * 2**20
"""Bytes: what a command keeps of each stage, its outcome and its curve's last points; and what comes and goes."""
SHORT = {"test": False, "finetune": {"epochs": 1, "validations": 1}, "train": {"log_steps": 100, "save_minutes": 5}}


def sample(process):
    """(bytes of its own memory, descriptors, threads, processes, files in /dev/shm) of a command and its children."""
    alive = [process, *process.children(recursive=True)]
    shm = len(set(Path("/dev/shm").iterdir()) - held_by_others(alive))
    found = []
    for each in alive:
        with suppress(psutil.NoSuchProcess):  # a child that ends while it is looked at holds nothing
            found.append((each.memory_full_info().uss, each.num_fds()))
    memory, descriptors = (sum(values) for values in zip(*found, strict=True))
    return memory, descriptors, process.num_threads(), len(found), shm


def held_by_others(alive):
    """The files in /dev/shm that other processes have mapped or open: other tests run beside this one."""
    held = set()
    for process in psutil.process_iter():
        if process not in alive:
            with suppress(psutil.Error):
                held |= {Path(part.path) for part in process.memory_maps() if part.path.startswith("/dev/shm/")}
                held |= {Path(file.path) for file in process.open_files() if file.path.startswith("/dev/shm/")}
    return held


def growth(values):
    """By how much all of the last quarter is above all of the second one: in the first what is loaded once comes.

    Not in medians: memory goes up and down by 40 MB, and where it is up is chance. What grows is above all that was.
    """
    quarter = len(values) // 4
    return max(min(values[-quarter:]) - max(values[quarter : 2 * quarter]), 0)


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * STAGES)
def test_what_a_command_holds_does_not_grow_with_its_stages(home, chest, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree(chest, SCRATCH, SHORT)))
    arguments = [f"seeds={json.dumps(list(range(STAGES)))}", f"train.workers={WORKERS}"]
    samples = []
    with subprocess.Popen(
        [sys.executable, "-m", "premed", "run", "--json", str(tmp_path / "tiny.yaml"), *arguments],
        env=os.environ | {"PREMED_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        process = psutil.Process(command.pid)
        for line in command.stderr:
            if "fine-tuning: " in line:
                samples.append(sample(process))
        done = json.loads(command.stdout.read())["outcomes"]
    assert command.returncode == 0 and len(done) == STAGES and len(samples) >= STAGES
    found = dict(zip(("memory", "descriptors", "threads", "processes", "shm"), zip(*samples, strict=True), strict=True))
    for name, values in found.items():
        print(name, [round(value / 2**20) if name == "memory" else value for value in values[:: len(values) // 20]])
    grown = {name: growth(values) for name, values in found.items()}
    print(grown, len(samples))
    assert grown.pop("memory") <= PER_STAGE * STAGES / 4 + SLACK
    assert all(value <= 1 for value in grown.values()), grown
