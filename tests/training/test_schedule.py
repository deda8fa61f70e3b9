"""Values of `pretrain.epochs` on one trunk: rates, stages, exact continuation, what is trained once, reports."""

import json
import shutil
from functools import partial
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.experiments import curve, results, runs_of, settle_in, store_of
from support.experiments import experiment as tiny
from support.stages import outcome, run, tree

from premed.cli import progress
from premed.config import settings
from premed.config.compose import validate_experiment
from premed.data.phantoms.writers import write_chestxray14
from premed.errors import UserError
from premed.events import StageStarted, TrainingStarted, WarningIssued
from premed.execution import recorder, runner, scheduler
from premed.inference.load import open_trained
from premed.reporting.comparison import artifacts
from premed.reporting.comparison.compare import compare
from premed.training.checkpoint import CheckpointManager
from premed.training.schedule import Schedule, Trapezoid, planned, turn
from premed.training.setup import StageJob
from premed.training.stage import run_stage

pytest_plugins = ["support.experiment_fixtures"]

KILLED, FINE = -9, 0
QUIET = (lambda event: None), (lambda numbers: None)


# ---- the rate


def test_the_rate_of_a_trunk_is_warm_up_a_constant_and_a_straight_line_to_zero():
    schedule = Trapezoid(num_steps=50, warmup_steps=4, lr=0.5, turn=40)
    assert [schedule.at(step) for step in range(51)] == pytest.approx(
        [0.125 * step for step in range(4)] + [0.5] * 36 + [0.5 * (50 - step) / 10 for step in range(40, 51)]
    )
    assert (schedule.at(39), schedule.at(40), schedule.at(50)) == (0.5, 0.5, 0)
    assert [schedule.progress(step) for step in (0, 39, 40, 45, 50)] == [0, 0, 0, 0.5, 1]


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.05, 0.9), st.floats(0, 20))
def test_up_to_the_turn_the_rate_is_that_of_every_other_length_to_the_last_bit(one, other, cooldown, warmup):
    short, long = (Trapezoid(num, warmup, 0.3, turn(num, cooldown)) for num in sorted((one, other)))
    assert [short.at(step) for step in range(short.turn)] == [long.at(step) for step in range(short.turn)]


@given(st.integers(1, 10**6), st.floats(0.01, 0.99))
def test_a_cool_down_has_a_step_and_no_more_than_its_share_rounded(num_steps, cooldown):
    assert num_steps - turn(num_steps, cooldown) == max(1, round(cooldown * num_steps))


# ---- the stages

TWO = {"epochs": 4, "trunk": [2, 4], "warmup_epochs": 0.5, "steps": None}


def described(root, **pretrain):
    return validate_experiment(tree(root, pretrain={"steps": None} | pretrain))


def stages(root, **pretrain):
    return list(described(root, **pretrain).stages(lambda kind: "data"))


def test_an_experiment_on_a_trunk_is_its_segments_a_cool_down_and_a_fine_tuning(tmp_path):
    found = stages(tmp_path, **TWO)
    assert [stage.kind for stage in found] == ["trunk", "trunk", "cooldown", "finetune", "test"]
    assert [stage.training.epochs for stage in found[:3]] == [2, 4, 4]
    assert [stage.draws for stage in found] == ["pretrain"] * 3 + ["finetune", "test"]
    assert [stage.parent for stage in found] == [None, *(stage.digest() for stage in found[:-1])]
    plans = [planned(stage, [40]) for stage in found[:3]]  # five steps an epoch
    assert [plan.num_steps for plan, _ in plans] == [8, 16, 20]
    begins = [0, 8, 16]
    rates = [
        schedule.at(step)
        for begin, (plan, schedule) in zip(begins, plans, strict=True)
        for step in range(begin, plan.num_steps)
    ]
    top = 0.03 * 8 / 256
    rising, falling = [0, top / 2.5, 2 * top / 2.5], [0.75 * top, 0.5 * top, 0.25 * top]
    assert rates == pytest.approx(rising + [top] * 14 + falling)


