"""Many stages in one command: memory, descriptors, shared memory and processes stay as they were.

SOAK_STAGES=2000 for a long one (make soak), SOAK_WORKERS=1 for one on Ray.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from support.experiments import SCRATCH, tree

pytest_plugins = ["support.experiment_fixtures"]

STAGES, WORKERS = int(os.environ.get("SOAK_STAGES", 50)), int(os.environ.get("SOAK_WORKERS", 0))
WARM = 10
"""Stages after which all that is loaded once is there."""
SHORT = {"test": False, "finetune": {"epochs": 1, "validations": 1}, "train": {"log_steps": 100, "save_minutes": 5}}


def sample(process):
    """(bytes of its own memory, descriptors, threads, processes, files in /dev/shm) of a command and its children."""
    alive = [process, *process.children(recursive=True)]
    shm = sum(1 for _ in Path("/dev/shm").iterdir())
    memory = sum(each.memory_full_info().uss for each in alive)
    return memory, sum(each.num_fds() for each in alive), process.num_threads(), len(alive), shm


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * STAGES)
def test_what_a_command_holds_does_not_grow_with_its_stages(home, chest, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree(chest, SCRATCH, SHORT)))
    arguments = [f"seeds={json.dumps(list(range(STAGES)))}", f"train.workers={WORKERS}"]
    with subprocess.Popen(
        [sys.executable, "-m", "premed", "run", "--json", str(tmp_path / "tiny.yaml"), *arguments],
        env=os.environ | {"PREMED_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        process, samples, said = psutil.Process(command.pid), [], []
        for line in command.stderr:
            said.append(line)
            if f" of {STAGES} " in line or "checkpoint saved" in line:
                samples.append(sample(process))
        outcome = json.loads(command.stdout.read())
    print(*said[:40], *said[-5:], sep="")
    assert command.returncode == 0 and len(samples) >= STAGES
    with open(tmp_path / "samples.json", "w") as file:
        json.dump(samples, file)
    for name, values in zip(("memory", "descriptors", "threads", "processes", "shm"), zip(*samples), strict=True):
        print(name, values[:: max(1, len(values) // 20)])
