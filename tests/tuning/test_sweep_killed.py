"""Sweeps that are killed or stopped, on a Ray that stays: they end as if they had not been, and leave nothing on it.

make test-cluster, or pytest -m cluster
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time

import psutil
import pytest
from integration.clusters import PATIENT
from support.experiments import forked, runs_of, store_of, until
from support.sweeps import ASHA, GRID, write_sweep

from premed.tracking.run_store import LEASES
from premed.training.stopping import ECHO
from premed.tuning import sweep
from premed.tuning.sweep_file import load_sweep

pytest_plugins = ["support.experiment_fixtures"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]


def table(found):
    """What must not depend on how the sweep came about."""
    return [(each.setting, each.state, each.values, each.curve) for each in found.trials]


@pytest.fixture(scope="module")
def ray_that_stays(tmp_path_factory):
    """What the environment needs for a Ray of two CPUs, and what is free on it and which placement groups there are."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    code = """
import json, sys, ray
from ray.util import placement_group_table
print(ray.init(address="local", num_cpus=2, log_to_driver=False).address_info["address"], flush=True)
for line in sys.stdin:
    states = sorted(group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED")
    print(json.dumps([ray.available_resources().get("CPU", 0), states]), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | PATIENT | environment,
    )
    address = process.stdout.readline().strip()
    assert address, "Ray did not start"

    def left():
        process.stdin.write("\n")
        process.stdin.flush()
        return json.loads(next(line for line in process.stdout if line.startswith("[")))  # Ray has its say there, too

    yield environment | {"RAY_ADDRESS": address}, left
    process.stdin.close()
    process.wait()


def emptied(left, seconds=120):
    """What is reserved on the cluster, once it is nothing or after so long."""
    until = time.monotonic() + seconds
    while (held := left()) != [2.0, []] and time.monotonic() < until:
        time.sleep(0.5)
    return held


def started(file):
    """(process, its stderr by the line) of the sweep in a command of its own: Ray reads its token's place when it is
    imported."""
    return forked(os.environ["PREMED_HOME"], "sweep", file)


def ended(process, output):
    """The command's exit code, and what it still says."""
    rest = output.read()
    process.join()
    return process.exitcode, rest


def killed_once(file, message, number=signal.SIGKILL):
    """Starts the sweep, and ends it so as soon as it says `message`; its exit code, and what it said then."""
    process, output = started(file)
    until(output, message)
    os.kill(process.pid, number)
    return ended(process, output)


def words_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it has just ended
        return ""


def whole(file):
    """The outcome of the sweep, from its start or where it was left."""
    code, words = ended(*started(file))
    assert code == 0, words
    return sweep.report(load_sweep(file))


@pytest.fixture
def cluster(ray_that_stays, monkeypatch):
    """What is reserved on the Ray that is now in use."""
    environment, left = ray_that_stays
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return left


@pytest.fixture(scope="module")
def undisturbed(chest, new_home, tmp_path_factory):
    """Runs a sweep in a home of its own, once in this module: (its outcome, the number of its pre-trainings)."""
    known = {}

    def find(settings, *changes):
        key = json.dumps([settings, *changes])
        if key not in known:
            home, folder = new_home(), tmp_path_factory.mktemp("undisturbed")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PREMED_HOME", str(home))
                known[key] = whole(write_sweep(folder, chest, settings, *changes)), len(runs_of(home, "pretrain"))
        return known[key]

    return find


@pytest.mark.parametrize(
    ("settings", "save_minutes", "messages"),
    [
        (GRID, 0, ["[trial 2] fine-tuning on"]),
        # the validation comes again, for there is no checkpoint yet
        (ASHA, 5, ["[trial 0] step 8: validation", "[trial 3] fine-tuning on"]),
    ],
)
def test_killed_in_the_middle_the_same_command_ends_as_if_it_had_not_been_and_leaves_nothing(
    home, chest, tmp_path, cluster, undisturbed, settings, save_minutes, messages
):
    expected, num_pretrainings = undisturbed(settings)  # with a checkpoint at each step: that changes nothing
    assert emptied(cluster) == [2.0, []]

    file = write_sweep(tmp_path, chest, settings, {"train": {"save_minutes": save_minutes}})
    for message in messages:
        killed_once(file, message)
    before = {(run.run_id, run.status) for run in runs_of(home, "finetune", status="FINISHED")}
    found = whole(file)
    assert table(found) == table(expected)
    assert len(runs_of(home, "pretrain")) == num_pretrainings <= 2
    assert len(runs_of(home, "finetune")) == len(found.trials)
    assert before <= {(run.run_id, run.status) for run in runs_of(home, "finetune", status="FINISHED")}
    if "scheduler" in settings:
        assert "stopped" in {each.state for each in found.trials}
    assert emptied(cluster) == [2.0, []]


def states(file):
    """The states of the trials, as the study has them."""
    return [each.state for each in sweep.report(load_sweep(file)).trials]


def refuse_noise(message):
    """What closing causes is nobody's concern."""
    for word in ("Traceback", "ERROR", "internal_kv", "is closed", "Error"):
        assert word not in message, message


WAITING, TRAINING = "[trial 2] pre-training: ", "pre-training on "
VALIDATED, ENDED = ": validation mean AUC", "/4 trials"


def test_ctrl_c_at_any_moment_fails_no_trial_and_the_same_command_ends_as_if_it_had_not_been(
    home, chest, tmp_path, cluster, undisturbed
):
    """While trials wait, train, were just validated, and end; once also with a second one, which leaves at once."""
    long = {"pretrain": {"epochs": 60}, "finetune": {"epochs": 20}, "train": {"save_minutes": 5}}
    expected, _ = undisturbed(GRID, long, {"train": {"log_steps": 20}})  # MLflow takes longest for points of each step
    file = write_sweep(tmp_path, chest, GRID, long)

    process, lines = started(file)
    until(lines, TRAINING)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(2 * ECHO)
    os.kill(process.pid, signal.SIGINT)
    began = time.monotonic()
    code, output = ended(process, lines)
    assert code == 130 and time.monotonic() - began < 5
    refuse_noise(output)
    assert output.splitlines()[-1].startswith(("premed: left at once", "premed: stopped")), output
    assert set(states(file)) <= {"running", "waiting"} and emptied(cluster) == [2.0, []]

    for moment in (WAITING, TRAINING, VALIDATED, ENDED):
        code, output = killed_once(file, moment, signal.SIGINT)
        refuse_noise(output)
        last = output.splitlines()[-1]
        assert code == 130 and last.startswith("premed: stopped") and "; run the same command again to " in last, output
        if moment == TRAINING:
            assert " at step " in last and list(home.glob("checkpoints/pretrain-*/checkpoints/*.json")), output
        assert set(states(file)) <= {"running", "waiting", "done"}, (moment, output)
        assert "running" in states(file) or moment == ENDED  # then the others may end in the same seconds
        assert emptied(cluster) == [2.0, []] and list(store_of(home).search({}, experiment=LEASES)) == []
        assert "RUNNING" not in {run.status for kind in ("finetune", "trial") for run in runs_of(home, kind)}
    assert "done" in states(file)
    found = whole(file)
    assert table(found) == table(expected) and len(runs_of(home, "pretrain")) == 2
    assert emptied(cluster) == [2.0, []]


def test_killed_processes_of_trials_end_no_trial(home, chest, tmp_path, cluster, undisturbed):
    """Tune's process of a trial is started again, and so are workers, which go on from their checkpoint."""
    file = write_sweep(tmp_path, chest, GRID)
    process, output = started(file)
    for which, message in (("ImplicitFunc", "] fine-tuning on"), ("RayTrainWorker", "] step 8: validation")):
        until(output, message)  # of whichever trial comes first
        next(each for each in psutil.Process().children(recursive=True) if which in words_of(each)).kill()
    code, words = ended(process, output)
    assert code == 0, words
    assert table(sweep.report(load_sweep(file))) == table(undisturbed(GRID)[0])
    assert len(runs_of(home, "finetune")) == 4 and len(runs_of(home, "pretrain")) == 2
    assert emptied(cluster) == [2.0, []]


def test_when_all_of_ray_is_killed_the_command_ends_and_the_same_one_goes_on(home, chest, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # a Ray of its own
    file = write_sweep(tmp_path, chest, GRID)
    process, output = started(file)
    until(output, "[trial 2] fine-tuning on")
    for each in psutil.Process(process.pid).children(recursive=True):
        each.kill()
    assert ended(process, output)[0] not in (0, 2)
    found = whole(file)
    assert [each.state for each in found.trials] == ["done"] * 4
    assert len(runs_of(home, "finetune")) == 4 and len(runs_of(home, "pretrain")) == 2
