"""Jobs on a real cluster with a token: refused without it, followed with it, stopped, and gone on with.

make test-cluster, or pytest -m cluster
"""

import json
import re

import pytest
from integration.clusters import cluster
from support.experiments import TINY, runs_of, until
from support.suite import REPOSITORY

from premed.data.phantoms.writers import write_chestxray14
from premed.tracking.run_store import LEASES, RunStore

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3000)]

YAML = "experiments/chestxray14/mae.yaml"


@pytest.fixture(scope="module")
def ray():
    with cluster("--num-cpus=2") as found:
        yield found


def tiny(root, epochs):
    """What makes a tiny experiment on the X-rays in the folder `root` of the one in the checkout: overrides."""
    fields = {"task": {"root": str(root)}, "train": {"workers": 2, "log_steps": 20}, "test": False}
    fields["pretrain"] = {"epochs": epochs}  # enough for `ray job stop`, which takes seconds to start, to find it so
    fields["finetune"] = {"epochs": 1, "augment": {"rand": None}}
    return [f"{key}={value}" for key, value in (flat(TINY) | flat(fields)).items()]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny experiment on phantoms."""
    return tiny(write_chestxray14(tmp_path_factory.mktemp("data") / "chestxray14", 30, 0, size=32), 300)


def flat(tree, above=""):
    """A tree's leaves by dotted path, as YAML says them."""
    leaves = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: json.dumps(value)}
    return leaves


def weights(home):
    """The bytes of all weights, by stage."""
    files = sorted((home / "checkpoints").glob("*/parts/*.safetensors"))
    assert files
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}


def statuses(home):
    return {run.run_id: run.status for kind in ("experiment", "pretrain") for run in runs_of(home, kind)}


def test_who_has_no_token_is_refused(ray, tmp_path):
    (tmp_path / "token").write_text("0" * 64)
    run = ["submit", REPOSITORY / YAML, f"task.root={tmp_path}"]
    code, output = ray.premed(*run, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert code == 2 and re.fullmatch(
        rf"premed: {ray.dashboard} refuses: .*nvalid.*; set RAY_AUTH_MODE=token.*\n", output
    )
    code, output = ray.premed(*run, RAY_AUTH_MODE="disabled")
    assert code == 2 and re.fullmatch(rf"premed: {ray.dashboard} refuses: .*[Mm]issing.*; set .*\n", output)
    assert ray.listed("jobs") == []


def test_a_job_without_a_home_says_so_and_its_exit_code_is_the_command_s(ray, small):
    code, output = ray.premed("submit", YAML, *small, cwd=REPOSITORY)
    assert code == 2 and output.splitlines()[-1].startswith("premed: PREMED_HOME is not set: a Ray job's")
    code, output = ray.premed("submit", "--env", "PREMED_HOME=.premed", YAML, *small, cwd=REPOSITORY)
    assert code == 2 and "PREMED_HOME: .premed is in the Ray job's upload" in output.splitlines()[-1]


def test_a_stopped_job_leaves_no_placement_group_keeps_its_checkpoint_and_goes_on_to_the_same_weights(
    ray, real, tmp_path
):
    small = tiny(real("chestxray14"), 24)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    code, output = ray.premed("submit", "--env", f"PREMED_HOME={straight}", REPOSITORY / YAML, *small)
    assert code == 0, output
    lines = output.splitlines()
    assert "starting Ray" in lines and any(re.match(r"step \d{3}: validation loss \d", line) for line in lines)
    assert f"{straight}/checkpoints/finetune-" in output and "Traceback" not in output
    assert re.search(r"^run [0-9a-f]{32}; for other images: premed predict", lines[-1])
    assert set(statuses(straight).values()) == {"FINISHED"}

    again = ["submit", "--env", f"PREMED_HOME={stopped}", YAML, *small]
    job = ray.command(*again, cwd=REPOSITORY)
    (name,) = re.findall(r"job (\S+) was submitted", job.stdout.readline())
    until(job.stdout, "checkpoint saved")
    ray.ray("job", "stop", name)
    rest, _ = job.communicate()
    *_, inside, last = rest.splitlines()
    assert job.returncode == 130
    assert last == f"premed: job {name} was stopped; submit the same command again to go on"
    assert re.fullmatch(r"premed: stopped at step \d+ of the pre-training; run the same command again to .*", inside)
    assert {group["state"] for group in ray.listed("placement_groups")} <= {"REMOVED"}
    before = statuses(stopped)
    assert set(before.values()) <= {"KILLED", "RUNNING"}  # the rest is the next start's business
    assert list((stopped / "checkpoints").glob("pretrain-*/checkpoints/*.pt"))

    code, output = ray.premed(*again, cwd=REPOSITORY)
    assert code == 0, output
    assert before.keys() == statuses(stopped).keys() and set(statuses(stopped).values()) == {"FINISHED"}
    assert list(RunStore(f"sqlite:///{stopped}/mlflow.db").search({}, experiment=LEASES)) == []
    assert re.search(r"pre-training on \d{3} images, \d{3} steps of 16, .*, resumed after step [1-9]", output)
    assert weights(stopped) == weights(straight)


def test_a_job_that_waits_for_another_s_cpus_says_what_it_needs_and_what_is_free(ray, small, tmp_path):
    one, two = (["submit", "--env", f"PREMED_HOME={tmp_path}/{name}", YAML, *small] for name in ("one", "two"))
    first = ray.command(*one, "train.workers=1", "pretrain.epochs=100000", cwd=REPOSITORY)
    (name,) = re.findall(r"job (\S+) was submitted", first.stdout.readline())
    until(first.stdout, "checkpoint saved")
    second = ray.command(*two, "pretext=none", cwd=REPOSITORY)
    until(second.stdout, "fine-tuning waits for 2 workers of 1 CPU; the cluster has 1 of 2 CPUs free")
    ray.ray("job", "stop", name)
    output, _ = second.communicate()
    first.communicate()
    assert second.returncode == 0 and "waits for" not in output, output
