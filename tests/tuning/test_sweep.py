"""Whole sweeps on a real Ray: what comes of them, what they share, and that nothing of them is left behind."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
import yaml
from support.experiments import runs_of, store_of, tree, until

from premed.config.compose import load
from premed.errors import UserError
from premed.events import WarningIssued
from premed.execution import runner
from premed.tracking.run_store import LEASES
from premed.training.stopping import ECHO
from premed.tuning import sweep
from premed.tuning.context import train_settings
from premed.tuning.space import load_sweep

pytest_plugins = ["support.experiment_fixtures"]

QUICK = {
    "pretrain": {"epochs": 2, "validations": 1},
    "finetune": {"epochs": 4, "validations": 4},
    "train": {"workers": 1, "save_minutes": 0, "log_steps": 1},
}
NOT_A_NUMBER = 1e30  # as a learning rate
GRID = {"space": {"pretext.mask_ratio": [0.5, 0.75], "finetune.lr": [1e-3, 1e-2]}}
ASHA = {
    "space": {"pretext.mask_ratio": [0.5, 0.75], "finetune.lr": {"loguniform": [1e-4, 1e-1]}},
    "search": "optuna",
    "scheduler": {"name": "asha", "grace": 1, "reduction": 2},
    "trials": 6,
    "concurrency": 1,
}


def write_sweep(folder, chest, search, *changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(tree(chest, QUICK, *changes)))
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"base": "base.yaml"} | search, sort_keys=False))
    return folder / "sweep.yaml"


def table(outcome):
    """What must not depend on how the sweep came about."""
    return [(each["setting"], each["state"], each["values"], each["curve"]) for each in outcome["trials"]]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine takes minutes to start Ray
@pytest.mark.whole
def test_a_grid_shares_its_pre_trainings_never_opens_the_test_part_and_outlives_a_trial_that_fails(
    home, chest, tmp_path
):
    sealed = shutil.copytree(chest, tmp_path / "chestxray14")
    for name in (sealed / "test_list.txt").read_text().split():
        (sealed / "images" / name).write_bytes(b"sealed")
    space = {"pretext.mask_ratio": [0.5, 0.75], "finetune.lr": [1e-3, NOT_A_NUMBER]}
    file, events = write_sweep(tmp_path, sealed, {"space": space, "retries": 1}), []
    result = sweep.run(load_sweep(file), events.append)

    assert [each.state for each in result.trials] == ["done", "failed", "done", "failed"]
    assert "at step 1 (samples " in (result.trials[1].failure or "") and result.best in (0, 2)
    assert len([event for event in events if isinstance(event, WarningIssued) and "trying again" in event.text]) == 2
    assert len(runs_of(home, "pretrain")) == 2 and runs_of(home, "test") == []
    (parent,) = runs_of(home, "sweep")
    below = runs_of(home, "trial")
    assert {run.parent for run in below} == {parent.run_id} and len(below) == 4
    assert sorted(run.status for run in below) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert {run.params["finetune.lr"] for run in below} == {"0.001", "1e+30"}
    for each in result.trials:
        run = store_of(home).get(each.run_id)
        assert run.metrics.get("val/mauc") == (each.values or [None])[0]
        assert run.tags["state"] == each.state and run.tags.get("premed.failure") == each.failure
    assert list(store_of(home).search({}, experiment=LEASES)) == []

    best = load([f"{result.where}/best.yaml"])
    assert best.test and best.finetune.lr == 1e-3 and list(result.trials[0].by_seed) == ["0"]
    assert sweep.report(load_sweep(file)) == result

    models = store_of(home).client.search_model_versions
    assert models() == []  # a sweep makes no versions; who takes its best makes one
    for _ in range(2):
        taken = runner.run(load([f"{result.where}/best.yaml"], ["test=false"]), events.append)
        assert [stage["reused"] for stage in taken["stages"]] == [True, True]
        assert [version.run_id for version in models()] == [taken["stages"][1]["run_id"]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_can_never_be_placed_is_refused_at_once(home, chest, tmp_path):
    space = {"train.cpus": [1.0, 1e6]}
    with pytest.raises(UserError, match="workers need 1e[+]06 CPUs and the cluster has"):
        sweep.run(load_sweep(write_sweep(tmp_path, chest, {"space": space})), lambda event: None)


def test_the_train_settings_of_all_trials_are_checked_together(home, chest, tmp_path):
    """2 workers fit on 2 CPUs, and so does 1 that wants both, but not 2 of these."""
    space = {"train.workers": [1, 2], "finetune.lr": [0.1, 0.2], "train.cpus": [1.0, 2.0]}
    trains = train_settings(load_sweep(write_sweep(tmp_path, chest, {"space": space})))
    assert {(train.workers, train.cpus) for train in trains} == {(1, 1.0), (1, 2.0), (2, 1.0), (2, 2.0)}
    with pytest.raises(UserError, match="train.workers: a sweep runs on Ray; set 1 or more"):
        sweep.run(load_sweep(write_sweep(tmp_path, chest, {"space": {"train.workers": [1, 0]}})), lambda event: None)


# ---- on a Ray that stays: nothing may be left on it


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
        env=os.environ | environment,
    )
    address = process.stdout.readline().strip()

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


def command_of(file):
    """The sweep, in a process."""
    command = [sys.executable, "-m", "premed", "sweep", str(file)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in a shell's background ignore Ctrl-C
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)


def killed_once(file, message, number=signal.SIGKILL):
    """Starts the sweep, and ends it so as soon as it says `said`; its exit code, and what it said then."""
    process = command_of(file)
    until(process.stderr, message)
    process.send_signal(number)
    return process.communicate()[1], process.returncode


def words_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it has just ended
        return ""


def whole(file):
    """The outcome of the sweep, by a command of its own: Ray reads its token's place when it is imported."""
    command = [sys.executable, "-m", "premed", "sweep", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def cluster(ray_that_stays, monkeypatch):
    """What is reserved on the Ray that is now in use."""
    environment, left = ray_that_stays
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return left


@pytest.mark.cluster
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("settings", "message", "save_minutes"),
    [
        (GRID, "[trial 2] fine-tuning on", 0),
        (ASHA, "[trial 3] fine-tuning on", 0),
        (ASHA, "[trial 0] step 8: validation", 5),  # which comes again, for there is no checkpoint yet
    ],
)
def test_killed_in_the_middle_the_same_command_ends_as_if_it_had_not_been_and_leaves_nothing(
    new_home, chest, tmp_path, monkeypatch, cluster, settings, message, save_minutes
):
    theirs, ours = new_home(), new_home()
    file = write_sweep(tmp_path, chest, settings, {"train": {"save_minutes": save_minutes}})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PREMED_HOME", str(theirs))
    expected = whole(file)
    assert emptied(cluster) == [2.0, []]

    monkeypatch.setenv("PREMED_HOME", str(ours))
    killed_once(file, message)
    before = {(run.run_id, run.status) for run in runs_of(ours, "finetune", status="FINISHED")}
    found = whole(file)
    assert table(found) == table(expected)
    assert len(runs_of(ours, "pretrain")) == len(runs_of(theirs, "pretrain")) <= 2
    assert len(runs_of(ours, "finetune")) == len(found["trials"])
    assert before <= {(run.run_id, run.status) for run in runs_of(ours, "finetune", status="FINISHED")}
    if "scheduler" in settings:
        assert "stopped" in {each["state"] for each in found["trials"]}
    assert emptied(cluster) == [2.0, []]


