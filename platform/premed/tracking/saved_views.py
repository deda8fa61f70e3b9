"""Saved views: what MLflow's UI shows first of a task, so that its runs answer which pre-training is best.

A view is a tag of MLflow's experiment, as the UI's own saved views are (MLflow 3.17): filter, order, columns and groups
of the runs' table, and charts. An address names it; the UI lists it, too.
"""

import json
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from premed.tracking.entities import mark
from premed.tracking.run_store import LEASES, Run, RunStore

KEY = "premed"
TAG = f"mlflow.sharedViewState.{KEY}"
NAME = "attributes.`Run Name`"
MOST = 5000  # characters of an experiment's tag that MLflow stores
DIFFERING = ["label_fraction", "encoder", "head", "mask_ratio", "layer_decay"]
DIFFERING += ["pretrain_epochs", "pretrain_steps", "finetune_epochs", "finetune_steps"]
"""What may tell the arms of one strategy apart, in words."""
SECTION = {"uuid": KEY, "name": "Strategies", "display": True, "isReordered": False, "deleted": False}
SECTION |= {"isGenerated": False}
"""Where the charts are."""


@dataclass(frozen=True)
class TaskView:
    """A task's runs in the UI: its name, and the address behind the server's."""

    task: str
    path: str


def save_views(store: RunStore) -> list[TaskView]:
    """Saves a view for each task with experiments, unless a person has changed it; the newest task is first.

    Experiments of MLflow's that an earlier version made get the tag that new ones have. Where nothing may be written,
    the addresses lead to the runs without a view.
    """
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in store.search({"premed.kind": "experiment"}):
        if "task" in run.tags:  # newest first
            runs[run.experiment_id].append(run)
    if leases := store.client.get_experiment_by_name(LEASES):
        mark(store.client, leases, is_service=True)
    views = []
    for experiment_id, some in runs.items():
        experiment = store.client.get_experiment(experiment_id)
        mark(store.client, experiment, is_service=False)
        query = {"workflowType": "machine_learning"}
        if save(store, experiment_id, experiment.tags, view(some)):
            query["viewStateShareKey"] = KEY
        path = f"/#/experiments/{experiment_id}/runs?{urllib.parse.urlencode(query)}"
        views.append(TaskView(some[0].experiment, path))
    return views


def save(store: RunStore, experiment_id: str, tags: Mapping[str, str], state: Mapping[str, Any]) -> bool:
    """Saves the view, if it is new. Returns whether there is one."""
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        old = json.loads(tags.get(TAG, "{}"))
        if old and (old["updatedAt"] != old["createdAt"] or json.loads(old["state"]) == state):
            return True
    now = int(time.time() * 1000)
    text = json.dumps(
        {"name": "Strategies (premed)", "createdAt": now, "updatedAt": now, "state": json.dumps(state)},
        separators=(",", ":"),
    )
    try:
        if len(text) > MOST:
            return False
        store.client.set_experiment_tag(experiment_id, TAG, text)
    except Exception:  # noqa: BLE001 - a store that may only be read
        return TAG in tags
    return True


# ---- what a view shows


def view(runs: Sequence[Run]) -> dict[str, Any]:
    """The state of the runs' page for the experiments of one task."""
    score = next((run.tags["score"] for run in runs if "score" in run.tags), None)
    metrics = {name for run in runs for name in run.metrics}
    scores = [name for part in ("test", "val") if (name := f"{part}/{score}") in metrics]
    numbers = [*scores, *(name for name in ("below_gate", "seconds") if name in metrics)]
    keys = group_keys(runs)
    named = ["label_fraction", "seed", "pretrain_seed", "mask_ratio", "pretrain_epochs", "pretrain_steps"]
    params = [name for name in named if any(name in run.params for run in runs)]
    columns = [f"metrics.`{name}`" for name in numbers] + [f"params.`{name}`" for name in params]
    return {
        "searchFilter": 'tags.stage = "experiment"',
        "orderByKey": f"metrics.`{scores[0]}`" if scores else "attributes.`start_time`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [NAME, *columns],
        "columnWidths": {NAME: 300},
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": mode, "groupByData": name} for mode, name in keys],
        },
        "isAccordionReordered": True,  # else the section is sorted by its name among those that the UI makes
        "compareRunSections": [SECTION],
        "compareRunCharts": [bars(name) for name in numbers],
    }


def bars(metric: str) -> dict[str, Any]:
    """A chart of one number, a bar for each group."""
    about = {"type": "BAR", "uuid": f"{KEY} {metric}", "metricSectionId": SECTION["uuid"], "runsCountToCompare": 20}
    return about | {"metricKey": metric, "displayName": metric, "isGenerated": False, "deleted": False}


def group_keys(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The tags and parameters to group by, as (`tag` or `param`, name): runs of a group differ in seeds alone.

    The strategy, then what differs within it; the mean over a group would otherwise mix arms. Where the arm's name says
    as much, it stands for them: the table's column has room for one.
    """
    keys: list[tuple[str, str]] = []
    for name in ("strategy", *DIFFERING, "arm_digest"):
        mode = "tag" if any(name in run.tags for run in runs) else "param"
        groups: dict[tuple[str | None, ...], set[str | None]] = defaultdict(set)
        for run in runs:
            groups[tuple(value_of(run, key) for key in keys)].add(value_of(run, (mode, name)))
        if name == "strategy" or any(len(values) > 1 for values in groups.values()):
            keys.append((mode, name))
    named = {(run.params.get("arm"), tuple(value_of(run, key) for key in keys)) for run in runs}
    names, arms = ({each[i] for each in named} for i in (0, 1))
    is_same = None not in names and len(names) == len(arms) == len(named)
    return [("param", "arm")] if len(keys) > 1 and is_same else keys


def value_of(run: Run, key: tuple[str, str]) -> str | None:
    mode, name = key
    return (run.tags if mode == "tag" else run.params).get(name)
