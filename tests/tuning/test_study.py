"""A sweep's history: what is tried next, and that a sweep goes on from wherever it was stopped."""

import math
import os
import sqlite3
import subprocess
from contextlib import suppress
from functools import partial
from itertools import count
from types import SimpleNamespace

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError, OperationalError
from support.suite import examples

from premed.errors import StageFailed, UserError
from premed.rng import key
from premed.tuning import study_database
from premed.tuning.schedulers import TIME, VALUE, make_scheduler, rungs
from premed.tuning.study import Study
from premed.tuning.sweep_file import load_sweep

STEPS = {"epochs": 2, "batch": 4, "lr": 1e-3}
BASE = {
    "task": "msd",
    "encoder": {"name": "vit", "patch": 8},
    "pretext": "none",
    "finetune": {**STEPS, "head": "unetr"},
}
SPACE = {
    "finetune.lr": {"loguniform": [1e-3, 1.0]},
    "finetune.epochs": {"int": [1, 9]},
    "finetune.augment": [{"flip": 0.5}, {}],
}
GRID = {"space": {"finetune.lr": [0.1, 0.2, 0.3], "finetune.augment": [{"flip": 0.5}, {}]}}
OPTUNA = {"space": SPACE, "search": "optuna", "trials": 14, "concurrency": 1}


