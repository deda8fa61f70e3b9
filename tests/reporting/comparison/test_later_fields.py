"""Runs that were made before a field was added are compared with those that were made after."""

import pytest
from support.comparing import TREE, add, block_of

from premed.errors import UserError
from premed.reporting.comparison.compare import compare

pytest_plugins = ["support.store_fixtures"]

VIT = {"encoder": {"name": "vit", "width": 24}}
ADDED = {"stem": "patch", "rotary": False, "layer_scale": None, "registers": 0}  # at their defaults


def labels(store, **more):
    return {(arm.label, arm.num_seeds) for arm in block_of(compare(store, **more)).rows}


@pytest.fixture
def seeds(store):
    """Adds two seeds of both strategies, with changes."""

    def fill(numbers, change):
        for seed in numbers:
            for strategy in ("none", "mae"):
                add(store, strategy, seed, change=change)

    return fill


def test_old_and_new_seeds_of_one_yaml_are_one_arm(store, seeds):
    seeds((0, 1), VIT)
    seeds((2, 3), {"encoder": VIT["encoder"] | ADDED})
    assert labels(store) == {("none", 4), ("mae", 4)}


def test_a_field_that_was_added_and_set_makes_an_arm(store, seeds):
    seeds((0, 1), VIT)
    seeds((2, 3), {"encoder": VIT["encoder"] | ADDED | {"rotary": True}})
    assert {number for _, number in labels(store)} == {2}
    assert all("stem" not in label for label, _ in labels(store))


def test_the_task_s_are_no_other_protocol_and_others_still_are(store, seeds):
    task = TREE["task"]
    seeds((0, 1), VIT | {"task": task | {"name": "nnunet"}})
    seeds((2, 3), VIT | {"task": task | {"name": "nnunet", "unlabelled": False}})
    assert labels(store) == {("none", 4), ("mae", 4)}
    seeds((4, 5), VIT | {"task": task | {"name": "nnunet", "unlabelled": True}})
    with pytest.raises(UserError, match="runs differ in task.unlabelled"):
        compare(store)


def test_seeds_of_two_versions_of_the_code_are_two_arms(store, seeds):
    """The fields are the same, and the results are not."""
    seeds((0, 1), VIT)
    seeds((2, 3), {"encoder": VIT["encoder"] | {"version": 2}})
    assert labels(store) == {
        (f"{strategy}{version}", 2) for strategy in ("none", "mae") for version in ("", " version=2")
    }


@pytest.mark.parametrize("change", [{"version": 2}, {"task": TREE["task"] | {"version": 2}}])
def test_versions_of_the_task_and_of_what_all_trainings_share_are_other_protocols(store, seeds, change):
    seeds((0, 1), VIT)
    seeds((2, 3), VIT | change)
    name = "finetune.stage_version" if "version" in change else "task.version"
    with pytest.raises(UserError, match=f"runs differ in {name}: 2 .4 runs., not set .4 runs."):
        compare(store)
