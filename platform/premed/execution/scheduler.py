"""Scheduler: which stage runs next, and on which worker group; as many run at once as the cluster has resources for.

Tests come before pre-trainings, for which others wait, and these before fine-tunings; then the order of the experiments
counts. Only the first in line may start, so that a large stage does not starve behind small ones. A group that has
finished a fine-tuning stays reserved for its experiment, whose test comes next, until the experiment waits or ends.
"""

import threading
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from premed.config.settings import Kind
from premed.events import EventHandler, WaitingForResources
from premed.execution.cluster import Resources, fits, workers_of
from premed.execution.worker_group import LEAVE, WorkerGroup
from premed.training.setup import StageJob

ORDER: dict[Kind, int] = {"test": 0, "trunk": 1, "pretrain": 1, "cooldown": 1, "finetune": 2}
POLL = 0.2  # seconds between two checks for free resources
SHORTAGE_NOTICE = 30.0  # seconds after which a stage reports what it waits for
SHORTAGE_POLL = 5.0  # seconds between two checks whether its workers are placed


@dataclass(frozen=True)
class Ticket:
    """An experiment's place in the order of its command, and the callbacks of its stages."""

    number: int
    """Its place in the order."""
    pause: Callable[[float], None]
    """Waits so many seconds. Raises KeyboardInterrupt if the command was stopped, CalledOff if the experiment was."""
    tested: bool = True
    """Whether a test follows its fine-tuning."""
    report: Callable[[int], bool] | None = None
    """Returns whether its fine-tuning may continue from the validation at a step; see `Executor.run_stage`."""
    on_queued: Callable[[], None] = lambda: None
    """Called when a stage is queued, or has to wait: the next experiment may start."""


class Scheduler:
    """The worker groups of a command. The threads of its experiments call `run`, which runs a stage to its end.

    start_group: starts a group for a job. nodes: returns the resources of each node. free: returns those not reserved.
    """

    def __init__(
        self,
        start_group: Callable[[StageJob], WorkerGroup],
        nodes: Callable[[], Sequence[Resources]],
        free: Callable[[], Resources] = lambda: {},
    ):
        self.start_group, self.nodes, self.free = start_group, nodes, free
        self.change = threading.Condition()
        self.line: list[tuple[int, int, int]] = []
        self.arrivals = count()
        self.groups: list[WorkerGroup] = []
        self.busy: list[WorkerGroup] = []
        self.reserved: dict[int, WorkerGroup] = {}  # by experiment

    def run(self, job: StageJob, events: EventHandler, report: Callable[[int], bool] | None, ticket: Ticket) -> None:
        """Runs a stage on a worker group when its turn comes. Raises the error that ended the workers."""
        finished, notice = False, ShortageNotice(lambda: events(self.shortage(job)))
        while not finished:
            group = self.acquire(job, ticket)
            try:
                finished = group.run(job, events, report, ticket.pause, notice)
            finally:
                with self.change:
                    self.busy.remove(group)
                    if job.stage.kind == "finetune" and ticket.tested:
                        self.reserved[ticket.number] = group
                    self.change.notify_all()

    def release(self, number: int) -> None:
        """Ends the reservation of a group for the experiment with this number."""
        with self.change:
            self.reserved.pop(number, None)
            self.change.notify_all()

    def acquire(self, job: StageJob, ticket: Ticket) -> WorkerGroup:
        """Waits for the job's turn, behind this command's other stages alone, and returns a group for it."""
        number = ticket.number
        with self.change:
            place = (ORDER[job.stage.kind], number, next(self.arrivals))
            insort(self.line, place)
            try:
                while True:
                    if (group := self.reserved.pop(number, None)) and group.suits(job):
                        break
                    if self.line[0] == place and (group := self.available(job)):
                        break
                    self.change.wait(POLL)
                    ticket.pause(0)
            finally:
                self.line.remove(place)
                self.change.notify_all()
            self.busy.append(group)
            return group

    def available(self, job: StageJob) -> WorkerGroup | None:
        """Returns an idle group that suits, or a new one if it fits; else ends the idle groups and returns None."""
        for group in [group for group in self.groups if not group.alive and group not in self.busy]:
            self.groups.remove(group)
            group.close()
        idle = [group for group in self.groups if group not in self.busy and group not in self.reserved.values()]
        if group := next((group for group in idle if group.suits(job)), None):
            return group
        held = [worker for group in self.groups for worker in workers_of(group.train, group.train.max_workers)]
        if not self.groups or fits(self.nodes(), [*held, *workers_of(job.train, job.train.min_workers)]):
            self.groups.append(group := self.start_group(job))
            return group
        for group in idle:
            group.dismiss()
        return None

    def shortage(self, job: StageJob) -> WaitingForResources:
        """The resources that a stage needs, how many of them are free, and how many the nodes have."""
        train, nodes, free = job.train, self.nodes(), self.free()
        kinds = ["CPU", *["GPU"] * train.gpu]
        return WaitingForResources(
            job.stage.kind,
            workers=train.min_workers,
            cpus=train.cpus,
            gpu=train.gpu,
            free={kind: free.get(kind, 0.0) for kind in kinds},
            total={kind: sum(node.get(kind, 0.0) for node in nodes) for kind in kinds},
        )

    def held(self) -> float:
        """The number of CPUs that workers reserve."""
        with self.change:
            return sum(group.train.max_workers * group.train.cpus for group in self.groups if group.alive)

    def idle(self) -> float:
        """The number of CPUs that workers without a job reserve."""
        with self.change:
            idle = [group for group in self.groups if group.alive and group not in self.busy]
            return sum(group.train.max_workers * group.train.cpus for group in idle)

    def leave(self) -> None:
        """Ends the workers of a command that ends early, also those without a job, and waits for them, but not long."""
        alive = [group for group in self.groups if group.alive]
        for group in alive:
            group.dismiss()
        deadline = time.monotonic() + LEAVE
        for group in alive:
            group.wait(deadline)

    def close(self) -> None:
        """Ends all workers, and waits until they have ended."""
        for group in self.groups:
            group.dismiss()
        for group in self.groups:
            group.close()


class ShortageNotice:
    """Called repeatedly; notifies once when resources have been lacking for SHORTAGE_NOTICE seconds."""

    def __init__(self, notify: Callable[[], None]):
        self.notify, self.notified = notify, False
        self.since = self.looked = time.monotonic()

    def __call__(self, lacking: Callable[[], bool]) -> None:
        now = time.monotonic()
        if now - self.looked < SHORTAGE_POLL:
            return
        self.looked = now
        if not lacking():
            self.since, self.notified = now, False
        elif not self.notified and now - self.since > SHORTAGE_NOTICE:
            self.notified = True
            self.notify()
