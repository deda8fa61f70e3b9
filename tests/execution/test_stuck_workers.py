"""A Ray worker that is stopped in mid-training: the others end where they wait, with their stacks, and all go on."""

import math
import os
import signal
import time

import numpy as np
import psutil
import pytest
from support.experiments import SCRATCH, command, curve, outcome, run, settle_in, until

pytest_plugins = ["support.experiment_fixtures"]

LENGTHS = {"test": False, "finetune": {"epochs": 50}, "train": {"log_steps": 10, "hang_timeout": 5}}


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine takes minutes to start Ray
def test_a_stopped_worker_is_restarted_with_a_word_and_changes_nothing(home, chest, tmp_path, new_home, monkeypatch):
    process = command(tmp_path, home, chest, SCRATCH, LENGTHS, arguments=["train.workers=2"])
    until(process.stderr, "checkpoint saved")
    children = psutil.Process(process.pid).children(recursive=True)
    worker = next(child for child in children if "RayTrainWorker" in " ".join(child.cmdline()))
    os.kill(worker.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        warning = until(process.stderr, "was stuck for more than 5 s in ")
        assert "train.hang_timeout; its stacks: " in warning and time.monotonic() - began < 120
        on_ray = outcome(process)
        assert psutil.wait_procs(children, timeout=30)[1] == []
    finally:
        if worker.is_running():
            worker.kill()
    settle_in(monkeypatch, other := new_home())
    alone = run(chest, SCRATCH, LENGTHS)
    a, b = on_ray["stages"][0], alone["stages"][0]
    assert a["digest"] == b["digest"] and a["best_step"] == b["best_step"]
    assert math.isclose(a["summary"]["val/mauc"], b["summary"]["val/mauc"], rel_tol=1e-4)
    for name, points in curve(home, a["run_id"]).items():
        np.testing.assert_allclose(points, curve(other, b["run_id"])[name], rtol=1e-4, atol=1e-6, err_msg=name)
