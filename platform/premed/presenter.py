"""What a person sees of a run while it goes: a progress bar on a terminal, one plain line per interval elsewhere."""

import math
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from premed.console import score_words
from premed.watch import PAST

DOING = {
    "pretrain": "pre-training",
    "trunk": "pre-training, trunk",
    "cooldown": "pre-training, cool-down",
    "import": "importing weights",
    "finetune": "fine-tuning",
    "test": "testing",
}
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
        if workers := event.get("workers"):
            going_on += f", {workers} worker{'s' * (workers != 1)}"
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

    def on_starving(self, event: dict[str, Any]) -> None:
        self.say(f"WARNING: {starving_words(**event)}")

    def on_short(self, event: dict[str, Any]) -> None:
        self.say(f"{DOING[event['kind']]} waits for {short_words(event)}")

    def on_collapse(self, event: dict[str, Any]) -> None:
        into = "the same answer" if event["into"] == "one" else "an answer that prefers nothing"
        self.say(
            f"WARNING: the pre-training collapsed: its teacher gives all images {into} (entropy {event['entropy']:.2f} "
            f"of 1, {event['same']:.0%} alike): its encoder holds little to transfer; lower pretrain.lr, or train on"
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


def starving_words(share: float, num_loaders: int, mend: int, **event: Any) -> str:
    """That a training waits for images, and what to do about it."""
    told = f"{share:.0%} of the time goes into waiting for images; "
    if mend > num_loaders:
        return f"{told}set train.loaders={mend} (and train.cpus={mend + 1}, so that each has a CPU)"
    return f"{told}no CPU is left for train.loaders: take fewer workers per node, or put PREMED_HOME on a faster disk"


def short_words(event: dict[str, Any]) -> str:
    """What a stage needs, and what of it the cluster has."""
    workers, cpus = event["workers"], event["cpus"]
    each = f"{workers} worker{'s' * (workers != 1)} of {cpus:g} CPU{'s' * (cpus != 1)}{' and a GPU' * event['gpu']}"
    left = " and ".join(f"{free:g} of {event['there'][kind]:g} {kind}s" for kind, free in event["free"].items())
    return f"{each}; the cluster has {left} free"


def gate_words(step: int, loss: float, gate: float) -> str:
    """Where a pre-training stands, in words: an encoder not clearly below the gate holds nothing to transfer."""
    if loss < PAST * gate:
        stands = f"past the gate by {1 - loss / gate:.0%}"
    else:
        stands = "not past it yet: so far no better than the mean patch of each position"
    return f"step {step}: validation loss {loss:.3f}, gate {gate:.3f}: {stands}"
