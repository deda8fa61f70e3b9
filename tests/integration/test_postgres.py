"""Runs, curves and a sweep's history in a real PostgreSQL.

make test-cluster, or pytest -m cluster
"""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import yaml
from integration.databases import postgres
from support.experiments import TINY, outcome, tree
from support.stores import come_up, free_port, stop

from premed.tracking.client import with_driver
from premed.tracking.run_store import RunStore
from premed.tuning.study import Study
from premed.tuning.sweep_file import load_sweep

pytest_plugins = ["support.experiment_fixtures"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def database():
    with postgres() as made:
        yield made


@pytest.fixture
def server(database, tmp_path):
    """Where an MLflow server on a database of its own answers."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", f"{tmp_path}/artifacts"]
    settings = os.environ | {"MLFLOW_BACKEND_STORE_URI": with_driver(database(f"mlflow{port}"), "")}
    process = subprocess.Popen(command, env=settings, start_new_session=True)
    try:
        come_up(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def test_names_longer_than_its_columns_are_cut(server):
    store = RunStore(server)
    run_id = store.start("chest", "r" * 300, digest="d", kind="test", params={"p" * 300: 1})
    store.log_rows(run_id, [{"step": 0, "time": 0, "metrics": {f"{'m' * 300}{end}": float(end) for end in (1, 2)}}])
    run = store.get(run_id)
    assert len(run.name) == 250 and len(run.params) == 1 and sorted(run.metrics.values()) == [1.0, 2.0]


def test_two_commands_of_two_workers_at_once_lose_no_point_of_a_curve(server, chest, tmp_path):
    changes = {"train": {"workers": 2, "log_steps": 1, "save_minutes": 5}, "test": False}
    commands = []
    for seed in (0, 1):
        changes |= {"pretrain": TINY["pretrain"] | {"seed": seed}, "finetune": TINY["finetune"] | {"seed": seed}}
        file = tmp_path / f"{seed}.yaml"
        file.write_text(yaml.safe_dump(tree(chest, changes)))
        commands.append(
            subprocess.Popen(
                [sys.executable, "-m", "premed", "run", "--json", str(file)],
                env=os.environ | {"PREMED_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": server},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    store, counted = RunStore(server), 0
    for found in [outcome(command) for command in commands]:
        for stage in found["stages"]:
            kept = [json.loads(line) for line in Path(stage["where"], "curve.jsonl").read_text().splitlines()]
            for name in {name for row in kept for name in row["metrics"]}:
                points = [(point.step, point.value) for point in store.client.get_metric_history(stage["run_id"], name)]
                assert points == [(row["step"], row["metrics"][name]) for row in kept if name in row["metrics"]], name
                counted += len(points)
            waits = store.client.get_metric_history(stage["run_id"], "pace/data_wait")
            assert [point.step for point in waits] == list(range(1, stage["num_steps"] + 1))
            assert store.get(stage["run_id"]).status == "FINISHED"
    assert counted > 4 * 16 * 3
    assert not [path.read_text() for path in (tmp_path / "home" / "spool").iterdir()]


SWEEP = """
name: on PostgreSQL
base: tiny.yaml
space: {finetune.lr: {loguniform: [1.0e-4, 1.0e-2]}}
search: optuna
trials: 3
concurrency: 1
"""


def test_a_sweep_s_study_is_kept_and_resumed(database, chest, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree(chest)))
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    sweep, url = load_sweep(tmp_path / "sweep.yaml"), database("sweeps")

    def started():
        study = Study(sweep, "ours", url, ["maximize"])
        study.start("data")
        return study

    first = started()
    done, left = first.ask(), first.ask()
    first.report_intermediate(done.number, 1, 0.25)
    assert first.tell(done.number, "done", [0.5], {"stages": [{"kind": "finetune", "seconds": 1.5}]})
    again = started()
    records = {each.number: each for each in again.trials()}
    assert (records[0].values, records[0].curve, records[0].notes["stages"][0]["seconds"]) == ((0.5,), {1: 0.25}, 1.5)
    rest = list(islice(iter(again.ask, None), 9))
    assert [each.number for each in rest] == [1, 2] and rest[0].setting == left.setting
