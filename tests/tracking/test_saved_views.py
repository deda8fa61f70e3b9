"""What MLflow's UI is told to show: which experiments, which columns, and groups that differ in seeds alone."""

import json
from urllib.parse import parse_qs

import pytest
from support.stores import rows, start

from premed.tracking.run_store import LEASES
from premed.tracking.saved_views import KEY, MOST, TAG, save_views
from premed.tracking.stage_leases import Lease

pytest_plugins = ["support.store_fixtures"]

HIDDEN, KIND = "mlflow.experiment.isGateway", "mlflow.experimentKind"
LISTED = f"tags.`{HIDDEN}` IS NULL"  # what MLflow 3.17's UI asks for, to list experiments


def add(store, strategy, share="1", seed=0, arm=None, experiment="chest", arm_name=None, **params):
    """An experiment's own run, as it is recorded; its scores are 0.5."""
    tags = {"task": experiment, "stage": "experiment", "strategy": strategy, "encoder": "vit", "head": "linear"}
    tags |= {"label_fraction": share, "seed": str(seed), "score": "mauc"} | ({"arm_digest": arm} if arm else {})
    about = {"seed": seed} | ({"arm": arm_name} if arm_name else {})
    more = {"digest": f"{strategy}{share}{seed}{arm}", "kind": "experiment", "tags": tags}
    run_id = store.start(experiment, f"{strategy} {share} {seed}", params=about | params, **more)
    for metric in ("test/mauc", "test/other", "val/mauc", "seconds"):
        store.log_rows(run_id, rows(0, metric=metric, value=0.5))
    return run_id


def tags_of(store, experiment="chest"):
    return store.client.get_experiment_by_name(experiment).tags


def saved(store, experiment="chest"):
    """The state that the UI loads."""
    return json.loads(json.loads(tags_of(store, experiment)[TAG])["state"])


def grouped(store):
    return [key["groupByData"] for key in saved(store)["groupBy"]["groupByKeys"]]


def listed(store):
    return {each.name for each in store.client.search_experiments(filter_string=LISTED)} - {"Default"}


def test_the_ui_lists_the_tasks_and_opens_them_under_model_training(store):
    add(store, "mae")
    assert Lease(store).acquire("d", "me")
    assert listed(store) == {"chest"} and len(list(store.search({}, experiment=LEASES))) == 1
    assert tags_of(store)[KIND] == "custom_model_development" and KIND not in tags_of(store, LEASES)


@pytest.mark.parametrize("command", [lambda store: Lease(store).acquire("e", "me"), save_views])
def test_a_store_of_an_earlier_version_hides_its_leases_from_the_next_command_on(store, command):
    add(store, "mae")
    held = Lease(store)
    assert held.acquire("d", "me")
    for experiment, tag in ((LEASES, HIDDEN), ("chest", KIND)):
        store.client.delete_experiment_tag(store.experiment(experiment), tag)
    assert listed(store) == {"chest", LEASES}
    command(store)
    assert listed(store) == {"chest"} and not Lease(store).acquire("d", "another")


def test_a_view_has_the_scores_and_what_tells_arms_apart_best_score_first(store):
    add(store, "none")
    add(store, "mae", mask_ratio=0.75, pretrain_epochs=10)
    (view,) = save_views(store)
    address, _, query = view.path.partition("?")
    assert address == f"/#/experiments/{store.experiment('chest')}/runs"
    assert parse_qs(query) == {"workflowType": ["machine_learning"], "viewStateShareKey": [KEY]}
    state, envelope = saved(store), json.loads(tags_of(store)[TAG])
    assert envelope["name"] and len(tags_of(store)[TAG]) < MOST
    assert state["searchFilter"] == 'tags.stage = "experiment"'
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test/mauc`", False)
    numbers = [f"metrics.`{name}`" for name in ("test/mauc", "val/mauc", "seconds")]
    assert state["selectedColumns"] == [*numbers, *(f"params.`{p}`" for p in ("seed", "mask_ratio", "pretrain_epochs"))]
    assert state["groupBy"]["aggregateFunction"] == "average"


def test_the_newest_task_comes_first(store):
    add(store, "mae", experiment="brain")
    add(store, "mae", experiment="chest")
    assert [view.task for view in save_views(store)] == ["chest", "brain"]


@pytest.mark.parametrize(
    ("others", "keys"),
    [
        ([{"seed": 1}], ["strategy"]),
        ([{"strategy": "none"}], ["strategy"]),
        ([{"share": "0.1", "arm": "b"}], ["strategy", "label_fraction"]),
        ([{"mask_ratio": 0.5, "arm": "b"}], ["strategy", "mask_ratio"]),
        ([{"arm": "b"}], ["strategy", "arm_digest"]),  # they differ in what no short parameter names
        ([{"strategy": "none", "arm": "b"}, {"strategy": "none", "arm": "c", "layer_decay": 0.5}], ["strategy"]),
    ],
)
def test_a_group_differs_in_seeds_alone_so_that_its_mean_mixes_no_arms(store, others, keys):
    add(store, "mae", arm="a", mask_ratio=0.75)
    for other in others:
        add(store, **{"strategy": "mae", "arm": "a", "mask_ratio": 0.75} | other)
    save_views(store)
    if len(others) > 1:  # the last case: two arms of one strategy, told apart by a parameter that one of them has
        keys = [*keys, "layer_decay"]
    assert grouped(store) == keys


def test_the_arm_s_name_is_the_group_where_it_tells_as_much(store):
    add(store, "mae", arm_name="mae 100 %", arm="a")
    add(store, "none", arm_name="none 100 %", arm="c")
    save_views(store)
    assert grouped(store) == ["strategy"]
    add(store, "mae", share="0.1", arm_name="mae 10 %", arm="b")
    save_views(store)
    assert saved(store)["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "arm"}]
    add(store, "mae", share="0.1", arm_name="mae 10 %", arm="d")  # a learning rate, say, which the name does not tell
    save_views(store)
    assert grouped(store) == ["strategy", "label_fraction", "arm_digest"]


def test_a_view_follows_new_runs_but_not_when_a_person_changed_it(store):
    add(store, "mae")
    save_views(store)
    before = tags_of(store)[TAG]
    save_views(store)
    assert tags_of(store)[TAG] == before
    add(store, "mae", share="0.1", arm="b")
    save_views(store)
    assert grouped(store) == ["strategy", "label_fraction"]
    changed = json.dumps(json.loads(before) | {"updatedAt": json.loads(before)["createdAt"] + 1})
    store.client.set_experiment_tag(store.experiment("chest"), TAG, changed)
    assert "viewStateShareKey" in save_views(store)[0].path and tags_of(store)[TAG] == changed


def test_a_store_without_experiments_has_no_view_and_one_that_refuses_still_has_addresses(store, monkeypatch):
    start(store)
    assert save_views(store) == []
    add(store, "mae", experiment="brain")

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(store.client, "set_experiment_tag", refuse)
    (view,) = save_views(store)
    assert view.path.endswith("/runs?workflowType=machine_learning")