def study(folder, *changes, directions=("maximize",), data="data", must_exist=False, name="a"):
    tree = {"base": "base.yaml"}
    for change in changes:
        tree |= change
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    opened = Study(load_sweep(folder / "sweep.yaml"), name, f"sqlite:///{folder / 'sweeps.db'}", directions, must_exist)
    if not must_exist:
        opened.start(data)
    return opened


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder, and names that no study in it has yet: making a database takes a second."""
    folder, numbers = tmp_path_factory.mktemp("studies"), count()
    return folder, lambda: f"study {next(numbers)}"


def score(setting):
    return -abs(math.log10(setting["finetune.lr"]) + 1.5) + 0.1 * ("flip" in setting["finetune.augment"])


def go_on(study, trials=99):
    """So many trials more, one after the other."""
    for _ in range(trials):
        if (record := study.ask()) is None:
            return
        study.tell(record.number, "done", [score(record.setting)], {})


def table(study):
    return [(record.number, record.setting, record.state, record.values) for record in study.trials()]


def test_a_grid_is_tried_once_each_in_order(tmp_path):
    ours = study(tmp_path, GRID)
    go_on(ours)
    tried = [(record.setting["finetune.lr"], record.setting["finetune.augment"]) for record in ours.trials()]
    assert tried == [(lr, augment) for lr in (0.1, 0.2, 0.3) for augment in ({"flip": 0.5}, {})]
    assert {record.state for record in ours.trials()} == {"done"} and ours.ask() is None


@pytest.mark.parametrize(
    "after", [pytest.param(0, marks=pytest.mark.slow), 3, pytest.param(11, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("asked", [GRID, OPTUNA, OPTUNA | {"search": "random"}])
def test_stopped_in_the_middle_of_any_trial_it_ends_as_if_it_had_not_been(shared, asked, after):
    folder, name = shared[0], shared[1]()
    undisturbed = study(folder, asked, name=shared[1]())
    go_on(undisturbed)
    ours = study(folder, asked, name=name)
    go_on(ours, after)
    unfinished = ours.ask()  # and then it is killed
    again = study(folder, asked, name=name)
    if unfinished:
        first = again.ask()
        assert (first.number, first.setting) == (unfinished.number, unfinished.setting)
        again.tell(first.number, "done", [score(first.setting)], {})
    go_on(again)
    assert table(again) == table(undisturbed)


def test_optuna_looks_where_earlier_trials_were_best(tmp_path):
    ours = study(tmp_path, OPTUNA | {"trials": 30})
    go_on(ours)
    off = [abs(math.log10(record.setting["finetune.lr"]) + 1.5) for record in ours.trials()]
    assert sum(off[20:]) / 10 < sum(off[:10]) / 10
    shares = ours.importances()
    assert max(shares, key=shares.get) == "finetune.lr" and sum(shares.values()) == pytest.approx(1)


def test_of_several_metrics_the_first_one_s_importances_are_those_that_it_has_alone(tmp_path):
    """`mode: max` means that larger is better there, too: what counts is what makes trials good."""
    alone = study(tmp_path, OPTUNA | {"search": "random", "trials": 30}, name="alone")
    asked = OPTUNA | {"search": "random", "trials": 30, "metric": ["val/dice", "seconds"], "mode": ["max", "min"]}
    both = study(tmp_path, asked, directions=("maximize", "minimize"), name="both")
    for trial in iter(alone.ask, None):
        alone.tell(trial.number, "done", [score(trial.setting)], {})
    for trial in iter(both.ask, None):
        both.tell(trial.number, "done", [score(trial.setting), 1.0], {})
    assert both.importances() == pytest.approx(alone.importances())


def test_validations_are_kept_and_a_trial_that_ended_early_has_no_value(tmp_path):
    asked = GRID | {"scheduler": "asha"}
    ours = study(tmp_path, asked)
    first, second, third = (ours.ask().number for _ in range(3))
    ours.report_intermediate(first, 1, 0.3)
    ours.report_intermediate(first, 2, 0.4)
    assert ours.tell(first, "stopped", None, {"stages": [{"seconds": 3.0}]})
    assert ours.tell(second, "failed", None, {"failure": "the loss is not finite"})
    assert ours.tell(third, "done", [0.2], {}) and not ours.tell(third, "stopped", None, {})
    ours.report_intermediate(third, 9, 1.0)  # too late
    stopped, failed, done, *rest = study(tmp_path, asked).trials()
    assert (stopped.state, stopped.values, stopped.curve) == ("stopped", None, {1: 0.3, 2: 0.4})
    assert stopped.notes == {"stages": [{"seconds": 3.0}]}
    assert (failed.state, failed.notes["failure"]) == ("failed", "the loss is not finite")
    assert (done.state, done.values, done.curve) == ("done", (0.2,), {}) and ours.front() == [third]
    assert {record.state for record in rest} == {"waiting"} and ours.importances() is None


def test_of_several_metrics_the_front_is_what_no_other_beats_in_all(tmp_path):
    ours = study(tmp_path, GRID | {"metric": ["val/dice", "seconds"]}, directions=("maximize", "minimize"))
    for values in ([0.5, 10.0], [0.6, 20.0], [0.4, 15.0], [0.6, 20.0], [0.6, 21.0]):
        ours.tell(ours.ask().number, "done", values, {})
    ours.tell(ours.ask().number, "stopped", None, {})
    assert ours.front() == [0, 1, 3]


def test_sampler_and_importances_are_those_of_this_optuna_s_defaults_and_its_version_is_kept(tmp_path, monkeypatch):
    """They are named, so that another version's defaults change neither draws nor importances without a word."""
    opened = study(tmp_path, OPTUNA)
    go_on(opened)
    assert opened.note("optuna") == [optuna.__version__]
    assert opened.importances() == optuna.importance.get_param_importances(opened.study)
    sampler = lambda self, n: optuna.samplers.TPESampler(seed=key(0, "sweep", n) % 2**32, constant_liar=False)  # noqa: E731
    monkeypatch.setattr(Study, "sampler", sampler)
    by_default = study(tmp_path, OPTUNA, name="b")
    go_on(by_default)
    assert table(by_default) == table(opened)


def test_a_study_is_of_the_data_that_it_began_with(tmp_path):
    study(tmp_path, GRID)
    with pytest.raises(UserError, match="the data have changed since this sweep started; set another name"):
        study(tmp_path, GRID, data="others")