def test_a_value_s_stages_do_not_depend_on_those_above_it(tmp_path):
    alone, below = stages(tmp_path, epochs=2, trunk=[2]), stages(tmp_path, epochs=2, trunk=[2, 4, 8])
    above = stages(tmp_path, epochs=8, trunk=[2, 4, 8])
    assert alone == below and above[0] == alone[0]
    assert len({stage.digest() for stage in (*alone, *above)}) == len(alone) + len(above) - 1
    assert described(tmp_path, epochs=2, trunk=[2]).digest() == described(tmp_path, epochs=2, trunk=[2, 4]).digest()


def test_a_pre_training_of_its_own_is_known_as_before_there_were_trunks(tmp_path):
    from premed.config.spec import canonical

    whole, *_ = stages(tmp_path, epochs=4)
    assert "trunk" not in canonical(whole) and "cooldown" not in canonical(whole)
    assert stages(tmp_path, epochs=4, cooldown=0.5)[0].digest() == whole.digest()  # of no account without a trunk
    plan, schedule = planned(whole, [40])
    assert (plan.num_steps, type(schedule)) == (20, Schedule)


MISTAKES = {
    "unsorted": ({"trunk": [4, 2]}, r"^pretrain\.trunk: must be different numbers of epochs in ascending order"),
    "twice": ({"trunk": [4, 4]}, r"^pretrain\.trunk: must be different"),
    "without its own": (
        {"trunk": [2, 8]},
        r"^pretrain\.trunk: \[2, 8\] does not contain .* own epochs, 4",
    ),
    "empty": ({"trunk": []}, r"^pretrain\.trunk: \[\] does not contain"),
    "none at all": ({"trunk": [0, 4]}, r"^pretrain\.trunk\.0: Input should be greater than or equal to 1"),
    "steps": ({"trunk": [4], "steps": 9}, r"^pretrain: steps: a trunk's values are epochs; leave steps out"),
    "warm-up": ({"trunk": [2, 4], "warmup_epochs": 1.7}, r"^pretrain: warmup_epochs: 1\.7 .* make it 1\.6 at the most"),
    "all of it": ({"trunk": [4], "cooldown": 1}, r"^pretrain\.cooldown: Input should be less than 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_field(mistake, tmp_path):
    change, words = MISTAKES[mistake]
    with pytest.raises(UserError, match=words) as caught:
        described(tmp_path, epochs=4, **change)
    assert "\n" not in str(caught.value)


def test_values_too_close_for_a_step_between_their_cool_downs_are_refused(tmp_path):
    _, last, *_ = stages(tmp_path, epochs=3, trunk=[2, 3], cooldown=0.5)
    with pytest.raises(UserError, match=r"^pretrain\.trunk: at 1 steps an epoch no step is left for 3 epochs"):
        planned(last, [8])


# ---- exact continuation


@pytest.fixture(scope="module")
def xrays(shared):
    write = partial(write_chestxray14, num_patients=16, seed=1, size=32, prevalence=0.6)
    return shared("x-rays", lambda folder: write(folder / "xrays")) / "xrays"


def chain(xrays, home, **pretrain):
    """The trunk's segments and the cool-down, as jobs that share `home`."""
    found, before = [], None
    described = validate_experiment(tree(xrays, pretrain={**TWO, **pretrain}))
    for stage in described.stages(lambda kind: "data"):
        found.append(StageJob(stage, before, described.train, str(home / "checkpoints"), xrays.parent / "cache"))
        before = stage
    return [job for job in found if job.stage.kind in ("trunk", "cooldown")]


def run_all(jobs):
    for job in jobs:
        run_stage(job, *QUIET)
        assert job.stage_storage.get_json("failure.json") is None, job.stage_storage.get_json("failure.json")
    return jobs


@pytest.fixture(scope="module")
def undisturbed(xrays, shared):
    return chain(xrays, shared("undisturbed trunk", lambda folder: run_all(chain(xrays, folder))))


def flat(state):
    """Every tensor and number of a checkpoint's state, by its place."""
    if isinstance(state, dict):
        return {f"{name}.{inner}": value for name, part in state.items() for inner, value in flat(part).items()}
    if isinstance(state, (list, tuple)):
        return flat(dict(enumerate(state)))
    return {"": state.tolist() if isinstance(state, torch.Tensor) else state}


def validated(notes):
    """The points of a curve that do not depend on where points are logged."""
    return {point["step"]: point["metrics"] for point in notes["curve"] if "val/loss" in point["metrics"]}


def test_a_trunk_in_two_segments_ends_as_in_one_to_the_last_bit(xrays, undisturbed, tmp_path):
    (one, _) = chain(xrays, tmp_path, trunk=[4])
    run_all([one])
    step, ours, notes, _ = CheckpointManager(one.stage_storage).newest()
    there, theirs, result, _ = CheckpointManager(undisturbed[1].stage_storage).newest()
    assert step == there == one.stage_storage.get_json("result.json")["num_steps"]
    assert flat(ours) == flat(theirs) and len(flat(ours)) > 100
    ours, theirs = validated(notes), validated(result)
    assert all(theirs[at] == ours[at] for at in ours) and ours


def test_a_stage_starts_where_the_one_before_ended_and_its_curve_holds_all(undisturbed):
    curves = [[json.loads(line) for line in job.stage_storage.get("curve.jsonl").splitlines()] for job in undisturbed]
    for before, after in pairwise(curves):
        assert after[: len(before)] == before and len(after) > len(before)
    starts = [0] + [job.stage_storage.get_json("result.json")["num_steps"] for job in undisturbed]
    assert starts == sorted({*starts})
    rates = [point["metrics"]["train/lr"] for point in curves[-1] if "train/lr" in point["metrics"]]
    assert rates[-1] == pytest.approx(0.03 * 8 / 256 / (starts[3] - starts[2]))


def test_a_finished_segment_keeps_the_state_it_ended_with_and_no_more(undisturbed):
    first, second, cooled = (job.stage_storage for job in undisturbed)
    for storage in (first, second):
        end = storage.get_json("result.json")["num_steps"]
        kept = {"curve.jsonl", "result.json", f"checkpoints/{end:09d}.json", f"checkpoints/{end:09d}.pt"}
        assert {name for name in storage.names() if not name.startswith("snapshots/")} == kept
    names = cooled.names()
    assert {"parts/encoder.safetensors", "parts/card.json", "scores.json", "pictures/progress.png"} <= {*names}
    assert not [name for name in names if name.startswith(("checkpoints/", "best/", "snapshots/"))]
    assert cooled.get_json("result.json")["gate"] and "gate" not in second.get_json("result.json")


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param({0: "row 4", 1: "row 10", 2: "before result.json"}, marks=pytest.mark.slow),
        {0: "before result.json", 1: "during checkpoints/000000016.pt", 2: "row 17"},
    ],
)
def test_a_chain_that_is_killed_in_every_stage_ends_as_if_nothing_had_been(kills, xrays, tmp_path, undisturbed):
    jobs = chain(xrays, tmp_path)
    ends = [job.stage_storage.get_json("result.json")["num_steps"] for job in undisturbed]
    for number, job in enumerate(jobs):
        kill = kills[number].replace("000000016", f"{ends[1]:09d}")
        kill = kill.replace("row 10", f"row {ends[0] + 2}").replace("row 17", f"row {ends[1] + 1}")
        assert run(job, kill=kill) == [KILLED]
        assert run(job) == [FINE]
    assert outcome(jobs[-1]) == outcome(undisturbed[-1])


