"""Slurm's own daemons run cluster/slurm/premed.sbatch as it is.

make test-cluster, or pytest -m cluster
"""

import re
import time

import pytest
from integration.slurm import slurm
from integration.test_nodes import YAML, small
from support.experiments import runs_of
from support.suite import REPOSITORY

from premed.data.phantoms.writers import write_chestxray14

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

SCRIPT = REPOSITORY / "cluster" / "slurm" / "premed.sbatch"
HERE = ["--gpus-per-node=0", "--cpus-per-task=1"]  # two nodes of one CPU; all else is the script's


def submit(found, home, overrides):
    """Queues the script with one more PREMED_HOME; returns the job's number and its log."""
    home.mkdir()
    settings = {"PREMED_HOME": str(home), "PREMED_DATA": str(home), "MLFLOW_DISABLE_TELEMETRY": "true"}
    answer = found.ask("sbatch", "--parsable", *HERE, str(SCRIPT), "run", str(YAML), *overrides, cwd=home, **settings)
    return answer.strip(), home / f"premed-{answer.strip()}.log"


def until_logged(found, number, log, pattern, seconds=600):
    for _ in range(seconds // 2):
        text = log.read_text() if log.exists() else ""
        if re.search(pattern, text):
            return text
        found.refuse_held(found.job(number))
        time.sleep(2)
    raise TimeoutError(f"no {pattern} in:\n{text[-3000:]}")


def start_again(found, number):
    """Waits until the job is queued again, and has it start at once: by itself Slurm waits two minutes."""
    found.wait_for(number, "PENDING", 120)
    found.ask("scontrol", "update", f"JobId={number}", "StartTime=now")


def kept(home):
    """All weights as bytes, by stage and part."""
    files = sorted((home / "checkpoints").glob("*/parts/*.safetensors"))
    return {f"{file.parent.parent.name} {file.name}": file.read_bytes() for file in files}


def test_a_job_on_two_nodes_that_is_requeued_in_the_middle_ends_bitwise_as_one_that_is_not(tmp_path):
    write_chestxray14(tmp_path / "data" / "whole", 30, 0, size=32)
    overrides = small(tmp_path, train={"save_minutes": 0.02}, pretrain={"epochs": 300})
    with slurm("first", "second") as found:
        number, log = submit(found, tmp_path / "requeued", overrides)
        until_logged(found, number, log, r"checkpoint saved(.|\n)*checkpoint saved")
        found.ask("scontrol", "requeue", number)
        start_again(found, number)
        until_logged(found, number, log, r"resumed after step [1-9](.|\n)*pre-training: ")
        # as Slurm does two minutes before a job's time is up
        found.ask("scancel", "--batch", "--signal=USR1", number)
        start_again(found, number)
        until_logged(found, number, log, r"(resumed after step [1-9](.|\n)*){2}")
        job = found.wait_for(number, "COMPLETED", 600)
        text = log.read_text()
        assert job["Restarts"] == "2" and job["NumNodes"] == "2" and job["ExitCode"] == "0:0", text
        before, after = text.split("queued again, to go on")
        saved = re.findall(r"step (\d+): checkpoint saved", before)[-1]  # nothing is done twice
        assert re.search(rf"resumed after step {saved}\b", after), text

        calm, log = submit(found, tmp_path / "calm", overrides)
        found.wait_for(calm, "COMPLETED", 600)
        assert "resumed" not in log.read_text()
    assert kept(tmp_path / "requeued") == kept(tmp_path / "calm") != {}
    for home in (tmp_path / "requeued", tmp_path / "calm"):
        assert {run.status for kind in ("pretrain", "finetune") for run in runs_of(home, kind)} == {"FINISHED"}
        assert list((home / "ray").iterdir()) == []  # token and process number are gone with the job
