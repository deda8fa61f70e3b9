"""Where workers find their jobs, in order. It lives in an actor, whose process knows nothing of what a job is."""

import math
import time
from typing import Any

IDLE = 30.0  # seconds without a job after which the workers' CPUs and GPUs are given back


class Desk:
    """The jobs, in order, and which of them are done. It closes for good when told to, or after IDLE seconds."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, str]] = []
        self.finished: list[set[tuple[int, int]]] = []  # by job: the ranks (of how many) that are through with it
        self.ruled: list[float] = []  # by job: the last validated step that it may go on from
        self.called_off: set[int] = set()
        self.said: dict[tuple[int, int], bool] = {}  # by job and step: what its ranks were told
        self.starts = 0  # of all ranks together
        self.closed = False
        self.since = time.monotonic()

    def put(self, job: Any, run_id: str, ruled: bool = False) -> int | None:
        """The job's number; None where the desk is closed. ruled: it waits after each validation for leave to go on."""
        if self.closed:
            return None
        self.jobs.append((job, run_id))
        self.finished.append(set())
        self.ruled.append(0 if ruled else math.inf)
        return len(self.jobs) - 1

    def first(self, rank: int) -> int:
        """Where a rank begins that was just started."""
        self.starts += rank == 0
        return sum(self.done(number) for number in range(len(self.jobs)))

    def take(self, number: int) -> tuple[Any, str] | str:
        """The job; or `wait`, or `go home`."""
        if number < len(self.jobs):
            return self.jobs[number]
        self.closed = self.closed or time.monotonic() - self.since > IDLE
        return "go home" if self.closed else "wait"

    def may_go_on(self, number: int, step: int) -> bool | None:
        """After the validation at `step`; the same for all ranks. None: that is not known yet."""
        if (number, step) not in self.said:
            if number not in self.called_off and step > self.ruled[number]:
                return None
            self.said[number, step] = number not in self.called_off
        return self.said[number, step]

    def rule(self, number: int, step: float) -> None:
        """The job may go on from the validation at `step`."""
        self.ruled[number] = max(self.ruled[number], step)

    def call_off(self, number: int) -> None:
        """The job ends at its next validation, with nothing to show."""
        self.called_off.add(number)

    def finish(self, number: int, rank: int, world: int) -> None:
        """Rank `rank` of `world` is through: after a start they may be fewer or more than before."""
        self.finished[number].add((rank, world))
        self.since = time.monotonic()

    def done(self, number: int) -> bool:
        worlds = [world for _, world in self.finished[number]]
        return any(worlds.count(world) == world for world in worlds)

    def fresh(self) -> bool:
        """Open still, and no rank was ever started again: each stage has all of `max_failures` before it."""
        return not self.closed and self.starts <= 1

    def close(self) -> None:
        self.closed = True