@pytest.mark.slow
def test_the_number_of_workers_changes_rounding_only(xrays, tmp_path, undisturbed):
    jobs = chain(xrays, tmp_path)
    assert [run(job, 2) for job in jobs] == [[FINE] * 2] * 3
    ours, theirs = outcome(jobs[-1])["curve"], outcome(undisturbed[-1])["curve"]
    assert [(step, pytest.approx(numbers, rel=1e-4)) for step, numbers in ours] == theirs


def test_a_state_that_is_damaged_is_refused_in_one_line(xrays, undisturbed, tmp_path):
    shutil.copytree(undisturbed[0].storage, tmp_path / "checkpoints")
    jobs = chain(xrays, tmp_path)
    (step,) = CheckpointManager(jobs[1].stage_storage).steps()
    jobs[1].stage_storage.put(f"checkpoints/{step:09d}.pt", b"short")
    shutil.rmtree(jobs[2].stage_storage.where)
    run_stage(jobs[2], *QUIET)
    message = jobs[2].stage_storage.get_json("failure.json")["message"]
    assert message.startswith(f"{jobs[1].stage_storage.where}: its final state is missing or damaged; remove")


# ---- what is trained once, and what is reported

SHORT = {"validations": 1, "epochs": 1}


def on_trunk(chest, epochs, trunk, *changes):
    return tiny(chest, {"pretrain": {"epochs": epochs, "trunk": trunk}, "finetune": SHORT, "test": False}, *changes)


