"""Progress of a command: bars on a terminal, a plain line every few seconds elsewhere."""

import math
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import singledispatchmethod
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from premed.cli.messages import (
    DOING,
    WARNINGS,
    early_end_words,
    gate_words,
    import_words,
    is_past,
    large_batch_words,
    pace_words,
    probe_words,
    resources_words,
    training_words,
)
from premed.events import (
    CheckpointSaved,
    CollapseDetected,
    DataLoadingBottleneck,
    EvaluationStarted,
    Event,
    ExperimentEnded,
    ExperimentsStarted,
    FilesRead,
    GateNotPassed,
    ImagesChecked,
    ImagesCompared,
    ImageSkipped,
    ImagesPredicted,
    ImagesPrepared,
    LookTaken,
    MetricsLogged,
    ModelRegistrationStarted,
    RayStarting,
    StageReused,
    StageStarted,
    TrainingEndedEarly,
    TrainingStarted,
    WaitingForResources,
    WaitingForStage,
    WarningIssued,
    WeightsImported,
)
from premed.reporting.formatting import score_name
from premed.reporting.outcomes import score_text

COUNTED = {
    ImagesCompared: "comparing images",
    ImagesChecked: "checking images",
    FilesRead: "reading headers, and some images",
    ImagesPredicted: "predicting",
}
OWNERS = {"experiment": "experiment of this command", "command": "command"}
STARTING = "starting Ray"
EVERY = 10.0  # seconds between two plain lines of the same kind


@dataclass
class Activity:
    """The activity of one experiment: its stage's kind, its bar, and when it last printed a line."""

    kind: str = ""
    description: str = ""
    last_line: float = 0.0
    batch: int | None = None  # of a training whose speed has not been told yet
    task: TaskID | None = None
    past_gate: bool | None = None  # of a pre-training, at its last validation


