"""One trial of a sweep: its experiments, one for each seed, and the values that the search optimises."""

import math
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from premed.errors import CalledOff, StageFailed, UserError, first_line
from premed.events import Event, EventHandler, MetricsLogged, WarningIssued
from premed.execution.pipeline import StagePipeline
from premed.execution.preflight import Resolved
from premed.execution.scheduler import Ticket
from premed.execution.session import Session
from premed.training.artifacts import curve_of
from premed.training.storage import StageStorage

BEHIND = "behind"
"""The note of a trial that got no more seeds (`seeds: auto`): how far it was behind the best."""
STAGES = {"pretrain_seconds": ("pretrain", "trunk", "cooldown"), "finetune_seconds": ("finetune",)}


@dataclass
class Validations:
    """The validations of the first seed's fine-tuning: the best value so far, by the validation's number.

    total: the validations of a fine-tuning. best: at first those of an earlier start. on_validation: called with each
    new one (number, best value so far, step). on_skipped: called with the step of a validation that is known already
    or has no value, so that training continues.
    """

    metric: str
    mode: str
    total: int
    best: dict[int, float]
    on_validation: Callable[[int, float, int], None]
    on_skipped: Callable[[int], None]

    def __call__(self, event: MetricsLogged) -> None:
        """Handles a point of the fine-tuning's curve; points without validation metrics are ignored."""
        if not any(name.startswith("val/") for name in event.metrics):
            return
        number, value = int(event.step * self.total // event.num_steps), event.metrics.get(self.metric)
        if value is None or not math.isfinite(value) or number in self.best:
            self.on_skipped(event.step)
            return
        best = max if self.mode == "max" else min
        self.best[number] = best([value, *self.best.values()])
        self.on_validation(number, self.best[number], event.step)


@dataclass
class Trial:
    """One trial; `run` trains its experiments in the calling thread.

    Other threads may stop it (`cancelled`) and let its training continue (`allow`).
    """

    number: int
    seeds: Sequence[int]
    experiments: Callable[[], Sequence[Resolved]]
    """Makes the experiments, one for each seed; raises UserError if the setting is invalid."""
    session: Session
    metrics: Sequence[str]
    show: EventHandler
    validations: Validations | None
    """The validations that the scheduler decides by; None without a scheduler."""
    looks: Sequence[int] = ()
    """`seeds: auto`: the numbers of seeds at which `find_behind` is called, the last of them all seeds."""
    find_behind: Callable[[Mapping[str, list[float]]], str] = lambda by_seed: ""
    """Called with the values by seed: how far the trial is behind the best, if it needs no more seeds; else empty."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    failure: str = ""
    """Why it was cancelled; empty where the scheduler stopped it."""
    allowed_step: float = 0.0
    """The last step with a validation that the first seed's training may continue from."""
    queued: threading.Event = field(default_factory=threading.Event)
    """Set once it is queued, waits for another experiment, or has ended: the next trial may start."""
    pipelines: list[StagePipeline] = field(default_factory=list)
    by_seed: dict[str, list[float]] = field(default_factory=dict)
    behind: str = ""
    """Why it got no more seeds; empty if it got all."""
    run_id: str = ""
    """The trial's run in MLflow."""
    tries: int = 0
    """How often it was tried in this command."""

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The stages that are finished so far, of all seeds, as the study keeps them."""
        names = "kind", "digest", "seconds", "peak_memory_mb", "run_id", "reused"
        stages = [stage for pipeline in self.pipelines for stage in pipeline.stages]
        return [{name: stage.get(name) for name in names} for stage in stages]

    @property
    def notes(self) -> dict[str, Any]:
        """What the study keeps beside the values."""
        notes = {"run_id": self.run_id, "stages": self.stages, "by_seed": self.by_seed, "tries": self.tries}
        return notes | ({BEHIND: self.behind} if self.behind else {})

    def pause(self, seconds: float) -> None:
        """Waits; raises CalledOff if the trial was cancelled, KeyboardInterrupt if the command was stopped."""
        if self.cancelled.wait(seconds):
            raise CalledOff
        self.session.pause(0)

    def allow(self, step: float) -> None:
        """Lets the first seed's training continue from the validation at `step`."""
        self.allowed_step = max(self.allowed_step, step)

    def run(self, retries: int) -> list[float] | None:
        """Returns the value of each metric, the mean over seeds; None if it is behind the best and needs no more seeds.

        Raises the UserError or StageFailed of the last try if all `retries` failed, too.
        """
        failure: Exception = StageFailed("it was never tried")
        for attempt in range(retries + 1):
            self.tries += 1
            try:
                return self.attempt()
            except (UserError, StageFailed) as error:
                self.session.pause(0)  # in a stopped command no trial fails: it is interrupted
                failure = error
            except Exception as error:  # noqa: BLE001 - a bug ends a trial, not the sweep; its traceback is shown
                self.session.pause(0)
                self.show(WarningIssued(traceback.format_exc(), experiment=self.experiment_name(0)))
                failure = StageFailed(f"{type(error).__name__}: {first_line(error)}")
            finally:
                self.queued.set()
            if attempt < retries:
                self.show(WarningIssued(f"{failure}; trying again", experiment=self.experiment_name(0)))
                self.session.results.forget_failures()
        raise failure

    def attempt(self) -> list[float] | None:
        """Runs the seeds: the first alone, because the scheduler may stop the trial by it, then the others at once, or
        those up to each look."""
        self.pipelines, self.by_seed, self.behind = [], {}, ""
        experiments = list(enumerate(self.experiments()))
        begin = 0
        for end in dict.fromkeys([1, *(self.looks or [len(experiments)])]):
            with ThreadPoolExecutor(end - begin, "premed seed") as pool:
                outcomes = [pool.submit(self.run_seed, *each) for each in experiments[begin:end]]
            for seed, outcome in zip(self.seeds[begin:end], outcomes, strict=True):
                stages = outcome.result()["stages"]
                self.by_seed[str(seed)] = [metric_value(metric, stages) for metric in self.metrics]
            if end in self.looks[:-1] and (behind := self.find_behind(self.by_seed)):
                self.behind = behind
                return None
            begin = end
        return [fmean(of_seeds) for of_seeds in zip(*self.by_seed.values(), strict=True)]

    def experiment_name(self, index: int) -> str:
        """The name in events of the experiment with the seed at `index`: `trial 3`, or `trial 3 seed 0`."""
        return f"trial {self.number}" + (f" seed {self.seeds[index]}" if len(self.seeds) > 1 else "")

    def run_seed(self, index: int, experiment: Resolved) -> dict[str, Any]:
        """Runs the experiment with the seed at `index`; returns its outcome."""
        validations = self.validations if index == 0 else None
        ticket = Ticket(
            self.number * len(self.seeds) + index,
            self.pause,
            tested=False,
            report=(lambda step: step <= self.allowed_step) if validations else None,
            on_queued=self.queued.set,
        )
        pipeline = StagePipeline(
            replace(experiment, name=self.experiment_name(index)), self.session, ticket, register=False
        )
        self.pipelines.append(pipeline)
        outcome = pipeline.run()
        last = outcome["stages"][-1]
        if validations and last["reused"]:  # it was not trained now, so no event has reported its validations
            finished = StageStorage(pipeline.storage, last["where"].rsplit("/", 1)[-1])
            for row in curve_of(finished):
                validations(MetricsLogged(num_steps=last["num_steps"], **row))
        return outcome


def metric_value(metric: str, stages: Sequence[dict[str, Any]]) -> float:
    """An experiment's value of a metric, from the results of its stages.

    Raises UserError if the fine-tuning has no such metric, StageFailed if it is undefined.
    """
    if metric == "peak_memory_mb":
        return max(stage["peak_memory_mb"] for stage in stages)
    if metric.endswith("seconds"):
        kinds = STAGES.get(metric)
        return sum(stage["seconds"] for stage in stages if kinds is None or stage["kind"] in kinds)
    summary = stages[-1]["summary"]
    value = summary.get(metric)
    if value is None:
        raise UserError(f"metric: there is no {metric}; the fine-tuning has {', '.join(sorted(summary))}")
    if not math.isfinite(value):
        raise StageFailed(f"{metric} is undefined on val")
    return value


class EventRouter:
    """Passes a session's events on to `show`, and metrics of a first seed's fine-tuning to its trial's validations."""

    def __init__(self, show: EventHandler):
        self.show = show
        self.validations: dict[str, Validations] = {}
        """By the experiment's name in events."""

    def __call__(self, event: Event) -> None:
        self.show(event)
        validations = self.validations.get(event.experiment)
        if validations and isinstance(event, MetricsLogged) and event.kind == "finetune":
            validations(event)