def trained(events):
    """The kinds of stages that were trained."""
    kinds = [event.kind for event in events if isinstance(event, StageStarted)]
    assert len(kinds) == len([event for event in events if isinstance(event, TrainingStarted)])
    return kinds


@pytest.fixture(scope="module")
def grown(chest, home_after):
    """A home where 2 and 4 epochs were run on one trunk, by one command; the outcomes, and the events."""

    def work():
        events = []
        return runner.run_all([on_trunk(chest, epochs, [2, 4]) for epochs in (2, 4)], events.append), events

    home, (found, events) = home_after("trunk", work)
    assert not [each["failure"] for each in found if "failure" in each]
    return home, found, events


@pytest.fixture
def home(grown, tmp_path, monkeypatch):
    """A copy of it, in use."""
    shutil.copytree(grown[0], tmp_path / "home")
    settle_in(monkeypatch, tmp_path / "home")
    return tmp_path / "home"


def test_two_values_of_one_trunk_train_its_first_segment_once(grown):
    home, (two, four), result = grown
    assert trained(result) == ["trunk", "cooldown", "finetune", "trunk", "cooldown", "finetune"]
    assert [stage["kind"] for stage in four["stages"]] == ["trunk", "trunk", "cooldown", "finetune"]
    assert two["stages"][0]["run_id"] == four["stages"][0]["run_id"] and four["stages"][0]["reused"]
    steps = [event.num_steps - event.start for event in result if isinstance(event, TrainingStarted)]
    whole = four["stages"][2]["num_steps"]
    assert sum(steps) - steps[2] - steps[5] == whole + steps[1]  # 0.8 of it and two cool-downs