def test_a_report_of_what_never_began_and_a_database_that_is_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="was never started"):
        study(tmp_path, GRID, must_exist=True)
    (tmp_path / "sweeps.db").write_text("no database")
    with pytest.raises(UserError, match=r"sweeps.db is damaged \(.*\): move it away, .* uses every finished stage"):
        study(tmp_path, GRID)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_database_that_is_damaged_anywhere_is_one_line(tmp_path, share):
    go_on(study(tmp_path, GRID))
    whole = bytearray((tmp_path / "sweeps.db").read_bytes())
    torn, zeros = whole[: int(len(whole) * share)], whole.copy()
    zeros[int(len(whole) * share) :] = bytes(len(whole) - int(len(whole) * share))
    for content in (torn, zeros):
        (tmp_path / "sweeps.db").write_bytes(content)
        with pytest.raises(UserError, match=r"sweeps.db is damaged \(.*\): move it away"):
            study(tmp_path, GRID)


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("CREATE TABLE studies", None, sqlite3.OperationalError("table studies already exists")),
        IntegrityError("INSERT", None, sqlite3.IntegrityError("UNIQUE constraint failed: alembic_version.version_num")),
    ],
)
def test_a_database_that_another_command_makes_at_the_same_time_is_waited_for(tmp_path, monkeypatch, error):
    """Of two first sweeps of a home that start at once, one was told to name another database."""
    failures, waited, opened = [error] * 2, [], optuna.storages.RDBStorage.__init__

    def meanwhile(self, *arguments, **more):
        if failures:
            raise failures.pop()
        opened(self, *arguments, **more)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", meanwhile)
    monkeypatch.setattr(study_database.time, "sleep", waited.append)
    go_on(study(tmp_path, GRID))
    assert len(waited) == 2


def test_a_full_disk_is_one_line_and_the_same_trial_goes_on_once_there_is_room(tmp_path):
    """Optuna's own words are of invalid data, "e.g. exceeding max length"."""
    (disk := tmp_path / "disk").mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk]).returncode:
        pytest.skip("to mount a disk is root's, who is not allowed it everywhere")
    try:
        ours = study(disk, GRID)
        number = ours.ask().number
        with suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        calls = [
            *(ours.ask, partial(ours.report_intermediate, number, 1, 0.5), partial(ours.set_note, "name", "x" * 5000)),
            *(partial(ours.tell, number, "done", [0.5], {}), partial(study, disk, GRID, name="b")),
        ]
        for call in calls:
            with pytest.raises((StageFailed, UserError), match=r"sweeps.db .*database or disk is full"):
                call()
        (disk / "other").unlink()
        again = study(disk, GRID)
        assert again.ask().number == number and again.tell(number, "done", [0.5], {})
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


CLOSED = (
    "ValueError: the spool is closed",
    "ValueError: the outbox is closed",
    "RaySystemError: Ray has not been started",
)


@pytest.mark.parametrize("asked", [GRID, OPTUNA | {"search": "random", "trials": 6}])
def test_trials_that_ended_because_the_command_was_stopped_are_tried_again_as_the_same(shared, asked):
    """As earlier versions recorded them: failed, or stopped though there is no scheduler."""
    folder, name = shared[0], shared[1]()
    undisturbed = study(folder, asked, name=shared[1]())
    go_on(undisturbed)
    ours = study(folder, asked, name=name)
    for failure in CLOSED:
        record = ours.ask()
        ours.report_intermediate(record.number, 1, 0.25)
        ours.tell(record.number, "failed", None, {"failure": failure, "run_id": "r"})
    ours.tell(ours.ask().number, "stopped", None, {})
    failed = ours.ask()
    ours.tell(failed.number, "failed", None, {"failure": "finetune: the loss is not finite"})
    again = study(folder, asked, name=name)
    assert [record.state for record in again.trials()][:5] == ["running"] * 4 + ["failed"]
    assert again.trials()[0].notes == {"run_id": "r"} and again.trials()[0].curve == {1: 0.25}
    go_on(again)
    assert again.trials()[4].notes["failure"] == "finetune: the loss is not finite"
    assert [row for row in table(again) if row[0] != 4] == [row for row in table(undisturbed) if row[0] != 4]
    assert table(study(folder, asked, name=name)) == table(again)