def states(file):
    """The states of the trials, as the study has them."""
    return [each.state for each in sweep.report(load_sweep(file)).trials]


def refuse_noise(message):
    """What closing causes is nobody's concern."""
    for word in ("Traceback", "ERROR", "internal_kv", "is closed", "Error"):
        assert word not in message, message


WAITING, TRAINING = "[trial 2] pre-training: ", "pre-training on "
VALIDATED, ENDED = ": validation mauc", "/4 trials"


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_ctrl_c_at_any_moment_fails_no_trial_and_the_same_command_ends_as_if_it_had_not_been(
    new_home, chest, tmp_path, monkeypatch, cluster
):
    """While trials wait, train, were just validated, and end; once also with a second one, which leaves at once."""
    theirs, ours = new_home(), new_home()
    long = {"pretrain": {"epochs": 60}, "finetune": {"epochs": 20}, "train": {"save_minutes": 5}}
    file = write_sweep(tmp_path, chest, GRID, long)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PREMED_HOME", str(theirs))
    expected = whole(file)
    monkeypatch.setenv("PREMED_HOME", str(ours))

    process = command_of(file)
    until(process.stderr, TRAINING)
    process.send_signal(signal.SIGINT)
    time.sleep(2 * ECHO)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    output = process.communicate()[1]
    assert process.returncode == 130 and time.monotonic() - began < 5
    refuse_noise(output)
    assert output.splitlines()[-1].startswith(("premed: left at once", "premed: stopped")), output
    assert set(states(file)) <= {"running", "waiting"} and emptied(cluster) == [2.0, []]

    for moment in (WAITING, TRAINING, VALIDATED, ENDED):
        output, code = killed_once(file, moment, signal.SIGINT)
        refuse_noise(output)
        last = output.splitlines()[-1]
        assert code == 130 and last.startswith("premed: stopped") and "; run the same command again to " in last, output
        if moment == TRAINING:
            assert " at step " in last and list(ours.glob("checkpoints/pretrain-*/checkpoints/*.json")), output
        assert set(states(file)) <= {"running", "waiting", "done"}, (moment, output)
        assert "running" in states(file) or moment == ENDED  # then the others may end in the same seconds
        assert emptied(cluster) == [2.0, []] and list(store_of(ours).search({}, experiment=LEASES)) == []
        assert "RUNNING" not in {run.status for kind in ("finetune", "trial") for run in runs_of(ours, kind)}
    assert "done" in states(file)
    found = whole(file)
    assert table(found) == table(expected) and len(runs_of(ours, "pretrain")) == 2
    assert emptied(cluster) == [2.0, []]


