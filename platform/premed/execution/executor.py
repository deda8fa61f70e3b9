"""Where the stages of an experiment run: in this process, or on worker groups of a Ray cluster."""

from collections.abc import Callable
from typing import Protocol

from premed.config.spec import Spec
from premed.contracts import Task
from premed.errors import StageFailed
from premed.events import EventHandler
from premed.execution.scheduler import Scheduler, Ticket
from premed.training.setup import StageJob
from premed.training.stage import run_stage
from premed.training.watchdog import stuck_workers

POLL = 0.2  # seconds between two calls of `report`

Report = Callable[[int], bool]
"""Returns whether a stage may continue from the validation at a step; called repeatedly until it may."""


class Executor(Protocol):
    """Runs the stages of one experiment, one after the other."""

    def run_stage(self, job: StageJob, events: EventHandler, report: Report | None = None) -> None:
        """Runs the stage until its storage holds `result.json`, or `failure.json` if a retry would not help.

        Otherwise raises the error that ended it; CalledOff if it was cancelled. events: called with the events of the
        first worker, perhaps in another process. report: called after each validation; None: the stage never waits.
        """

    def release(self) -> None:
        """Gives up the workers that are reserved for the experiment: it waits for another, or has ended."""


class LocalExecutor:
    """Runs stages in this process: `train.workers` is 0."""

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
    """Runs stages on the worker groups of the command's scheduler."""

    def __init__(self, scheduler: Scheduler, ticket: Ticket):
        self.scheduler, self.ticket = scheduler, ticket

    def run_stage(self, job: StageJob, events: EventHandler, report: Report | None = None) -> None:
        self.ticket.on_queued()
        try:
            self.scheduler.run(job, events, report, self.ticket)
        except Exception as error:
            if lines := stuck_workers(job.stage_storage):
                raise StageFailed("; ".join(lines)) from error
            raise

    def release(self) -> None:
        self.scheduler.release(self.ticket.number)
        self.ticket.on_queued()