def test_the_experiment_stands_on_its_cool_down_and_names_the_segments_before_it(grown):
    home, (_, four), _ = grown
    run, stages = store_of(home).get(four["run_id"]), four["stages"]
    named = {name: value for name, value in run.tags.items() if name.endswith("_run")}
    ids = [stage["run_id"] for stage in stages]
    assert named == dict(zip(("trunk_2_run", "trunk_4_run", "pretrain_run", "finetune_run"), ids, strict=True))
    assert store_of(home).get(ids[-1]).tags["pretrain_run"] == ids[2]
    assert run.metrics["pretrain_seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages[:3]))
    assert run.tags["pretrain_seed"] == "0"
    names = {run.name for kind in ("trunk", "cooldown") for run in runs_of(home, kind)}
    assert names == {f"mae {what} {epochs} epochs seed 0" for what in ("trunk", "cool-down") for epochs in (2, 4)}


def test_a_cool_down_s_run_shows_the_whole_curve(grown):
    home, (_, four), _ = grown
    steps = [step for step, _ in curve(home, four["stages"][2]["run_id"])["train/loss"]]
    assert steps == sorted({*steps}) and steps[0] <= 2 and steps[-1] == four["stages"][2]["num_steps"]


def test_the_cost_of_a_pre_training_is_all_that_it_took_to_get_there(grown, home):
    task = compare(store_of(home)).tasks[0]
    arms = {arm.label: arm for arm in task.blocks[0].rows}
    assert [*arms] == ["mae epochs=2", "mae epochs=4"]
    for arm, (_, outcomes) in zip(arms.values(), zip((2, 4), grown[1], strict=True), strict=True):
        before = [stage["seconds"] for stage in outcomes["stages"] if stage["kind"] != "finetune"]
        assert (arm.cost.pretrain.runs, arm.cost.pretrain.seconds) == (1, pytest.approx(sum(before)))
    assert "shared by several rows and included in the cost of each: 1 trunk segment" in task.notes
    (run,) = arms["mae epochs=4"].runs
    assert artifacts.pretraining_stages(run) == [grown[1][1]["stages"][2]["run_id"]]


def test_a_cool_down_s_encoder_is_there_for_others_and_a_segment_s_is_refused(grown, home):
    segment, _, cooled, _ = grown[1][1]["stages"]
    with open_trained(cooled["run_id"]) as found:
        assert found.card["kind"] == "cooldown" and found.weights("encoder")
    with (
        pytest.raises(UserError, match="is a segment of a trunk, which has no encoder"),
        open_trained(segment["run_id"]),
    ):
        pass


def test_what_was_cleaned_away_comes_back_from_mlflow_without_training(home, chest, grown):
    shutil.rmtree(home / "checkpoints")
    messages = []
    again = runner.run(on_trunk(chest, 4, [2, 4]), messages.append)
    assert trained(messages) == [] and [stage["reused"] for stage in again["stages"]] == [True] * 4
    assert results(again) == results(grown[1][1])


@pytest.mark.slow
def test_a_segment_whose_state_is_gone_is_trained_again_when_a_stage_needs_it(home, chest, grown):
    shutil.rmtree(home / "checkpoints")
    events = []
    found = runner.run(on_trunk(chest, 5, [2, 4, 5]), events.append)
    assert trained(events) == ["trunk", "trunk", "trunk", "cooldown", "finetune"]
    messages = [event.text for event in events if isinstance(event, WarningIssued)]
    assert len(messages) == 2 and all(
        text.endswith("has no checkpoint any more; training it again") for text in messages
    )
    assert [stage["digest"] for stage in found["stages"][:2]] == [s["digest"] for s in grown[1][1]["stages"][:2]]
    assert runner.run(on_trunk(chest, 5, [2, 4, 5]), lambda event: None)["stages"][2]["reused"]


def test_a_trunk_that_fails_names_its_stage_and_costs_no_other_experiment(home, chest):
    broken = on_trunk(chest, 2, [2], {"pretrain": {"lr": 1e30}})
    found = runner.run_all([broken, on_trunk(chest, 2, [2, 4])], lambda event: None)
    assert found[0]["failure"].startswith("trunk: the ") and "failure" not in found[1]


def test_values_too_close_are_refused_before_anything_is_trained(home, chest):
    messages = []
    with pytest.raises(UserError, match=r"^pretrain\.trunk: .* leave 3 out"):
        close = {"batch": 64, "cooldown": 0.5}
        runner.run(on_trunk(chest, 5, [2, 3, 5], {"pretrain": close}), messages.append)
    assert trained(messages) == []


def test_every_kind_of_stage_has_its_words_and_its_place_in_the_line():
    kinds = {*get_args(settings.Kind)}
    assert kinds == {*progress.DOING} == {*recorder.DOING} == {*scheduler.ORDER} | {"import"}
