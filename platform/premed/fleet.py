"""Who trains next, and on which workers: stages stand in line for a crew, as many at once as the cluster has room for.

A test goes before a pre-training, and that before a fine-tuning, for others wait for it; then the experiments' order
counts. Only the first in line is served, so that a large stage does not starve behind small ones. A crew that is
through with a fine-tuning stays with its experiment, whose test comes next, until that ends or has to wait.
"""

import threading
import time
from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from premed.config.settings import Kind, Train
from premed.crew import Crew
from premed.events import EventHandler, WaitingForResources
from premed.worker import Job

ORDER: dict[Kind, int] = {"test": 0, "trunk": 1, "pretrain": 1, "cooldown": 1, "finetune": 2}
LOOK = 0.2  # seconds between two looks at whether there is room now
PATIENCE = 30.0  # seconds after which a stage says what it waits for
GLANCE = 5.0  # seconds between two looks at whether its workers have a place
Resources = Mapping[str, float]


@dataclass(frozen=True)
class Member:
    """Who asks for a crew: one of a command's experiments."""

    number: int
    """Its place in their order."""
    pause: Callable[[float], None]
    """See `driver.Common`."""
    tested: bool = True
    """Its test follows its fine-tuning."""
    ruling: Callable[[], float] | None = None
    """Of its fine-tuning; see `Crew.run`."""
    tell: EventHandler = lambda event: None
    """Takes what there is to say of its stage."""


class Fleet:
    """The crews of a command. Called by the threads of its experiments, it runs a stage to its end.

    hire: makes a crew for a job. nodes: what each node of the cluster has. free: what nobody holds of all that.
    """

    def __init__(
        self,
        hire: Callable[[Job], Crew],
        nodes: Callable[[], Sequence[Resources]],
        free: Callable[[], Resources] = lambda: {},
    ):
        self.hire, self.nodes, self.free = hire, nodes, free
        self.change = threading.Condition()
        self.line: list[tuple[int, int, int]] = []
        self.tickets = count()
        self.crews: list[Crew] = []
        self.busy: list[Crew] = []
        self.kept: dict[int, Crew] = {}  # by experiment

    def run(self, job: Job, run_id: str, of: "Member") -> None:
        """Trains the stage of an experiment, waiting for its turn. Raises what ended the workers."""
        through, number, short = False, of.number, Shortage(lambda: of.tell(self.shortage(job)))
        ruling = of.ruling if job.stage.kind == "finetune" else None
        while not through:
            crew = self.take(job, of, short)
            try:
                through = crew.run(job, run_id, of.pause, ruling, short)
            finally:
                with self.change:
                    self.busy.remove(crew)
                    if job.stage.kind == "finetune" and of.tested:
                        self.kept[number] = crew
                    self.change.notify_all()

    def leave(self, number: int) -> None:
        """The experiment wants no crew for now."""
        with self.change:
            self.kept.pop(number, None)
            self.change.notify_all()

    def take(self, job: Job, of: "Member", short: "Shortage") -> Crew:
        """A crew for the job, once it is its turn."""
        number = of.number
        with self.change:
            ticket = (ORDER[job.stage.kind], number, next(self.tickets))
            insort(self.line, ticket)
            try:
                while True:
                    if (crew := self.kept.pop(number, None)) and crew.suits(job):
                        break
                    if self.line[0] == ticket and (crew := self.found(job)):
                        break
                    if self.line[0] == ticket:
                        short()
                    self.change.wait(LOOK)
                    of.pause(0)
            finally:
                self.line.remove(ticket)
                self.change.notify_all()
            self.busy.append(crew)
            return crew

    def found(self, job: Job) -> Crew | None:
        """An idle crew that suits, or a new one if there is room; where there is none, idle ones make it."""
        for crew in [crew for crew in self.crews if not crew.alive and crew not in self.busy]:
            self.crews.remove(crew)
            crew.close()
        idle = [crew for crew in self.crews if crew not in self.busy and crew not in self.kept.values()]
        if crew := next((crew for crew in idle if crew.suits(job)), None):
            return crew
        held = [worker for crew in self.crews for worker in workers_of(crew.train, crew.train.most)]
        if not self.crews or fits(self.nodes(), [*held, *workers_of(job.train, job.train.fewest)]):
            self.crews.append(crew := self.hire(job))
            return crew
        for crew in idle:
            crew.dismiss()
        return None

    def shortage(self, job: Job) -> WaitingForResources:
        """What a stage needs, what nobody holds of it, and what there is."""
        train, nodes, free = job.train, self.nodes(), self.free()
        kinds = ["CPU", *["GPU"] * train.gpu]
        return WaitingForResources(
            job.stage.kind,
            workers=train.fewest,
            cpus=train.cpus,
            gpu=train.gpu,
            free={kind: free.get(kind, 0.0) for kind in kinds},
            total={kind: sum(node.get(kind, 0.0) for node in nodes) for kind in kinds},
        )

    def held(self) -> float:
        """The CPUs that the workers hold."""
        with self.change:
            return sum(crew.train.most * crew.train.cpus for crew in self.crews if crew.alive)

    def idle(self) -> float:
        """Those of them that do nothing now."""
        with self.change:
            idle = [crew for crew in self.crews if crew.alive and crew not in self.busy]
            return sum(crew.train.most * crew.train.cpus for crew in idle)

    def close(self) -> None:
        """Lets all workers go, and waits until they have."""
        for crew in self.crews:
            crew.dismiss()
        for crew in self.crews:
            crew.close()


class Shortage:
    """Asked again and again, it says once that something was lacking for a while."""

    def __init__(self, say: Callable[[], None]):
        self.say, self.said = say, False
        self.since = self.looked = time.monotonic()

    def __call__(self, lacking: Callable[[], bool] = lambda: True) -> None:
        now = time.monotonic()
        if now - self.looked < GLANCE:
            return
        self.looked = now
        if not lacking():
            self.since, self.said = now, False
        elif not self.said and now - self.since > PATIENCE:
            self.said = True
            self.say()


def workers_of(train: Train, number: int) -> list[Resources]:
    """What each of so many workers holds."""
    return [{"CPU": train.cpus, "GPU": float(train.gpu)}] * number


def fits(nodes: Iterable[Resources], workers: Iterable[Resources]) -> bool:
    """Whether all workers find a place on the nodes at once: the largest first, each on the first node with room."""
    left = [dict(node) for node in nodes]
    for worker in sorted(workers, key=lambda worker: (worker["GPU"], worker["CPU"]), reverse=True):
        for node in left:
            if all(node.get(name, 0) >= needed - 1e-9 for name, needed in worker.items()):
                break
        else:
            return False
        for name, needed in worker.items():
            node[name] = node.get(name, 0) - needed
    return True