@pytest.mark.cluster
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("which", ["ImplicitFunc", "RayTrainWorker"])
def test_a_killed_process_of_a_trial_ends_no_trial(home, chest, tmp_path, cluster, which):
    """Tune's process of a trial is started again, and so are workers, which go on from their checkpoint."""
    file = write_sweep(tmp_path, chest, GRID)
    command = [sys.executable, "-m", "premed", "sweep", "--json", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(process.stderr, "[trial 1] fine-tuning on")
    next(each for each in psutil.Process().children(recursive=True) if which in words_of(each)).kill()
    out, err = process.communicate()
    assert process.returncode == 0, err
    found = json.loads(out)
    assert [each["state"] for each in found["trials"]] == ["done"] * 4
    assert len(runs_of(home, "finetune")) == 4 and len(runs_of(home, "pretrain")) == 2
    assert emptied(cluster) == [2.0, []]


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_when_all_of_ray_is_killed_the_command_ends_and_the_same_one_goes_on(home, chest, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # a Ray of its own
    file = write_sweep(tmp_path, chest, GRID)
    command = [sys.executable, "-m", "premed", "sweep", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until(process.stderr, "[trial 2] fine-tuning on")
    for each in psutil.Process(process.pid).children(recursive=True):
        each.kill()
    process.communicate()
    assert process.returncode not in (0, 2)
    found = whole(file)
    assert [each["state"] for each in found["trials"]] == ["done"] * 4
    assert len(runs_of(home, "finetune")) == 4 and len(runs_of(home, "pretrain")) == 2
