"""`premed predict` says which training answers, what it scored, and when that is no reason to rely on it."""

import json
import math
from dataclasses import replace

import pytest
from support.experiments import settle_in, store_of
from support.stores import copied

from premed.inference.scored import Scored, scored

pytest_plugins = ["support.trained_fixtures"]

GOOD = Scored("1f0c12345678", "mae 5 % seed 1", "mae", 0.05, 1, "mauc", "test", 0.812, (0.75, 0.861), 0.5)


def predicted(premed, run, folder, *options):
    code, out, err = premed(
        "predict", run.run_id, run.task.split("test")[0].image[0], "--out", folder / "out", *options
    )
    assert code == 0
    return out, err


def test_predict_says_which_training_answered_and_what_it_scored(premed, chest_run, at_home, tmp_path):
    tested = at_home(chest_run).stage("test")
    out, _ = predicted(premed, chest_run, tmp_path)
    low, high = tested["interval"]
    said = f"the network is mae 100 % seed 0 (run {chest_run.run_id[:8]}): mean AUC on test {tested['value']:.3f} "
    said += f"[{low:.3f}, {high:.3f}]; an answer that ignores the image has {tested['constant']:.3f}"
    assert said in out.splitlines()


def test_predict_says_it_in_json_too(premed, chest_run, at_home, tmp_path):
    tested = at_home(chest_run).stage("test")
    model = json.loads(predicted(premed, chest_run, tmp_path, "--json")[0])["model"]
    expected = {"strategy": "mae", "label_fraction": 1.0, "seed": 0, "part": "test", "score": "mauc"}
    assert expected.items() <= model.items() and model["run_id"] == chest_run.run_id
    assert model["value"] == pytest.approx(tested["value"])
    assert model["beats_constant"] is (tested["value"] > tested["constant"])


def test_predict_warns_of_a_network_that_is_no_better_than_ignoring_the_image(
    premed, chest_run, at_home, tmp_path, monkeypatch
):
    settle_in(monkeypatch, copied(at_home(chest_run).home, tmp_path / "home"))
    tested = chest_run.stage("test")
    store_of(tmp_path / "home").client.log_metric(tested["run_id"], "test/constant", 1.0, step=10**6)
    out, err = predicted(premed, chest_run, tmp_path, "--json")
    warned = [line for line in err if "no better than an answer that ignores the image" in line]
    assert len(warned) == 1 and warned[0].startswith("WARNING: mae 100 % seed 0") and "do not rely" in warned[0]
    assert json.loads(out)["model"]["beats_constant"] is False


def test_a_run_that_was_not_tested_has_its_score_on_val(premed, organ_run, at_home, tmp_path, monkeypatch):
    settle_in(monkeypatch, copied(at_home(organ_run).home, tmp_path / "home"))
    store = store_of(tmp_path / "home")
    store.client.delete_run(organ_run.stage("test")["run_id"])
    out, err = predicted(premed, organ_run, tmp_path)
    value = organ_run.stage("finetune")["summary"]["val/dice"]
    assert f"Dice on val (which chose its weights) {value:.3f}" in out.splitlines()[-1]
    assert not any("ignores the image" in line for line in [*out.splitlines(), *err])


def test_a_run_whose_experiment_was_deleted_for_good_is_named_by_its_own_tags(chest_run, at_home):
    store = store_of(at_home(chest_run).home)
    run = replace(store.get(chest_run.stage("finetune")["run_id"]), parent="0" * 32)
    found = scored(store, run)
    assert (found.name, found.run_id) == ("mae 100 % seed 0", run.run_id) and math.isfinite(found.value)


def test_what_is_better_beyond_its_interval_is_no_warning():
    assert GOOD.beats_constant and not GOOD.warning


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"value": 0.5}, "no better than an answer that ignores the image (0.500 against 0.500)"),
        ({"value": 0.4}, "no better than an answer that ignores the image (0.400 against 0.500)"),
        ({"value": 0.6, "interval": (0.45, 0.7)}, "0.600 [0.450, 0.700], which holds that of an answer that ignores"),
    ],
)
def test_what_is_not_better_is_warned_of(changes, words):
    assert words in replace(GOOD, **changes).warning


@pytest.mark.parametrize("changes", [{"value": math.nan}, {"constant": math.nan}])
def test_of_what_is_not_known_nothing_is_claimed(changes):
    found = replace(GOOD, **changes)
    assert found.beats_constant is None and not found.warning
    assert json.loads(json.dumps(found.entry, allow_nan=False))["beats_constant"] is None


def test_a_network_without_any_score_says_so():
    assert replace(GOOD, part=None).words == "mae 5 % seed 1 (run 1f0c1234): the store has no score of it"
