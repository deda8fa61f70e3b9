"""Where the stages of an experiment run: in this process, or on worker groups of a Ray cluster."""

from collections.abc import Callable
from typing import Protocol

from premed.config.spec import Spec
from premed.contracts import Task
from premed.events import EventHandler
from premed.execution.scheduler import Scheduler, Ticket
from premed.training.setup import StageJob
from premed.training.stage import run_stage

POLL = 0.2  # seconds between two questions to `report`

Report = Callable[[int], bool]
"""Whether a stage may continue from the validation at a step; called again and again until it may."""


class Executor(Protocol):
    """Runs the stages of one experiment, one after the other."""

    def run_stage(self, job: StageJob, events: EventHandler, report: Report | None = None) -> None:
        """Runs the stage until its storage holds `result.json`, or `failure.json` where a retry would not help.

        Raises what ended it otherwise, and CalledOff where it was stopped. events: takes what the first worker reports;
        it may be called in another process. report: called after each validation; None lets the stage run to its end.
        """

    def release(self) -> None:
        """The experiment waits for another, or has ended: it keeps no workers."""


class LocalExecutor:
    """In this process: `train.workers` is 0."""

    def __init__(self, tasks: Callable[[Spec], Task], pause: Callable[[float], None]):
        self.tasks, self.pause = tasks, pause

    def run_stage(self, job: StageJob, events: EventHandler, report: Report | None = None) -> None:
        def reported(numbers: dict[str, float]) -> None:
            while report is not None and not report(int(numbers["step"])):
                self.pause(POLL)

        run_stage(job, events, reported, self.tasks)

    def release(self) -> None:
        pass


class RayExecutor:
    """On a worker group of the command's scheduler."""

    def __init__(self, scheduler: Scheduler, ticket: Ticket):
        self.scheduler, self.ticket = scheduler, ticket

    def run_stage(self, job: StageJob, events: EventHandler, report: Report | None = None) -> None:
        self.ticket.on_queued()
        self.scheduler.run(job, events, report, self.ticket)

    def release(self) -> None:
        self.scheduler.release(self.ticket.number)
        self.ticket.on_queued()
