"""What a person sees of a sweep while it goes."""

import io

import pytest
from rich.console import Console

from premed.cli.live_table import LiveTable
from premed.events import (
    MetricsLogged,
    RayStarting,
    StageStarted,
    SweepStarted,
    TrialEnded,
    TrialStarted,
    WaitingForStage,
    WarningIssued,
)

FIRST = {"experiment": "trial 1", "kind": "finetune"}
EVENTS = [
    RayStarting(),
    SweepStarted(total=4, left=3, modes=["max"]),
    TrialStarted(1, "mask_ratio=0.5 epochs=20"),
    TrialStarted(2, "mask_ratio=[0.75]"),
    WaitingForStage("pretrain", "experiment", experiment="trial 2"),
    StageStarted("finetune", "/there", experiment="trial 1"),
    MetricsLogged(40, 60, 0, {"train/loss": 0.5}, **FIRST),
    MetricsLogged(40, 60, 0, {"val/dice": 0.512, "val/hd95": 3.0}, **FIRST),
    WarningIssued("the disk is nearly full", experiment="trial 1"),
]


def ended(state, values, failure=""):
    return TrialEnded(1, "mask_ratio=0.5 epochs=20", state, ["val/dice"], values, failure)


def shown(*more, terminal, width=100):
    output = io.StringIO()
    with LiveTable(Console(file=output, force_terminal=terminal, width=width, color_system=None)) as show:
        for event in [*EVENTS, *more]:
            show(event)
        table = Console(file=io.StringIO(), width=width, record=True)
        table.print(show.table())
    return output.getvalue(), table.export_text()


def test_on_a_terminal_a_table_has_each_trial_s_settings_stage_and_score():
    output, table = shown(terminal=True)
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[0] == "1/4 trials" and lines[1] == "trial settings at score"
    assert lines[2:] == [
        "1 mask_ratio=0.5 epochs=20 fine-tuning 40/60 Dice 0.512",
        "2 mask_ratio=[0.75] waits for pre-training",
    ]
    assert "WARNING: the disk is nearly full" in output and "validation" not in output  # which is in the table


def test_ended_trials_stand_below_the_best_first_with_how_long_the_rest_will_take():
    output, table = shown(ended("done", [0.7]), terminal=True)
    assert table.index("waits for") < table.index("Dice 0.7")
    assert "trial 1 (mask_ratio=0.5 epochs=20): Dice 0.7 (2/4 trials, about" in output.replace("\n", " ")


@pytest.mark.parametrize(
    ("state", "failure", "words"),
    [
        ("stopped", "", "stopped, behind the others"),
        ("failed", "the loss is not finite at step 3", "FAILED: the loss is not finite at step 3"),
    ],
)
def test_a_trial_that_ended_without_a_score_prints_why(state, failure, words):
    assert words in shown(ended(state, None, failure), terminal=False)[0]


def test_a_job_s_log_has_plain_lines_each_naming_its_trial():
    lines = shown(terminal=False)[0].splitlines()
    assert lines == [
        "starting Ray",
        "4 trials, 1 of them ended before",
        "trial 1: mask_ratio=0.5 epochs=20",
        "trial 2: mask_ratio=[0.75]",
        "[trial 2] pre-training: another experiment of this command runs this stage; waiting for its result",
        "[trial 1] fine-tuning: /there",
        "[trial 1] fine-tuning: 40/60 loss 0.5000",
        "[trial 1] step 40: validation Dice 0.512, HD95 3.000",
        "[trial 1] WARNING: the disk is nearly full",
    ]
