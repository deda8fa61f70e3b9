"""What a person sees: a progress bar on a terminal, one plain line per interval elsewhere, and tables at the end."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from premed.check import alike, summed_up
from premed.watch import PAST

DOING = {"pretrain": "pre-training", "finetune": "fine-tuning", "test": "testing"}
EVERY = 10.0  # seconds between two plain lines of the same kind


class Presenter:
    """Takes events (`driver.Show`) and says them on stderr, or on another console. Leaving its context ends the bar."""

    def __init__(self, prefix: str = "", console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self.prefix, self.kind, self.what = prefix, "", ""
        self.last_line = 0.0
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> "Presenter":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __call__(self, event: dict[str, Any]) -> None:
        getattr(self, f"on_{event['event']}", self.ignore)(event)

    def ignore(self, event: dict[str, Any]) -> None:
        """An event without words."""

    def say(self, text: str) -> None:
        (self.bar.console if self.bar else self.console).print(f"{self.prefix}{text}", soft_wrap=True, markup=False)

    def on_starting(self, event: dict[str, Any]) -> None:
        self.say(f"starting {event['what']}")

    def on_experiment(self, event: dict[str, Any]) -> None:
        self.close()
        self.say(f"== {event['number']}/{event['total']}: {event['what']}")

    def on_prepared(self, event: dict[str, Any]) -> None:
        what = "preparing images"
        if self.what == what or event["done"] < event["total"]:  # else all of them were there already
            self.progress(what, event["done"], event["total"], "")

    def on_checked(self, event: dict[str, Any]) -> None:
        self.progress("checking images", event["done"], event["total"], "")

    def on_predicted(self, event: dict[str, Any]) -> None:
        self.progress("predicting", event["done"], event["total"], "")

    def on_skipped(self, event: dict[str, Any]) -> None:
        self.say(f"skipped: {event['why']}")

    def on_stage(self, event: dict[str, Any]) -> None:
        self.close()
        self.kind = event["kind"]
        self.say(f"{DOING[self.kind]}: {event['where']}")

    def on_training(self, event: dict[str, Any]) -> None:
        going_on = f", going on after step {event['start']}" if event["start"] else ""
        self.say(f"{DOING[self.kind]} on {event['num_images']} images, {event['num_steps']} steps{going_on}")

    def on_testing(self, event: dict[str, Any]) -> None:
        self.say(f"testing once on {event['num_images']} images")

    def on_row(self, event: dict[str, Any]) -> None:
        numbers = event["metrics"]
        if "val/gate" in numbers:
            self.say(gate_words(event["step"], numbers["val/loss"], numbers["val/gate"]))
        elif any(name.startswith("val/") for name in numbers):
            told = ", ".join(
                f"{name[4:]} {value:.3f}" for name, value in numbers.items() if not name.startswith("val/n_")
            )
            self.say(f"step {event['step']}: validation {told}")
        else:
            self.progress(DOING[self.kind], event["step"], event["num_steps"], f"loss {numbers['train/loss']:.4f}")

    def on_saved(self, event: dict[str, Any]) -> None:
        self.say(f"step {event['step']}: checkpoint saved")

    def on_reused(self, event: dict[str, Any]) -> None:
        self.close()
        self.say(f"{DOING[event['kind']]}: there already, nothing to do ({event['where']})")

    def on_waiting(self, event: dict[str, Any]) -> None:
        self.say(f"{DOING[event['kind']]}: another command is at it; waiting for its result")

    def on_registering(self, event: dict[str, Any]) -> None:
        self.say(f"registering the model as {event['name']}")

    def on_gate(self, event: dict[str, Any]) -> None:
        numbers = f"loss {event['loss']:.3f}, a predictor without a network {event['gate']:.3f}"
        self.say(
            f"WARNING: the pre-training never got past its gate ({numbers}): "
            "its encoder holds little to transfer; train longer, or with smaller patches"
        )

    def on_warning(self, event: dict[str, Any]) -> None:
        self.say(f"WARNING: {event['text']}")

    def progress(self, what: str, done: int, total: int, note: str) -> None:
        """A bar on a terminal; a line now and then elsewhere."""
        if what != self.what:
            self.close()
            self.what, self.last_line = what, -math.inf
        if not self.console.is_terminal:
            if time.monotonic() - self.last_line >= EVERY or done == total:
                self.last_line = time.monotonic()
                self.say(f"{what}: {done}/{total} {note}".rstrip())
            if done == total:
                self.close()
            return
        if self.bar is None:
            parts = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
            more = TimeRemainingColumn(), TextColumn("{task.fields[note]}")
            self.bar = Progress(*parts, *more, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(what, total=total, note=note)
        assert self.task is not None
        self.bar.update(self.task, description=f"{self.prefix}{what}", completed=done, total=total, note=note)
        if done == total:
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar = self.task = None
        self.what = ""


def gate_words(step: int, loss: float, gate: float) -> str:
    """Where a pre-training stands, in words: an encoder not clearly below the gate holds nothing to transfer."""
    if loss < PAST * gate:
        stands = f"past the gate by {1 - loss / gate:.0%}"
    else:
        stands = "not past it yet: so far no better than the mean patch of each position"
    return f"step {step}: validation loss {loss:.3f}, gate {gate:.3f}: {stands}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 2) -> None:
    """A table on stdout, no wider than it need be; after the first `words` columns, numbers stand on the right."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="left" if i < words else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))  # as it is: [a, b] is not rich's markup here
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(drawn)


