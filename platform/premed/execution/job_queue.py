"""The jobs of a worker group, in order. The queue is a Ray actor, whose process never unpickles a job."""

import math
import time
from enum import Enum, auto
from typing import Any

IDLE = 30.0  # seconds without a job after which the workers end, to free their CPUs and GPUs


class Signal(Enum):
    """What `JobQueue.take` returns if there is no job."""

    WAIT = auto()
    SHUTDOWN = auto()


class JobQueue:
    """The jobs, and which ranks have finished them. `close`, or IDLE seconds without a job, close it for good."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self.finished: list[set[tuple[int, int]]] = []  # by job: the (rank, number of ranks) that have finished it
        self.allowed: list[float] = []  # by job: the last validated step that it may continue from
        self.cancelled: set[int] = set()
        self.stopped: set[int] = set()
        self.training: set[int] = set()  # jobs whose first rank has asked `stopping`
        self.answers: dict[tuple[int, int], bool] = {}  # by job and step: whether it may continue, on all ranks
        self.asking: dict[int, int] = {}  # by job: the step at whose validation its ranks wait
        self.starts = 0  # of the group
        self.closed = False
        self.since = time.monotonic()

    def put(self, job: Any, gated: bool = False) -> int | None:
        """Adds a job; returns its number, None if the queue is closed. gated: validations wait for `allow`."""
        if self.closed:
            return None
        self.jobs.append(job)
        self.finished.append(set())
        self.allowed.append(0 if gated else math.inf)
        return len(self.jobs) - 1

    def first(self, rank: int) -> int:
        """The number of the first job that is not done, with which a newly started rank begins."""
        self.starts += rank == 0
        return sum(self.done(number) for number in range(len(self.jobs)))

    def take(self, number: int) -> Any:
        """Returns the job; Signal.WAIT if there is none yet; Signal.SHUTDOWN if there will be none."""
        if number in self.stopped:
            return Signal.SHUTDOWN
        if number < len(self.jobs):
            return self.jobs[number]
        self.closed = self.closed or time.monotonic() - self.since > IDLE
        return Signal.SHUTDOWN if self.closed else Signal.WAIT

    def may_continue(self, number: int, step: int) -> bool | None:
        """Whether the job continues after the validation at `step`, the same for all ranks; None: not decided yet."""
        if (number, step) not in self.answers:
            if number not in self.cancelled | self.stopped and step > self.allowed[number]:
                self.asking[number] = step
                return None
            self.answers[number, step] = number not in self.cancelled
        return self.answers[number, step]

    def asked_step(self, number: int) -> int | None:
        """The step of the validation at which the job waits for `allow`."""
        return self.asking.get(number)

    def allow(self, number: int, step: int) -> None:
        """Lets the job continue from the validation at `step`."""
        self.allowed[number] = max(self.allowed[number], step)
        self.asking.pop(number, None)

    def cancel(self, number: int) -> None:
        """Ends the job at its next validation, without a result."""
        self.cancelled.add(number)

    def stop(self, number: int) -> bool:
        """Ends the job after a checkpoint, and the group; returns whether there is a training to wait for."""
        self.closed = True
        self.stopped.add(number)
        return number in self.training and not self.first_done(number)

    def stopping(self, number: int) -> bool:
        """Whether the job is to end after a checkpoint. The first rank asks while it trains."""
        self.training.add(number)
        return number in self.stopped

    def first_done(self, number: int) -> bool:
        """Whether the first rank, which writes checkpoints and results, has finished the job."""
        return any(rank == 0 for rank, _ in self.finished[number])

    def finish(self, number: int, rank: int, world: int) -> None:
        """Records that rank `rank` of `world` has finished; a restart may change `world`."""
        self.finished[number].add((rank, world))
        self.since = time.monotonic()

    def done(self, number: int) -> bool:
        """Whether all ranks of one start have finished the job."""
        worlds = [world for _, world in self.finished[number]]
        return any(worlds.count(world) == world for world in worlds)

    def fresh(self) -> bool:
        """Whether it is open and its group was never restarted: then a stage has all of `train.max_failures` left."""
        return not self.closed and self.starts <= 1

    def close(self) -> None:
        self.closed = True
