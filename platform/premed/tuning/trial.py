"""One trial of a sweep: its experiments, a seed each, from their first stage to the numbers that the search goes by."""

import json
import math
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from premed.errors import CalledOff, StageFailed, UserError, first_line
from premed.events import EventHandler, MetricsLogged, WarningIssued
from premed.execution.pipeline import StagePipeline
from premed.execution.preflight import Resolved
from premed.execution.scheduler import Ticket
from premed.execution.session import Session
from premed.training.storage import StageStorage

STAGES = {"pretrain_seconds": ("pretrain", "trunk", "cooldown"), "finetune_seconds": ("finetune",)}


@dataclass
class Validations:
    """What the first seed's fine-tuning came to at each validation: the best so far, by the validation's number.

    known: those of an earlier start. heard: takes each new one (number, best so far, at which step). passed: takes the
    step of one that says nothing new, so that training goes on.
    """

    metric: str
    mode: str
    total: int
    known: dict[int, float]
    heard: Callable[[int, float, int], None]
    passed: Callable[[int], None]

    def __call__(self, point: MetricsLogged) -> None:
        """A point of the fine-tuning's curve."""
        if not any(name.startswith("val/") for name in point.metrics):
            return
        number, value = int(point.step * self.total // point.num_steps), point.metrics.get(self.metric)
        if value is None or not math.isfinite(value) or number in self.known:
            self.passed(point.step)
            return
        best = max if self.mode == "max" else min
        self.known[number] = best([value, *self.known.values()])
        self.heard(number, self.known[number], point.step)


@dataclass
class Trial:
    """The work of a thread. Others call it off (`called_off`), and let its training go on (`rule`)."""

    number: int
    seeds: Sequence[int]
    experiments: Callable[[], Sequence[Resolved]]
    """Makes them, one for each seed; UserError where the setting comes to none."""
    here: Session
    metrics: Sequence[str]
    show: EventHandler
    validations: Validations | None
    """Where a scheduler reads them."""
    called_off: threading.Event = field(default_factory=threading.Event)
    failure: str = ""
    """Why it was called off, if not for falling behind."""
    ruled: float = 0.0
    """The last step with a validation that the first seed's training may go on from."""
    begun: threading.Event = field(default_factory=threading.Event)
    """It stands in line, waits for another, or has ended: the next one may begin."""
    pipelines: list[StagePipeline] = field(default_factory=list)
    by_seed: dict[str, list[float]] = field(default_factory=dict)
    run_id: str = ""
    """Its own in MLflow."""

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Those that are finished so far, of all seeds."""
        return [told(stage) for pipeline in self.pipelines for stage in pipeline.stages]

    @property
    def notes(self) -> dict[str, Any]:
        """What the study keeps of it."""
        return {"run_id": self.run_id, "stages": self.stages, "by_seed": self.by_seed}

    def pause(self, seconds: float) -> None:
        if self.called_off.wait(seconds):
            raise CalledOff
        self.here.pause(0)

    def rule(self, step: float) -> None:
        """Training may go on from the validation at that step."""
        self.ruled = max(self.ruled, step)

    def run(self, retries: int) -> list[float]:
        """The value of each metric, the mean over seeds. UserError or StageFailed where it came to none."""
        failure: Exception = StageFailed("it was never tried")
        for attempt in range(retries + 1):
            try:
                return self.attempt()
            except (UserError, StageFailed) as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - a bug ends a trial, not the sweep; its traceback is shown
                self.show(WarningIssued(traceback.format_exc(), experiment=self.who(0)))
                failure = StageFailed(f"{type(error).__name__}: {first_line(error)}")
            finally:
                self.begun.set()
            if attempt < retries:
                self.show(WarningIssued(f"{failure}; trying again", experiment=self.who(0)))
                self.here.results.forget_failures()
        raise failure

    def attempt(self) -> list[float]:
        self.pipelines, self.by_seed = [], {}
        first, *rest = list(enumerate(self.experiments()))
        outcomes = [self.one(*first)]
        if rest:  # a scheduler has seen the first by now
            with ThreadPoolExecutor(len(rest), "premed seed") as pool:
                outcomes += [each.result() for each in [pool.submit(self.one, *each) for each in rest]]
        values = []
        for seed, outcome in zip(self.seeds, outcomes, strict=True):
            values.append([value_of(metric, outcome["stages"]) for metric in self.metrics])
            self.by_seed[str(seed)] = values[-1]
        return [fmean(of_seeds) for of_seeds in zip(*values, strict=True)]

    def who(self, place: int) -> str:
        """What the trial, or its experiment of one seed, is called in events."""
        return f"trial {self.number}" + (f" seed {self.seeds[place]}" if len(self.seeds) > 1 else "")

    def one(self, place: int, experiment: Resolved) -> dict[str, Any]:
        """The experiment of one seed."""
        heeded = self.validations if place == 0 else None
        ticket = Ticket(
            self.number * len(self.seeds) + place,
            self.pause,
            tested=False,
            report=(lambda step: step <= self.ruled) if heeded else None,
            on_queued=self.begun.set,
        )
        pipeline = StagePipeline(replace(experiment, name=self.who(place)), self.here, ticket, register=False)
        self.pipelines.append(pipeline)
        outcome = pipeline.run()
        last = outcome["stages"][-1]
        if heeded and last["reused"]:  # its validations were not reported
            finished = StageStorage(pipeline.storage, last["where"].rsplit("/", 1)[-1])
            for row in map(json.loads, (finished.get("curve.jsonl") or b"").splitlines()):
                heeded(MetricsLogged(num_steps=last["num_steps"], **row))
        return outcome


def told(stage: dict[str, Any]) -> dict[str, Any]:
    """What a trial keeps of a stage."""
    return {name: stage.get(name) for name in ("kind", "digest", "seconds", "peak_memory_mb", "run_id", "reused")}


def value_of(metric: str, stages: Sequence[dict[str, Any]]) -> float:
    """A metric of one experiment. UserError where the fine-tuning has none such, StageFailed where it is undefined."""
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
