"""`seeds: auto` with real little trainings: it stops, goes on after a kill, and `premed compare` says the same."""

import signal
from dataclasses import replace

import pytest
import yaml
from support.experiments import forked, store_of, tree, until

from premed.config.expand import load_command
from premed.events import ExperimentsStarted, LookTaken, StageStarted, TrainingStarted, WarningIssued
from premed.execution.preflight import resolve
from premed.execution.sequential import Look, SequentialRun, run_until_decided
from premed.reporting.comparison.compare import compare

pytest_plugins = ["support.experiment_fixtures"]

SHORT = {"epochs": 1, "validations": 1}
MAE = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture
def written(chest, tmp_path):
    """The YAML of `none` and `mae` with `seeds: auto`: looks at 4 and 6 seeds."""
    whole = tree(chest, {"pretrain": SHORT, "finetune": SHORT, "seeds": "auto", "decide": {"max_seeds": 6}})
    whole |= {"pretext": ["none", "mae"], "only": {"mae": {"pretext": MAE}}}
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump(whole))
    return tmp_path / "auto.yaml"


def run(file, *overrides):
    """(what came of it, the events)."""
    events = []
    result = run_until_decided(*load_command([file], overrides), events.append)
    return result, events


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def looks_in(result):
    """What was decided at each look, without what it cost."""
    return result["decision"]["looks"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_adds_seeds_look_after_look_goes_on_after_a_kill_and_compare_says_the_same(home, written):
    process, output = forked(home, "run", written)
    first = until(output, "look 1 of 2")
    until(output, "fine-tuning")  # of the seeds after it
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert "at 4 seeds, test part, mean AUC: mae 100 % " in first and "next: 4 experiments, about " in first

    result, events = run(written)
    decision, trained = result["decision"], of(TrainingStarted, events)
    assert decision["reason"] == "max_seeds" and len(result["outcomes"]) == 12 and decision["hours_saved"] == 0
    assert 0 < len(trained) <= 6  # two seeds of `none`, two of `mae` and their pre-trainings, less what was finished
    assert [event.total for event in of(ExperimentsStarted, events)] == [8, 4]
    words = [event.words for event in of(LookTaken, events)]
    assert words[0].partition(" spent")[0] == first.strip().partition(" spent")[0]  # the same look
    assert len(words) == 2 and decision["words"].startswith(
        "not decided with the last seed (decide.max_seeds); mae 100 %: not separable; 12 of 12 experiments, "
    )

    (arm,) = [arm for arm in compare(store_of(home)).tasks[0].blocks[0].rows if arm.strategy == "mae"]
    difference, (last,) = arm.scores["mauc"].difference, decision["looks"][-1]
    assert (difference.value, difference.interval, difference.p_holm, difference.verdict, difference.num_seeds) == (
        last["difference"], last["interval"], last["p"], last["verdict"], 6)  # fmt: skip
    assert difference.looks.planned == (4, 6)

    again, events = run(written)
    assert of(StageStarted, events) == [] and looks_in(again) == looks_in(result)

    wide, events = run(written, "decide.margin=0.9")
    assert of(StageStarted, events) == [] and wide["decision"]["reason"] == "decided" and len(wide["outcomes"]) == 8
    assert wide["decision"]["looks"][0][0]["verdict"] == "not separable, less than 0.9 apart"
    assert wide["decision"]["hours_saved"] > 0 and wide["decision"]["experiments_of_all_seeds"] == 12

    poor, events = run(written, "decide.hours=1e-6")
    assert of(StageStarted, events) == [] and poor["decision"]["reason"] == "hours" and len(poor["outcomes"]) == 8
    assert not any("looked at before" in event.text for event in of(WarningIssued, events))

    on_val, events = run(written, "decide.margin=0.9", "test=false")
    assert of(StageStarted, events) == [] and on_val["decision"]["part"] == "val"
    assert wide["decision"]["part"] == "test" and of(LookTaken, events)[0].words.startswith(
        "look 1 of 2 at 4 seeds, val"
    )

    changed, events = run(written, "decide.looks=[6]")
    assert changed["decision"]["looks_planned"] == [6] and of(StageStarted, events) == []
    assert any("looked at before at other numbers" in event.text for event in of(WarningIssued, events))


@pytest.mark.slow
def test_a_failed_experiment_stops_it_without_a_look(home, written):
    result, events = run(written, "pretrain.lr=1e30")
    assert result["decision"]["reason"] == "failed" and result["decision"]["looks"] == []
    assert "failure" in result["outcomes"][-1] and len(result["outcomes"]) == 8


# ---- without a training


@pytest.fixture
def several(chest, tmp_path):
    """A run of `none` and of two of MAE at two shares of the labels, before it began."""
    whole = tree(chest, {"finetune": {"label_fraction": [0.5, 1.0]}, "seeds": "auto", "decide": {"max_seeds": 8}})
    whole |= {"pretext": ["none", {"name": "mae"} | MAE, {"name": "mae", "mask_ratio": 0.5} | MAE]}
    (tmp_path / "several.yaml").write_text(yaml.safe_dump(whole))
    experiments, decide = load_command([tmp_path / "several.yaml"])
    return SequentialRun(resolve(experiments), decide, None)


def finish(run, batch, pinned=False):
    """As if these had run: an hour for each stage; pre-trainings are shared by the two shares of the labels.

    pinned: there is one pre-training for all seeds.
    """
    for i in batch:
        experiment = run.experiments[i].experiment
        stages = [f"{run.arms[i]} {experiment.finetune.seed}"]
        if experiment.pretrain:
            stages.append(f"{experiment.pretext.mask_ratio} {0 if pinned else experiment.pretrain.seed}")
        run.outcomes[i] = {"run_id": stages[0], "stages": [{"run_id": each} for each in stages]}
        run.costs |= dict.fromkeys(stages, 1.0)


def arms_in(run, batch):
    """(strategy, mask ratio, share of the labels) and the seeds of each."""
    found = {}
    for i in batch:
        each = run.experiments[i].experiment
        about = each.strategy, getattr(each.pretext, "mask_ratio", None), each.finetune.label_fraction
        found.setdefault(about, []).append(each.finetune.seed)
    return found


def test_an_arm_that_is_decided_gets_no_more_seeds_and_the_baseline_none_without_an_open_arm(several):
    first = several.batch(4)
    assert len(first) == 6 * 4
    finish(several, first)
    decided = {arm: i for i, arm in enumerate(several.arms)}
    several.closed |= {
        arm
        for arm, i in decided.items()
        if arms_in(several, [i]).keys() & {("mae", 0.75, 0.5), ("mae", 0.5, 0.5), ("mae", 0.5, 1.0)}
    }
    assert arms_in(several, several.batch(6)) == {("none", None, 1.0): [4, 5], ("mae", 0.75, 1.0): [4, 5]}


@pytest.mark.parametrize("pinned", [False, True])
def test_costs_count_a_stage_once_and_foresee_what_more_seeds_take(several, pinned):
    finish(several, several.batch(4), pinned)
    num_pretrainings, more = (2, 0) if pinned else (2 * 4, 2 * 2)
    assert several.spent == 6 * 4 + num_pretrainings
    assert several.cost(several.batch(6)) == pytest.approx(6 * 2 + more)


def test_a_look_in_words():
    look = Look("d", "mae", 0.25, 4, 0.021, (-0.004, 0.046), 0.2, "not separable", False)
    assert str(look) == "mae 25 % +0.021 [-0.004, +0.046], not decided"
    assert str(replace(look, verdict="better", is_decided=True)).endswith(", better")
