"""The jobs of a worker group, in order. The queue lives in an actor, whose process knows nothing of what a job is."""

import math
import time
from enum import Enum, auto
from typing import Any

IDLE = 30.0  # seconds without a job after which the workers' CPUs and GPUs are given back


class Signal(Enum):
    """What a rank gets that asks for a job and there is none."""

    WAIT = auto()
    SHUTDOWN = auto()


class JobQueue:
    """The jobs, and which ranks have finished them. It closes for good with `close`, or after IDLE seconds."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self.finished: list[set[tuple[int, int]]] = []  # by job: the (rank, number of ranks) that have finished it
        self.allowed: list[float] = []  # by job: the last validated step that it may continue from
        self.cancelled: set[int] = set()
        self.answers: dict[tuple[int, int], bool] = {}  # by job and step: may it continue? The same for all ranks
        self.asking: dict[int, int] = {}  # by job: the step whose validation its ranks wait at
        self.starts = 0  # of the group
        self.closed = False
        self.since = time.monotonic()

    def put(self, job: Any, gated: bool = False) -> int | None:
        """The job's number; None where the queue is closed. gated: after each validation it waits for `allow`."""
        if self.closed:
            return None
        self.jobs.append(job)
        self.finished.append(set())
        self.allowed.append(0 if gated else math.inf)
        return len(self.jobs) - 1

    def first(self, rank: int) -> int:
        """The first job that is not done: where a rank begins that has just started."""
        self.starts += rank == 0
        return sum(self.done(number) for number in range(len(self.jobs)))

    def take(self, number: int) -> Any:
        """The job; or Signal.WAIT while it is not there, or Signal.SHUTDOWN where it will never be."""
        if number < len(self.jobs):
            return self.jobs[number]
        self.closed = self.closed or time.monotonic() - self.since > IDLE
        return Signal.SHUTDOWN if self.closed else Signal.WAIT

    def may_continue(self, number: int, step: int) -> bool | None:
        """Whether the job continues after the validation at `step`, alike for all ranks; None: not known yet."""
        if (number, step) not in self.answers:
            if number not in self.cancelled and step > self.allowed[number]:
                self.asking[number] = step
                return None
            self.answers[number, step] = number not in self.cancelled
        return self.answers[number, step]

    def asked_step(self, number: int) -> int | None:
        """The step of the validation at which the job waits for `allow`."""
        return self.asking.get(number)

    def allow(self, number: int, step: int) -> None:
        """The job may continue from the validation at `step`."""
        self.allowed[number] = max(self.allowed[number], step)
        self.asking.pop(number, None)

    def cancel(self, number: int) -> None:
        """The job ends at its next validation, without a result."""
        self.cancelled.add(number)

    def finish(self, number: int, rank: int, world: int) -> None:
        """Rank `rank` of `world` has finished: after a restart they may be fewer or more than before."""
        self.finished[number].add((rank, world))
        self.since = time.monotonic()

    def done(self, number: int) -> bool:
        """Whether all ranks of one start have finished the job."""
        worlds = [world for _, world in self.finished[number]]
        return any(worlds.count(world) == world for world in worlds)

    def fresh(self) -> bool:
        """Open, and its group was never restarted: each stage begins with all of `train.max_failures`."""
        return not self.closed and self.starts <= 1

    def close(self) -> None:
        self.closed = True
