"""What a person sees: on a terminal and elsewhere."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
from rich.console import Console

from premed.cli import progress
from premed.cli.messages import gate_words
from premed.cli.progress import ProgressPrinter
from premed.config.settings import GATE_SHARE
from premed.events import (
    CheckpointSaved,
    CollapseDetected,
    DataLoadingBottleneck,
    EvaluationStarted,
    Event,
    ExperimentEnded,
    ExperimentsStarted,
    GateNotPassed,
    ImagesPrepared,
    MetricsLogged,
    ModelRegistrationStarted,
    RayStarting,
    StageStarted,
    TrainingEndedEarly,
    TrainingStarted,
    WeightsImported,
)
from premed.training.evaluate import passed_gate


def shown(events, terminal=False):
    """What comes of events: (all that was written, the lines that stay)."""
    output = io.StringIO()
    with ProgressPrinter(console=Console(file=output, force_terminal=terminal, width=100, highlight=False)) as show:
        for event in events:
            show(event)
    return output.getvalue()


def training(step, **metrics):
    return point(step, {f"train/{name}": value for name, value in metrics.items()})


def point(step, metrics):
    return MetricsLogged(step, num_steps=40, time=0, metrics=metrics)


def prepared(*done, total=3):
    return [ImagesPrepared(each, total) for each in done]


def test_an_import_prints_one_line():
    stage = StageStarted("import", "/x")
    report = {"file": "vit.bin", "kept": 70, "changed": {"pos_embed": "14x14 to 4x4"}, "dropped": ["head.bias"]}
    assert shown([stage, WeightsImported(**report)]).splitlines() == [
        "importing weights: /x",
        "vit.bin: 70 tensors unchanged; pos_embed: 14x14 to 4x4; left out: head.bias",
    ]


def test_a_stage_prints_plain_lines_where_there_is_no_terminal():
    events = [
        StageStarted("finetune", "/x"),
        TrainingStarted(start=20, num_images=62, num_val=8, num_steps=40),
        training(22, loss=0.5),
        training(24, loss=0.4),
        point(24, {"val/mauc": 0.7}),
        CheckpointSaved(24),
        training(40, loss=0.3),
    ]
    assert shown(events).splitlines() == [
        "fine-tuning: /x",
        "fine-tuning on 62 images, 40 steps, resumed after step 20",
        "fine-tuning: 22/40 loss 0.5000",
        "step 24: validation mean AUC 0.700",
        "step 24: checkpoint saved",
        "fine-tuning: 40/40 loss 0.3000",
    ]


def test_the_first_line_of_a_fine_tuning_says_how_many_parameters_are_trained():
    trained = {"trained": "14 of 2,000 parameters trained"}
    event = TrainingStarted(0, num_images=62, num_val=8, num_steps=40, batch=8, lr=1e-3, **trained)
    line = "fine-tuning on 62 images, 40 steps of 8, learning rate 0.001, 14 of 2,000 parameters trained"
    assert shown([StageStarted("finetune", "/x"), event]).splitlines()[1] == line


def test_the_first_line_of_a_training_says_how_long_its_warm_up_is():
    event = TrainingStarted(0, num_images=62, num_val=8, num_steps=40, batch=8, lr=1e-3, warmup=4.0)
    line = "pre-training on 62 images, 40 steps of 8, learning rate 0.001 after 4 of warm-up"
    assert shown([StageStarted("pretrain", "/x"), event]).splitlines()[1] == line


def test_a_line_comes_now_and_then_as_time_goes_by(monkeypatch):
    clock = iter(range(0, 1000, 4))  # seconds; a step takes 4 or more
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    events = [training(step, loss=0.5) for step in range(1, 12)]
    lines = shown([StageStarted("test", "/x"), *events]).splitlines()[1:]
    assert 2 < len(lines) < 8 and lines[0].startswith("testing: 1/40")


def test_a_terminal_has_a_bar_that_goes_away():
    stage = StageStarted("pretrain", "/x")
    output = shown([stage, training(20, loss=0.5), CheckpointSaved(20)], terminal=True)
    assert "━" in output and "20/40" in output and "loss 0.5000" in output
    assert "\x1b[?25h" in output  # the cursor is back


SILENT = [
    (RayStarting(), "starting Ray"),
    (StageStarted("finetune", "/x"), "fine-tuning"),
    (EvaluationStarted(9), "testing"),
    (ModelRegistrationStarted("chest"), "registering"),
]


@pytest.mark.parametrize(("event", "doing"), SILENT)
def test_on_a_terminal_a_bar_moves_where_nobody_knows_how_long_it_takes(event, doing):
    with ProgressPrinter(console=Console(file=io.StringIO(), force_terminal=True)) as show:
        show(event)
        assert show.display is not None
        (bar,) = show.display.tasks
        assert (bar.description, bar.total) == (doing, None)
        show(ImagesPrepared(1, 3))
        (bar,) = show.display.tasks
        assert (bar.description, bar.total) == ("preparing images", 3)


def test_elsewhere_the_first_line_of_a_stage_comes_at_once():
    lines = shown([StageStarted("finetune", "/x"), training(1, loss=0.5)]).splitlines()
    assert lines == ["fine-tuning: /x", "fine-tuning: 1/40 loss 0.5000"]


def test_a_bar_ends_even_where_the_work_was_cut_short():
    output = io.StringIO()
    with pytest.raises(KeyboardInterrupt), ProgressPrinter(console=Console(file=output, force_terminal=True)) as show:
        show(prepared(1)[0])
        raise KeyboardInterrupt
    assert show.display is None and "\x1b[?25h" in output.getvalue()


def test_images_that_were_prepared_before_print_nothing():
    assert shown(prepared(3) + prepared(3)) == ""
    assert shown(prepared(1, 2, 3) + prepared(3)).splitlines() == ["preparing images: 1/3", "preparing images: 3/3"]


def test_an_unknown_event_is_passed_over():
    @dataclass(frozen=True)
    class SomethingNew(Event):
        pass

    assert shown([SomethingNew()]) == ""


@pytest.mark.parametrize("loss", [0.5, GATE_SHARE * 0.9 - 1e-6, GATE_SHARE * 0.9, 0.9, 1.2])
def test_the_words_and_the_result_agree_on_who_is_past_the_gate(loss):
    assert ("not past" not in gate_words(1, loss, 0.9)) == passed_gate({"loss": loss, "gate": 0.9})["passed"]


def test_a_little_below_the_gate_is_told_from_no_better_than_it():
    assert "not past it yet: 2.2% better so far than predicting the mean patch" in gate_words(1, 0.88, 0.9)
    assert "no better so far than predicting the mean patch" in gate_words(1, 0.9, 0.9)


def test_a_pre_training_says_how_it_stands_to_its_gate():
    event = point(9, {"val/loss": 0.6, "val/gate": 0.9})
    assert shown([event]) == "step 9: validation loss 0.600, gate 0.900: past the gate by 33%\n"
    assert shown([GateNotPassed(loss=0.6, gate=0.9)]).startswith("WARNING: the pre-training did not pass its gate")


def test_what_the_gate_is_stands_in_the_log_only_where_it_is_passed_or_no_more():
    losses = [1.0, 0.88, 0.6, 0.5, 0.9]
    events = [point(step, {"val/loss": loss, "val/gate": 0.9}) for step, loss in enumerate(losses)]
    lines = shown([StageStarted("pretrain", "/x"), *events, StageStarted("pretrain", "/y"), events[0]]).splitlines()
    first = "step 0: validation loss 1.000, gate 0.900: not past it yet: no better so far than predicting the mean"
    assert lines[1].startswith(first) and lines[-1] == lines[1]
    assert lines[2:5] == [
        "step 1: validation loss 0.880, 2.2% below the gate, not past it yet",
        "step 2: validation loss 0.600, gate 0.900: past the gate by 33%",
        "step 3: validation loss 0.500, 44% below the gate",
    ]
    assert lines[5].startswith("step 4: validation loss 0.900, gate 0.900: not past it yet: no better so far")


def test_a_warning_of_a_shared_pre_training_is_printed_once_and_another_s_again():
    missed = [replace(GateNotPassed(loss, gate=0.9), experiment=f"seed {i}") for i, loss in enumerate((0.9, 0.9, 0.8))]
    lines = shown(missed).splitlines()
    assert [line.split("]")[0] for line in lines] == ["[seed 0", "[seed 2"] and all("WARNING" in line for line in lines)


def test_warnings_name_the_fields_that_would_change_it():
    about = {"start": 0, "num_images": 9, "num_val": 3, "num_steps": 90, "batch": 12, "lr": 0.1}
    of = {kind: shown([StageStarted(kind, "/x"), TrainingStarted(**about)]) for kind in ("pretrain", "finetune")}
    assert "lower pretrain.batch\n" in of["pretrain"] and "lower finetune.batch\n" in of["finetune"]
    assert "pretrain.epochs" in (gate := shown([GateNotPassed(0.9, 0.9)])) and "encoder.patch" in gate
    collapsed = shown([CollapseDetected("one", entropy=0.01, same=1.0)])
    assert "lower pretrain.lr, or raise pretrain.epochs" in collapsed
    waiting = DataLoadingBottleneck(share=0.5, num_loaders=2, suggested_loaders=2)
    assert "lower train.workers" in shown([waiting])


def test_a_pre_training_says_what_its_probe_is_and_scores_and_that_it_ended_by_it():
    about = {"start": 0, "num_images": 9, "num_val": 3, "num_steps": 90, "batch": 3, "lr": 0.1}
    events = [
        StageStarted("pretrain", "/x"),
        TrainingStarted(**about, probe="a linear model"),
        point(9, {"val/loss": 0.6, "val/gate": 0.9, "val/probe_mauc": 0.71234}),
        point(9, {"val/loss": 0.6, "val/probe_dice": 0.5, "val/rankme": 3.25}),
        TrainingEndedEarly(60, 90, "probe_mauc", 3, best_step=30, best=0.7333),
    ]
    _, _, probe, gate, several, ended = shown(events).splitlines()
    assert probe == "probe at each validation: a linear model"
    assert gate == "step 9: validation loss 0.600, gate 0.900: past the gate by 33%; probe mean AUC 0.712"
    assert several == "step 9: validation loss 0.600, probe_dice 0.500, rankme 3.250"
    assert ended == (
        "pre-training ends at step 60 of 90: no better mean AUC of the probe in 3 validations than 0.733 at step 30, "
        "whose weights are kept"
    )


def test_a_training_says_once_how_long_the_rest_takes():
    def at(step):
        return MetricsLogged(step, 620, 0, {"train/loss": 0.5}, throughput={"pace/samples_per_second": 10.0})

    about = {"start": 0, "num_images": 9, "num_val": 3, "num_steps": 620, "batch": 4, "lr": 0.1}
    lines = shown([StageStarted("pretrain", "/x"), TrainingStarted(**about), at(20), at(40)]).splitlines()
    told = [line for line in lines if "images/s" in line]
    assert told == ["pre-training: 10 images/s in its first 20 steps: 4.0 min for the rest, and validations"]


def test_of_several_each_line_begins_with_the_name():
    def of(who, event):
        return replace(event, experiment=who)

    stage = StageStarted("finetune", "/x")
    events = [
        ExperimentsStarted(2),
        of("none", stage),
        of("mae", stage),
        of("none", training(22, loss=0.5)),
        of("mae", training(24, loss=0.4)),
        of("mae", ExperimentEnded(1, 2, {"failure": "no memory"})),
        of(
            "none",
            ExperimentEnded(2, 2, {"score": "mauc", "stages": [{"kind": "test", "summary": {"test/mauc": 0.594}}]}),
        ),
    ]
    assert shown(events).splitlines() == [
        "2 experiments",
        "[none] fine-tuning: /x",
        "[mae] fine-tuning: /x",
        "[none] fine-tuning: 22/40 loss 0.5000",
        "[mae] fine-tuning: 24/40 loss 0.4000",
        "[mae] FAILED: no memory (1/2 experiments done)",
        "[none] test mean AUC 0.594 (2/2 experiments done)",
    ]
    bars = shown(events[:-2], terminal=True)
    assert "[none] fine-tuning" in bars and "[mae] fine-tuning" in bars and "0/2" in bars


def test_many_threads_may_print_at_once_and_no_line_is_split():
    output = io.StringIO()
    with ProgressPrinter(console=Console(file=output, width=100)) as show:
        speak = lambda who: [show(CheckpointSaved(step, experiment=f"{who}")) for step in range(50)]  # noqa: E731
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(speak, range(8)))
    expected = sorted(f"[{who}] step {step}: checkpoint saved" for who in range(8) for step in range(50))
    assert sorted(output.getvalue().splitlines()) == expected


def test_classes_that_no_image_of_a_training_shows_are_named():
    stage = StageStarted("finetune", "/x")
    event = TrainingStarted(0, num_images=2, num_val=1, num_steps=4, absent_classes=["Hernia", "Mass"])
    assert shown([stage, event]).splitlines()[-1] == "no training image has: Hernia, Mass"
    event = TrainingStarted(0, num_images=2, num_val=1, num_steps=4, universal_classes=["Hernia"])
    assert shown([stage, event]).splitlines()[-1] == "every training image has: Hernia"
