"""Runs, curves and a sweep's history in a real PostgreSQL.

make test-cluster, or pytest -m cluster
"""

import json
from itertools import islice
from pathlib import Path

import pytest
import yaml
from integration.databases import postgres
from support.experiments import TINY, beside, last, tree
from support.servers import MLflowServer
from support.stores import stop

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


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    """Where an MLflow server on it answers."""
    made = MLflowServer(tmp_path_factory.mktemp("mlflow"), with_driver(database("mlflow"), ""))
    yield made.uri
    stop(made.process)


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
        commands.append(beside(tmp_path / "home", chest, changes, uri=server))
    store, counted = RunStore(server), 0
    for found in [last(connection) for _, connection in commands]:
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
