"""The progress of a sweep: on a terminal a table of its trials, elsewhere plain lines."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from premed.cli.messages import DOING
from premed.cli.progress import ProgressPrinter
from premed.events import (
    CollapseDetected,
    DataLoadingBottleneck,
    Event,
    GateNotPassed,
    LookTaken,
    MetricsLogged,
    RayStarting,
    StageStarted,
    SweepStarted,
    TrialEnded,
    TrialStarted,
    WaitingForStage,
    WarningIssued,
)
from premed.reporting.formatting import duration, score_name

ABOVE = (
    RayStarting,
    SweepStarted,
    TrialEnded,
    WarningIssued,
    DataLoadingBottleneck,
    GateNotPassed,
    CollapseDetected,
    LookTaken,
)
"""Events that print a line above the table; the others only update it."""
MOST_ENDED = 5  # ended trials in the table, the best of them


@dataclass
class TrialLine:
    """A trial's row in the table."""

    number: int
    label: str
    doing: dict[str, str] = field(default_factory=dict)
    """Stage and step, by seed."""
    score: str = ""
    values: Sequence[float] | None = None
    has_ended: bool = False


class LiveTable(ProgressPrinter):
    """An `events.EventHandler` that shows a sweep's progress. Leaving its context removes the table."""

    def __init__(self, console: Any = None):
        super().__init__(console)
        self.lines: dict[int, TrialLine] = {}
        self.live: Live | None = None
        self.total = self.left = self.num_ended = 0
        self.started = time.monotonic()
        self.modes: Sequence[str] = ()
        self.event = Event()  # the last one

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.stop()
        self.live = None
        super().__exit__(*error)

    def __call__(self, event: Event) -> None:
        with self.lock:
            self.event = event
            super().__call__(event)
            if self.console.is_terminal and (line := self.line_for(event.experiment)):
                self.update(line, event)
                self.draw()

    def print_line(self, text: str) -> None:
        if self.console.is_terminal and self.lines and not isinstance(self.event, ABOVE):
            return
        super().print_line(text)

    def progress(self, description: str, done: int, total: int, note: str = "") -> None:
        if not (self.console.is_terminal and self.experiment):
            super().progress(description, done, total, note)

    # ---- events of a sweep

    @singledispatchmethod
    def handle(self, event: Event) -> None:
        super().handle(event)

    @handle.register
    def sweep_started(self, event: SweepStarted) -> None:
        self.total, self.left, self.modes = event.total, event.left, event.modes
        self.started = time.monotonic()
        before = f", {self.total - self.left} of them ended before" if self.left < self.total else ""
        self.print_line(f"{self.total} trials{before}")

    @handle.register
    def trial_started(self, event: TrialStarted) -> None:
        self.lines[event.number] = TrialLine(event.number, event.label)
        self.print_line(f"trial {event.number}: {event.label}")
        self.draw()

    @handle.register
    def trial_ended(self, event: TrialEnded) -> None:
        self.num_ended += 1
        line = self.lines[event.number]
        line.has_ended, line.values = True, event.values
        if event.values is not None:
            line.score = scores(event.metrics, event.values)
        else:
            line.score = f"FAILED: {event.failure}" if event.state == "failed" else "stopped, behind the others"
        self.print_line(f"trial {event.number} ({event.label}): {line.score} ({self.progress_text()})")
        self.draw()

    def progress_text(self) -> str:
        """3/8 trials, about 2.5 min left"""
        done = f"{self.total - self.left + self.num_ended}/{self.total} trials"
        if not 0 < self.num_ended < self.left:
            return done
        seconds = (time.monotonic() - self.started) / self.num_ended * (self.left - self.num_ended)
        return f"{done}, about {duration(seconds)} left"

    # ---- the table

    def line_for(self, experiment: str) -> TrialLine | None:
        """The row of the trial that an event's experiment belongs to (`trial 3 seed 0`)."""
        words = experiment.split()
        return self.lines.get(int(words[1])) if len(words) > 1 and words[0] == "trial" else None

    def update(self, line: TrialLine, event: Event) -> None:
        """Updates a trial's row from an event: what its seed is doing, and the last score."""
        seed, doing = event.experiment.partition(" seed ")[2], DOING.get(event.kind, "")
        if isinstance(event, WaitingForStage):
            line.doing[seed] = f"waits for {doing}"
        elif isinstance(event, StageStarted):
            line.doing[seed] = f"{doing}: queued"
        elif isinstance(event, MetricsLogged):
            line.doing[seed] = f"{doing} {event.step}/{event.num_steps}"
            found = {name[4:]: value for name, value in event.metrics.items() if name.startswith("val/")}
            validated = [f"{score_name(name)} {value:.3f}" for name, value in found.items()]
            line.score = validated[0] if validated else line.score

    def draw(self) -> None:
        if not self.console.is_terminal:
            return
        if self.live is None:
            self.live = Live(console=self.console, transient=True, refresh_per_second=4)
            self.live.start()
        self.live.update(self.table())

    def table(self) -> Group:
        table = Table("trial", "settings", "at", "score", box=None, pad_edge=False)
        running = [line for line in self.lines.values() if not line.has_ended]
        done = [line for line in self.lines.values() if line.has_ended and line.values]
        if len(self.modes) == 1:
            done.sort(key=lambda line: line.values[0], reverse=self.modes[0] == "max")  # type: ignore[index]
        for line in running + done[:MOST_ENDED]:
            at = ", ".join(f"{seed} {doing}".strip() for seed, doing in sorted(line.doing.items()))
            table.add_row(str(line.number), Text(line.label), Text("done" if line.has_ended else at), Text(line.score))
        return Group(Text(self.progress_text()), table)


def scores(metrics: Sequence[str], values: Sequence[float]) -> str:
    return ", ".join(
        f"{score_name(name.removeprefix('val/'))} {value:.4g}" for name, value in zip(metrics, values, strict=True)
    )