def test_a_failed_trial_is_tried_again_by_a_start_with_more_retries(shared):
    folder, name = shared[0], shared[1]()
    ours = study(folder, GRID, name=name)
    first = ours.ask()
    ours.tell(first.number, "failed", None, {"failure": "finetune: No space left on device", "tries": 1})
    go_on(ours)
    assert study(folder, GRID, name=name).ask() is None
    again = study(folder, GRID | {"retries": 2}, name=name)
    asked = again.ask()
    assert (asked.number, asked.setting, asked.notes) == (first.number, first.setting, {"tries": 1})
    again.tell(asked.number, "failed", None, {"failure": "no", "tries": 2})
    assert again.trials()[0].notes["tries"] == 3
    assert study(folder, GRID | {"retries": 2}, name=name).ask() is None


def test_trials_that_a_scheduler_stopped_stay_so(shared):
    asked = {"space": SPACE, "search": "random", "trials": 3, "scheduler": "asha"}, shared[1]()
    ours = study(shared[0], asked[0], name=asked[1])
    ours.tell(ours.ask().number, "stopped", None, {})
    again = study(shared[0], asked[0], name=asked[1])
    assert [record.state for record in again.trials()] == ["stopped"] and again.ask().number == 1


# ---- what stops trials


@pytest.mark.parametrize(("grace", "reduction", "total"), [(1, 2, 16), (1, 3, 20), (2, 4, 20), (3, 2.5, 20), (5, 3, 4)])
def test_rungs_are_those_of_ray_s_asha(tmp_path, grace, reduction, total):
    sweep = study(
        tmp_path,
        {"space": SPACE, "search": "random", "trials": 1},
        {"scheduler": {"name": "asha", "grace": grace, "reduction": reduction}},
    ).sweep
    asha = make_scheduler(sweep.search.scheduler, "max", total, [])
    milestones = [milestone for milestone, _ in asha._brackets[0]._rungs]
    assert rungs(sweep.search.scheduler, total) == {math.ceil(each) for each in milestones if each < total}


@pytest.mark.slow
@settings(max_examples=examples(10))
@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=8), min_size=2, max_size=5))
def test_a_scheduler_made_from_earlier_trials_decides_as_one_that_ran_them(shared, curves):
    """Each curve is a trial that ended by itself or was stopped; the last one is judged."""
    scheduler = {"scheduler": {"name": "asha", "grace": 1, "reduction": 2}}
    ours = study(shared[0], {"space": SPACE, "search": "random", "trials": 99}, scheduler, name=shared[1]())
    asha, at = ours.sweep.search.scheduler, rungs(ours.sweep.search.scheduler, 8)
    witness = make_scheduler(asha, "max", 8, [])
    *before, last = curves
    for curve in before:
        record = ours.ask()
        trial = SimpleNamespace(trial_id=str(record.number))
        witness.on_trial_add(None, trial)
        for number, value in enumerate(curve, start=1):
            ours.report_intermediate(record.number, number, value)
            if number in at:
                witness.on_trial_result(None, trial, {TIME: number, VALUE: value})
        ours.tell(record.number, "stopped", None, {})
    resumed = make_scheduler(asha, "max", 8, ours.trials())
    trial = SimpleNamespace(trial_id="last")
    for judge in (witness, resumed):
        judge.on_trial_add(None, trial)
    for number, value in enumerate(last, start=1):
        result = {TIME: number, VALUE: value}
        assert witness.on_trial_result(None, trial, result) == resumed.on_trial_result(None, trial, result)