class ProgressPrinter:
    """An `events.EventHandler` that prints progress on stderr, or on another console.

    Leaving its context ends the bars. Any thread may call it. Lines of one experiment among several begin with its
    name.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self.lock = threading.RLock()
        self.experiment, self.activities = "", defaultdict[str, Activity](Activity)
        self.warned = set[str]()  # of what several experiments share
        self.display: Progress | None = None
        self.experiments_bar: TaskID | None = None

    def __enter__(self) -> "ProgressPrinter":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.display is not None:
            self.display.stop()
        self.display = None

    def __call__(self, event: Event) -> None:
        with self.lock:
            self.experiment = ""
            if self.activity.description == STARTING:
                self.end_bar()
            self.experiment = event.experiment
            self.handle(event)

    @property
    def activity(self) -> Activity:
        """The activity of the experiment whose event is handled."""
        return self.activities[self.experiment]

    def print_line(self, text: str) -> None:
        console = self.display.console if self.display else self.console
        console.print(self.named(text), soft_wrap=True, markup=False)

    def warn_once(self, text: str) -> None:
        """Prints a warning of what several experiments may share: a pre-training, a setting. It is the same for all."""
        if text not in self.warned:
            self.warned.add(text)
            self.print_line(f"WARNING: {text}")

    def named(self, text: str) -> str:
        return f"[{self.experiment}] {text}" if self.experiment else text

    @singledispatchmethod
    def handle(self, event: Event) -> None:
        """Prints a line or updates a bar; events without a method of their own are ignored."""

    @handle.register
    def ray_starting(self, event: RayStarting) -> None:
        self.experiment = ""  # Ray is every experiment's
        self.print_line(STARTING)
        self.wait(STARTING)

    @handle.register
    def experiments_started(self, event: ExperimentsStarted) -> None:
        self.print_line(f"{event.total} experiments")
        if self.display is not None and self.experiments_bar is not None:  # of the seeds before
            self.display.remove_task(self.experiments_bar)
        if self.console.is_terminal:
            self.experiments_bar = self.bars().add_task(
                "experiments done", total=event.total, note="", count=f"0/{event.total}"
            )

    @handle.register
    def experiment_ended(self, event: ExperimentEnded) -> None:
        self.end_bar()
        done, outcome = f"{event.done}/{event.total} experiments done", event.outcome
        result = f"FAILED: {outcome['failure']}" if "failure" in outcome else score_text(outcome)
        self.print_line(f"{result} ({done})")
        if self.display is not None and self.experiments_bar is not None:
            self.display.update(self.experiments_bar, completed=event.done, count=f"{event.done}/{event.total}")

    @handle.register
    def look_taken(self, event: LookTaken) -> None:
        self.print_line(event.words)

    @handle.register
    def images_prepared(self, event: ImagesPrepared) -> None:
        description = "preparing images"
        if self.activity.description == description or event.done < event.total:  # no bar if all were in the cache
            self.progress(description, event.done, event.total)

    @handle.register
    def images_counted(self, event: ImagesCompared | ImagesChecked | FilesRead | ImagesPredicted) -> None:
        self.progress(COUNTED[type(event)], event.done, event.total)

    @handle.register
    def image_skipped(self, event: ImageSkipped) -> None:
        self.print_line(f"skipped: {event.reason}")

    @handle.register
    def stage_started(self, event: StageStarted) -> None:
        self.end_bar()
        self.activity.kind, self.activity.past_gate = event.kind, None
        self.print_line(f"{DOING[event.kind]}: {event.where}")
        self.wait(DOING[event.kind])

    @handle.register
    def stage_reused(self, event: StageReused) -> None:
        self.end_bar()
        self.print_line(f"{DOING[event.kind]}: already finished, reused ({event.where})")

    @handle.register
    def waiting_for_stage(self, event: WaitingForStage) -> None:
        self.print_line(f"{DOING[event.kind]}: another {OWNERS[event.owner]} runs this stage; waiting for its result")

    @handle.register
    def waiting_for_resources(self, event: WaitingForResources) -> None:
        self.print_line(f"{DOING[event.kind]} waits for {resources_words(event)}")

    @handle.register
    def training_started(self, event: TrainingStarted) -> None:
        self.activity.batch = event.batch
        self.print_line(f"{DOING[self.activity.kind]} {training_words(event)}")
        if event.batch is not None and event.batch > event.num_images:
            self.warn_once(large_batch_words(event, self.activity.kind))
        if event.probe:
            self.print_line(f"probe at each validation: {event.probe}")
        for what, classes in (("no", event.absent_classes), ("every", event.universal_classes)):
            if classes:
                self.print_line(f"{what} training image has: {', '.join(classes)}")

    @handle.register
    def weights_imported(self, event: WeightsImported) -> None:
        self.print_line(import_words(event))

    @handle.register
    def evaluation_started(self, event: EvaluationStarted) -> None:
        self.print_line(f"testing on {event.num_images} images")
        self.wait(DOING["test"])

    @handle.register
    def metrics_logged(self, event: MetricsLogged) -> None:
        metrics = event.metrics
        if "val/gate" in metrics:
            loss, gate = metrics["val/loss"], metrics["val/gate"]
            self.print_line(f"{gate_words(event.step, loss, gate, self.activity.past_gate)}{probe_words(metrics)}")
            self.activity.past_gate = is_past(loss, gate)
        elif scores := {name: value for name, value in metrics.items() if name.startswith("val/")}:
            shown = [f"{score_name(n[4:])} {value:.3f}" for n, value in scores.items() if not n.startswith("val/n_")]
            self.print_line(f"step {event.step}: validation {', '.join(shown) or 'without a score'}")
        else:
            if self.activity.batch and (speed := event.throughput.get("pace/samples_per_second")):
                self.print_line(f"{DOING[self.activity.kind]}: {pace_words(event, self.activity.batch, speed)}")
                self.activity.batch = None
            note = f"loss {metrics['train/loss']:.4f}"
            self.progress(DOING[self.activity.kind], event.step, event.num_steps, note)

    @handle.register
    def training_ended_early(self, event: TrainingEndedEarly) -> None:
        self.print_line(f"{DOING[self.activity.kind]} {early_end_words(event)}")
        self.wait(DOING[self.activity.kind])

    @handle.register
    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        self.print_line(f"step {event.step}: checkpoint saved")

    @handle.register
    def model_registration_started(self, event: ModelRegistrationStarted) -> None:
        self.print_line(f"registering the model as {event.name}")
        self.wait("registering")

    @handle.register
    def warned_of(self, event: GateNotPassed | CollapseDetected | DataLoadingBottleneck) -> None:
        self.warn_once(WARNINGS[type(event)](event))

    @handle.register
    def warning_issued(self, event: WarningIssued) -> None:
        self.print_line(f"WARNING: {event.text}")

    def progress(self, description: str, done: int, total: int, note: str = "") -> None:
        """A bar on a terminal; a line every `EVERY` seconds elsewhere."""
        activity = self.activity
        if description != activity.description:
            self.end_bar()
            activity.description, activity.last_line = description, -math.inf
        if self.console.is_terminal:
            if activity.task is None:
                activity.task = self.bars().add_task(self.named(description), note=note, count="")
            self.bars().update(activity.task, completed=done, total=total, note=note, count=f"{done}/{total}")
        elif time.monotonic() - activity.last_line >= EVERY or done == total:
            activity.last_line = time.monotonic()
            self.print_line(f"{description}: {done}/{total} {note}".rstrip())
        if done == total:
            self.end_bar()

    def wait(self, description: str) -> None:
        """On a terminal, a bar that moves until it is known how much there is to do."""
        self.end_bar()
        self.activity.description, self.activity.last_line = description, -math.inf
        if self.console.is_terminal:
            self.activity.task = self.bars().add_task(self.named(description), total=None, note="", count="")

    def bars(self) -> Progress:
        """The display of all bars; starts it if there is none."""
        if self.display is None:
            width = min(max(self.console.width - 84, 6), 40)  # else times are cut on a narrow terminal
            bar = TextColumn("{task.description}", markup=False), BarColumn(bar_width=width)
            parts = *bar, TextColumn("{task.fields[count]}"), TimeElapsedColumn()
            more = TimeRemainingColumn(), TextColumn("{task.fields[note]}")
            self.display = Progress(*parts, *more, console=self.console, transient=True)
            self.display.start()
        return self.display

    def end_bar(self) -> None:
        """Removes the bar of the experiment whose event is handled."""
        activity = self.activity
        if self.display is not None and activity.task is not None:
            self.display.remove_task(activity.task)
            if not self.display.tasks:
                self.display.stop()
                self.display = None
        activity.task, activity.description = None, ""
