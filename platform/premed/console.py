"""What a person sees: a progress bar on a terminal, one plain line per interval elsewhere, and tables at the end."""

import math
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from premed.check import alike, summed_up
from premed.fanout import percent
from premed.spec import printable
from premed.watch import PAST

DOING = {"pretrain": "pre-training", "import": "importing weights", "finetune": "fine-tuning", "test": "testing"}
EVERY = 10.0  # seconds between two plain lines of the same kind


@dataclass
class Voice:
    """What one experiment is at: its stage, what its bar or its lines count, and when it last had a line."""

    kind: str = ""
    what: str = ""
    last_line: float = 0.0
    task: TaskID | None = None


class Presenter:
    """Takes events (`driver.Show`) and says them on stderr, or on another console. Leaving its context ends the bars.

    Any thread may call it. What is of one experiment among several is told with its name (`who`) before it.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self.lock = threading.RLock()
        self.who, self.voices = "", defaultdict[str, Voice](Voice)
        self.bar: Progress | None = None
        self.experiments: TaskID | None = None

    def __enter__(self) -> "Presenter":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar = None

    def __call__(self, event: dict[str, Any]) -> None:
        with self.lock:
            self.who = event.get("who", "")
            getattr(self, f"on_{event['event']}", self.ignore)(event)

    @property
    def voice(self) -> Voice:
        """Who is speaking."""
        return self.voices[self.who]

    def ignore(self, event: dict[str, Any]) -> None:
        """An event without words."""

    def say(self, text: str) -> None:
        (self.bar.console if self.bar else self.console).print(self.named(text), soft_wrap=True, markup=False)

    def named(self, text: str) -> str:
        return f"[{self.who}] {text}" if self.who else text

    def on_starting(self, event: dict[str, Any]) -> None:
        self.say(f"starting {event['what']}")

    def on_experiments(self, event: dict[str, Any]) -> None:
        self.say(f"{event['total']} experiments")
        if self.console.is_terminal:
            self.experiments = self.bars().add_task("experiments done", total=event["total"], note="")

    def on_ended(self, event: dict[str, Any]) -> None:
        self.close()
        done, outcome = f"{event['done']}/{event['total']} experiments done", event["outcome"]
        self.say(
            f"FAILED: {outcome['failure']} ({done})" if "failure" in outcome else f"{score_words(outcome)} ({done})"
        )
        if self.bar is not None and self.experiments is not None:
            self.bar.update(self.experiments, completed=event["done"])

    def on_prepared(self, event: dict[str, Any]) -> None:
        what = "preparing images"
        if self.voice.what == what or event["done"] < event["total"]:  # else all of them were there already
            self.progress(what, event["done"], event["total"], "")

    def on_checked(self, event: dict[str, Any]) -> None:
        self.progress("checking images", event["done"], event["total"], "")

    def on_predicted(self, event: dict[str, Any]) -> None:
        self.progress("predicting", event["done"], event["total"], "")

    def on_skipped(self, event: dict[str, Any]) -> None:
        self.say(f"skipped: {event['why']}")

    def on_stage(self, event: dict[str, Any]) -> None:
        self.close()
        self.voice.kind = event["kind"]
        self.say(f"{DOING[event['kind']]}: {event['where']}")

    def on_training(self, event: dict[str, Any]) -> None:
        going_on = f", going on after step {event['start']}" if event["start"] else ""
        self.say(f"{DOING[self.voice.kind]} on {event['num_images']} images, {event['num_steps']} steps{going_on}")
        if event.get("absent"):
            self.say(f"none of these images shows: {', '.join(event['absent'])}")

    def on_imported(self, event: dict[str, Any]) -> None:
        changed = "".join(f"; {name}: {how}" for name, how in event["changed"].items())
        dropped = f"; left out: {', '.join(event['dropped'])}" if event["dropped"] else ""
        self.say(f"{event['file']}: {event['kept']} tensors as they are{changed}{dropped}")

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
            self.progress(
                DOING[self.voice.kind], event["step"], event["num_steps"], f"loss {numbers['train/loss']:.4f}"
            )

    def on_saved(self, event: dict[str, Any]) -> None:
        self.say(f"step {event['step']}: checkpoint saved")

    def on_reused(self, event: dict[str, Any]) -> None:
        self.close()
        self.say(f"{DOING[event['kind']]}: there already, nothing to do ({event['where']})")

    def on_waiting(self, event: dict[str, Any]) -> None:
        self.say(f"{DOING[event['kind']]}: another {event['whose']} is at it; waiting for its result")

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
        voice = self.voice
        if what != voice.what:
            self.close()
            voice.what, voice.last_line = what, -math.inf
        if self.console.is_terminal:
            if voice.task is None:
                voice.task = self.bars().add_task(self.named(what), total=total, note=note)
            self.bars().update(voice.task, completed=done, total=total, note=note)
        elif time.monotonic() - voice.last_line >= EVERY or done == total:
            voice.last_line = time.monotonic()
            self.say(f"{what}: {done}/{total} {note}".rstrip())
        if done == total:
            self.close()

    def bars(self) -> Progress:
        """The bars of all that is under way, one display."""
        if self.bar is None:
            parts = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
            )
            more = TimeRemainingColumn(), TextColumn("{task.fields[note]}")
            self.bar = Progress(*parts, *more, console=self.console, transient=True)
            self.bar.start()
        return self.bar

    def close(self) -> None:
        """Ends the bar of who is speaking."""
        voice = self.voice
        if self.bar is not None and voice.task is not None:
            self.bar.remove_task(voice.task)
            if not self.bar.tasks:
                self.bar.stop()
                self.bar = None
        voice.task, voice.what = None, ""


def gate_words(step: int, loss: float, gate: float) -> str:
    """Where a pre-training stands, in words: an encoder not clearly below the gate holds nothing to transfer."""
    if loss < PAST * gate:
        stands = f"past the gate by {1 - loss / gate:.0%}"
    else:
        stands = "not past it yet: so far no better than the mean patch of each position"
    return f"step {step}: validation loss {loss:.3f}, gate {gate:.3f}: {stands}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 2) -> None:
    """A table on stdout, no wider than it need be; after the first `words` columns, numbers stand on the right."""
    drawn = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="left" if i < words else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))  # as it is: [a, b] is not rich's markup here
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(drawn)


def outcomes(found: Sequence[dict[str, Any]]) -> None:
    """One row per experiment: its score on the test part (or val), interval, constant answer, gate, seconds.

    Of several, the labels' share and the seed too, and the mean over seeds.
    """
    several = ["labels", "seed"] if len(found) > 1 else []
    columns = ["task", "strategy", *several, "score", "value", "95 % interval", "constant", "gate", "seconds"]
    rows, title = [outcome_row(outcome, several) for outcome in found], "Scores"
    scores = {score_of(outcome)[0] for outcome in found if outcome["stages"]}
    if several and len(scores) == 1:  # once is enough, and 80 columns are few
        title, at = f"Scores: {scores.pop()}", columns.index("score")
        rows = [row[:at] + row[at + 1 :] for row in [columns, *rows]]
        columns = rows.pop(0)
    table(title, columns, rows)
    print("interval: over patients, one seed; constant: the best answer that looks at no image;")
    print("gate: how far pre-training's validation loss is below that of a predictor without a network")
    over_seeds(found)
    for outcome in found:
        name = outcome.get("name") or f"{outcome['task']} {outcome['strategy']}"
        if "failure" in outcome:
            print(f"{name} FAILED: {outcome['failure']}")
            continue
        last = outcome["stages"][-1]
        if not several:
            print(f"{name}: {last['where']}")
        if last.get("undefined"):
            print(f"  no AUC, and left out of the mean: {', '.join(last['undefined'])} (one kind of label only)")
    if folders := sorted(
        {str(PurePosixPath(o["stages"][-1]["where"]).parent) for o in found if several and o["stages"]}
    ):
        print(f"weights and pictures: {', '.join(folders)}; side by side, with intervals and tests: premed compare")


def outcome_row(outcome: dict[str, Any], several: Sequence[str]) -> list[str]:
    stages = outcome["stages"]
    which = [percent(outcome["label_fraction"]), str(outcome["seed"])] if several else []
    which = [outcome["task"], outcome["strategy"], *which]
    if "failure" in outcome:
        return [*which, "-", "failed", "-", "-", "-", "-"]
    last, seconds = stages[-1], sum(stage["seconds"] for stage in stages)
    gate = next((stage["gate"] for stage in stages if stage.get("gate")), None)
    past = "-" if gate is None else f"{gate['below']:.0%}" if gate["passed"] else "not past"
    interval, constant = "-", "-"
    if last["kind"] == "test":
        constant = number(last["constant"])
        interval = f"[{number(last['interval'][0])}, {number(last['interval'][1])}]"
    score, value = score_of(outcome)
    return [*which, score, number(value), interval, constant, past, f"{seconds:.0f}"]


def score_of(outcome: dict[str, Any]) -> tuple[str, float | None]:
    """The name and the value of an outcome's score, on the part that it was measured on last."""
    last = outcome["stages"][-1]
    part = "test" if last["kind"] == "test" else "val"
    return f"{part} {outcome['score']}", last["summary"].get(f"{part}/{outcome['score']}")


def score_words(outcome: dict[str, Any]) -> str:
    score, value = score_of(outcome)
    return f"{score} {number(value)}"


def over_seeds(found: Sequence[dict[str, Any]]) -> None:
    """Mean and standard deviation where there are several seeds of the same task, strategy and share of labels."""
    groups = defaultdict(list)
    for outcome in found:
        if "failure" not in outcome and (scored := score_of(outcome))[1] is not None:
            share = percent(outcome["label_fraction"]) if "label_fraction" in outcome else ""
            groups[outcome["task"], outcome["strategy"], share, scored[0]].append(scored[1])
    rows = [
        [*group, str(len(values)), f"{number(statistics.mean(values))} ± {number(statistics.stdev(values))}"]
        for group, values in groups.items()
        if len(values) > 1
    ]
    if rows:
        table("Over seeds", ["task", "strategy", "labels", "score", "seeds", "mean ± std"], rows)


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
    name = printable(told["task"])
    title = f"{name} in {printable(told['root'])}" if told["root"] else name
    if told["findings"]:
        table(title, ["", "where", "what"], list(alike(told, 10)), words=3)
    print(f"{name}: {summed_up(told)}")


def number(value: float | None) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.3f}"
