"""Several nodes: a head that only drives, two that train together, each with a network and a cache of its own.

make test-cluster, or pytest -m cluster
"""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from integration.clusters import cluster, end
from integration.machines import machines
from safetensors.numpy import load_file
from support.experiments import TINY, curve, runs_of, settle_in, store_of, until
from support.suite import REPOSITORY
from support.weights import learnt

from premed.config.compose import load
from premed.data.phantoms.writers import write_chestxray14
from premed.execution import runner

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3000)]

YAML = REPOSITORY / "experiments" / "chestxray14" / "mae.yaml"
QUICK = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "10"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def four():
    with machines("head", "first", "second", "third") as made:
        yield made


@pytest.fixture(scope="module")
def nodes(folder, four):
    """A cluster of three machines, of which the first drives; the last has no images below `folder`/data/part."""
    for part in ("whole", "part"):
        write_chestxray14(folder / "data" / part, 30, 0, size=32)
    (folder / "nothing").mkdir()
    (folder / "home" / "cache").mkdir(parents=True)
    head, first, second, _ = four
    where = {"host": head.address, "inside": own(head, folder, {})}
    with cluster("--num-cpus=0", f"--node-ip-address={head.address}", **where, **settings(folder)) as found:
        found.wait_for(1)
        join(found, first, folder, {})
        found.wait_for(2)
        join(found, second, folder, {folder / "data" / "part": folder / "nothing"})
        found.wait_for(3)
        yield found


def settings(folder):
    return QUICK | {"PREMED_HOME": str(folder / "home")}


def join(nodes, machine, folder, hidden):
    """Starts a node that trains."""
    options = f"--node-ip-address={machine.address}", f"--temp-dir={nodes.folder / machine.name}"
    nodes.node("--num-cpus=1", *options, inside=own(machine, folder, hidden), **settings(folder))


def own(machine, folder, hidden):
    """The words before a command on a machine with a cache of its own."""
    cache = folder / f"cache-{machine.name}"
    cache.mkdir()
    return machine.inside({folder / "home" / "cache": cache, **hidden})


def small(folder, *, part="whole", **fields):
    """What makes a tiny experiment of the one in the checkout: overrides."""
    wanted = TINY | {"task": TINY["task"] | {"root": str(folder / "data" / part)}, "test": False}
    wanted["train"] = TINY["train"] | {"workers": 2}
    wanted["finetune"] = TINY["finetune"] | {"epochs": 2, "augment": {"rand": None}}
    wanted |= {name: {**wanted.get(name, {}), **value} for name, value in fields.items()}
    return [f"{name}={json.dumps(value)}" for name, value in wanted.items()]


def weights(home):
    """All weights, by stage and part."""
    files = sorted((home / "checkpoints").glob("*/parts/*.safetensors"))
    assert files
    return {f"{file.parent.parent.name} {file.stem}": load_file(file) for file in files}


def alone(overrides, home, monkeypatch):
    """The same in this process: one node, one worker, no Ray."""
    settle_in(monkeypatch, home)
    return runner.run(load([YAML], [*overrides, "train.workers=0"]), lambda event: None)


def equal(ours, theirs):
    """Up to the order of sums."""
    assert ours.keys() == theirs.keys()
    for part, tensors in ours.items():
        for name, values in tensors.items():
            expected = learnt(name, theirs[part][name])
            np.testing.assert_allclose(learnt(name, values), expected, rtol=1e-5, atol=1e-6, err_msg=f"{part} {name}")


def trained_on(nodes):
    """The addresses of the nodes that workers were on."""
    address = {node["node_id"]: node["node_ip"] for node in nodes.listed("nodes")}
    return {address[actor["node_id"]] for actor in nodes.listed("actors") if actor["class_name"] == "RayTrainWorker"}


def test_two_nodes_train_together_as_one_does_and_the_head_trains_nothing(nodes, folder, tmp_path, monkeypatch):
    home, overrides = folder / "home", small(folder)
    code, output = nodes.premed("submit", YAML, *overrides)
    assert code == 0, output
    assert len(trained_on(nodes)) == 2
    alone(overrides, tmp_path, monkeypatch)
    equal(weights(home), weights(tmp_path))
    # what one rank does for all was done once
    saved = [int(step) for step in re.findall(r"step (\d+): checkpoint saved", output)]
    assert len(saved) > 4 and sum(step <= before for before, step in pairwise(saved)) == 1  # the second stage's first
    for kind in ("pretrain", "finetune"):
        (run,) = runs_of(home, kind)
        (kept,) = (home / "checkpoints").glob(f"{kind}-*/curve.jsonl")
        rows = [json.loads(line) for line in kept.read_text().splitlines()]
        for name, points in curve(home, run.run_id).items():
            assert points == [(row["step"], row["metrics"][name]) for row in rows if name in row["metrics"]]
        assert run.status == "FINISHED" and store_of(home).get(run.run_id).metrics["pace/samples_per_second"] > 0
    # each that trains has a cache of its own, and the head, which does not, has none
    caches = [len(list((folder / f"cache-{name}").rglob("*.safetensors"))) for name in ("first", "second", "head")]
    assert caches[0] == caches[1] > 60 and caches[2] == 0


def test_images_that_a_node_lacks_are_named_with_the_node_at_the_start(nodes, folder):
    code, output = nodes.premed("submit", YAML, *small(folder, part="part"))
    last = output.splitlines()[-1]
    assert code == 2 and re.match(r"premed: .*/data/part.* \(on node second\)", last), output
    assert "pre-training on" not in output


@pytest.mark.parametrize(("name", "why"), [("eth9", "has no such interface"), ("lo", "reaches no other node over it")])
def test_a_network_that_no_node_has_or_that_ends_in_it_is_refused_in_one_line(nodes, folder, name, why):
    scratch = *small(folder), "pretext=none"
    code, output = nodes.premed("submit", "--env", f"GLOO_SOCKET_IFNAME={name}", YAML, *scratch)
    where = rf"premed: GLOO_SOCKET_IFNAME={name}: node (first|second) \(10\.[\d.]+\)"
    assert code == 2 and re.fullmatch(rf"{where} {why}; set it .* to one of net0.*", output.splitlines()[-1]), output


def test_a_node_that_dies_and_one_that_comes_change_who_trains_and_not_what_is_learnt(
    nodes, four, folder, tmp_path, monkeypatch
):
    home = folder / "elastic"
    overrides = small(folder, train={"workers": [1, 2], "log_steps": 20}, pretrain={"epochs": 600, "seed": 1})
    job = nodes.command("submit", "--env", f"PREMED_HOME={home}", YAML, *overrides)
    until(job.stdout, ", 2 workers")
    until(job.stdout, "checkpoint saved")
    end(nodes.nodes[2])
    assert re.match(r"pre-training on .* resumed after step [1-9]\d*, 1 worker\n", until(job.stdout, ", 1 worker\n"))
    join(nodes, four[3], folder, {})
    assert re.match(r"pre-training on .* resumed after step [1-9]\d*, 2 workers", until(job.stdout, ", 2 workers"))
    output, _ = job.communicate()
    assert job.returncode == 0, output
    assert trained_on(nodes) == {machine.address for machine in four[1:]}
    alone(overrides, tmp_path, monkeypatch)
    equal(weights(home), weights(tmp_path))
