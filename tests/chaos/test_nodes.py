"""A node dies with its workers: two that may train, a head that drives.

make chaos
"""

import time

import psutil
import pytest
import yaml
from chaos.harness import CHANGES, Watched, compare, finished_of
from integration.clusters import cluster, end
from integration.machines import machines
from support.experiments import run, tree

pytest_plugins = ["support.experiment_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

RAYS_OWN = {"RAY_health_check_timeout_ms": "10000", "RAY_health_check_failure_threshold": "5"}


def trains(node):
    """Whether a worker trains there."""
    children = psutil.Process(node.pid).children(recursive=True)
    return any("RayTrainWorker" in " ".join(each.cmdline()) for each in children)


def test_node_killed(row, home, chest, tmp_path, undisturbed):
    """SIGKILL of a raylet with its workers (two nodes and a head, Ray's own health checks)"""
    reference = undisturbed(1)
    (file := tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree(chest, *CHANGES)))
    with machines("head", "first", "second") as (head, *others):
        where = {"host": head.address, "inside": head.inside({})}
        settings = RAYS_OWN | {"PREMED_HOME": str(home)}
        with cluster("--num-cpus=0", f"--node-ip-address={head.address}", **where, **settings) as nodes:
            for number, machine in enumerate(others, start=2):
                options = f"--node-ip-address={machine.address}", f"--temp-dir={nodes.folder / machine.name}"
                nodes.node("--num-cpus=1", *options, inside=machine.inside({}), **settings)
                nodes.wait_for(number)
            watched = Watched(nodes.command("submit", file, "train.workers=1", cwd=tmp_path))
            watched.training()
            (its,) = [node for node in nodes.nodes[1:] if trains(node)]
            end(its)
            row.seconds = f"{watched.going_on(time.monotonic()):.0f}"
            assert watched.end() == 0, watched.text
    outcome = run(chest, *CHANGES)  # reused
    assert outcome["stages"][0]["reused"]
    compare(row, finished_of(home, outcome), reference, home)
