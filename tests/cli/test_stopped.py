"""A command that is stopped: its last line is true, and the same command ends as if it had not been stopped."""

import os
import re
import signal

import psutil
import pytest
import yaml
from support.experiments import SCRATCH, curve, forked, results, run, runs_of, store_of, tree, until

from premed.config.settings import Kind
from premed.events import TrainingResumed
from premed.execution.session import NAMED, Session, StoppedStage
from premed.tracking.run_store import LEASES
from premed.training.storage import StageStorage

pytest_plugins = ["support.experiment_fixtures"]

CHANGES = (
    SCRATCH,
    {"test": False, "finetune": {"epochs": 90, "validations": 90}, "train": {"save_minutes": 5, "log_steps": 7}},
)


def weights(outcome):
    folder = StageStorage(*outcome["stages"][0]["where"].rsplit("/", 1))
    return {name: folder.get(name) for name in folder.names() if name.endswith(".safetensors")}


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine takes minutes to start Ray
@pytest.mark.parametrize(
    ("number", "train"),
    [
        (signal.SIGINT, {"loaders": 1}),
        (signal.SIGTERM, {"workers": 0}),
        pytest.param(signal.SIGTERM, {"workers": 1}, marks=pytest.mark.cluster),
    ],
)
def test_a_training_saves_a_checkpoint_first_and_the_same_command_ends_as_if_it_had_not_been_stopped(
    home, home_after, chest, tmp_path, number, train
):
    """`save_minutes` is 5: without the checkpoint that it saves when stopped, it would start over."""
    there, undisturbed = home_after("never stopped", lambda: run(chest, *CHANGES))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree(chest, *CHANGES, {"train": train})))
    process, output = forked(home, "run", tmp_path / "tiny.yaml")
    until(output, "step 16: validation")
    for each in psutil.Process(process.pid).children():
        if "loaders" in train:  # a terminal sends it to loader processes, too
            each.send_signal(number)
    os.kill(process.pid, number)
    rest = output.read().splitlines()
    process.join()
    assert process.exitcode == 130 and "Traceback" not in str(rest)
    line = "premed: stopped at step (\\d+) of the fine-tuning; run the same command again to go on from there"
    stopped = re.fullmatch(line, rest[-1])
    assert stopped and f"step {stopped[1]}: checkpoint saved" in rest, rest
    (begun,) = runs_of(home, "finetune")
    assert begun.status == "KILLED" and not list(store_of(home).search({}, experiment=LEASES))

    events = []
    again = run(chest, *CHANGES, show=events.append)
    assert [event.step for event in events if isinstance(event, TrainingResumed)] == [int(stopped[1])]
    assert again["stages"][0]["run_id"] == begun.run_id and results(again) == results(undisturbed)
    assert weights(again) == weights(undisturbed)
    assert curve(home, begun.run_id) == curve(there, undisturbed["stages"][0]["run_id"])


# ---- the last line


@pytest.fixture
def session():
    return Session(None, None, map, lambda event: None)


def stopped_words(session, *stages):
    session.stopped_stages = [StoppedStage(*stage) for stage in stages]
    return session.stopped_words()


AGAIN = "run the same command again to"


@pytest.mark.parametrize(
    ("kind", "step", "finished", "expected"),
    [
        ("pretrain", 12, False, f"stopped at step 12 of the pre-training; {AGAIN} go on from there"),
        ("finetune", None, False, f"stopped in the fine-tuning, before its first checkpoint; {AGAIN} start it over"),
        ("test", None, False, f"stopped in the test; {AGAIN} start it over"),
        ("finetune", None, True, f"stopped after the fine-tuning; {AGAIN} go on from there"),
    ],
)
def test_of_one_stage_the_line_says_where_it_goes_on(session, kind: Kind, step, finished, expected):
    assert stopped_words(session, ("", kind, step, finished)) == expected


def test_of_several_the_line_names_those_that_came_farthest(session):
    assert stopped_words(session) == f"stopped; {AGAIN} go on"
    two = ("trial 0", "finetune", 3, False), ("trial 1", "pretrain", None, False)
    expected = (
        f"trial 0 at step 3 of the fine-tuning; trial 1 in the pre-training, before its first checkpoint; {AGAIN}"
    )
    assert stopped_words(session, *reversed(two)) == f"stopped: {expected} go on from there"
    many = [(f"trial {number}", "finetune", number + 1, False) for number in range(9)]
    line = stopped_words(session, *many)
    assert line.count("trial") == NAMED and "trial 8 at step 9" in line and f"; and {9 - NAMED} more; " in line


def test_where_a_stage_goes_on_is_read_from_its_storage(session, tmp_path):
    storage = StageStorage(str(tmp_path), "finetune-0")
    session.note_stop("", "finetune", storage)
    storage.put_json("checkpoints/000000007.json", {})
    session.note_stop("", "finetune", storage)
    storage.put_json("result.json", {})
    session.note_stop("", "finetune", storage)
    assert [(stage.step, stage.finished) for stage in session.stopped_stages] == [(None, False), (7, False), (7, True)]