def outcomes(found: Sequence[dict[str, Any]]) -> None:
    """One row per experiment: its score on the test part (or val), interval, constant answer, gate, seconds."""
    columns = ["task", "strategy", "score", "value", "95 % interval", "constant", "gate", "seconds"]
    table("Scores", columns, [outcome_row(outcome) for outcome in found])
    print("interval: over patients, one seed; constant: the best answer that looks at no image;")
    print("gate: how far pre-training's validation loss is below that of a predictor without a network")
    for outcome in found:
        last = outcome["stages"][-1]
        print(f"{outcome['task']} {outcome['strategy']}: {last['where']}")
        if last.get("undefined"):
            print(f"  no AUC, and left out of the mean: {', '.join(last['undefined'])} (one kind of label only)")


def outcome_row(outcome: dict[str, Any]) -> list[str]:
    stages = outcome["stages"]
    last, seconds = stages[-1], sum(stage["seconds"] for stage in stages)
    gate = next((stage["gate"] for stage in stages if stage.get("gate")), None)
    past = "-" if gate is None else f"{gate['below']:.0%}" if gate["passed"] else "not past"
    part, interval, constant = "val", "-", "-"
    if last["kind"] == "test":
        part, constant = "test", number(last["constant"])
        interval = f"[{number(last['interval'][0])}, {number(last['interval'][1])}]"
    value = number(last["summary"].get(f"{part}/{outcome['score']}"))
    score = f"{part} {outcome['score']}"
    return [outcome["task"], outcome["strategy"], score, value, interval, constant, past, f"{seconds:.0f}"]


def predictions(told: dict[str, Any]) -> None:
    """What came of `premed predict`."""
    what = "label maps" if "files" in told["outputs"][0] else "rows of probabilities"
    left = f"; {len(told['failed'])} skipped" if told["failed"] else ""
    print(f"{told['task']}: {what} of {len(told['outputs'])} images in {told['folder']}{left}")


def exported(told: dict[str, Any]) -> None:
    """What came of `premed export`."""
    print(f"{told['task']} as {told['format']} in {told['folder']}: {', '.join(told['files'])}")
    if found := told.get("check"):
        print(f"largest difference of a logit from torch's: {found['largest_difference']:.2g}, on {found['on']}")


def findings(told: dict[str, Any]) -> None:
    """What `premed data check` found, errors first; of many files with the same trouble, ten."""
    title = f"{told['task']} in {told['root']}" if told["root"] else told["task"]
    if told["findings"]:
        table(title, ["", "where", "what"], list(alike(told, 10)), words=3)
    print(f"{told['task']}: {summed_up(told)}")


def number(value: float | None) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.3f}"
