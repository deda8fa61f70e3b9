"""A session: what all experiments of a command share, on Ray or in this process."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from premed.config.settings import Train
from premed.crew import Crew, actor
from premed.data.datamodule import Show
from premed.driver import Common, Trainer
from premed.errors import StageFailed, UserError
from premed.events import Event, RayStarting, WarningIssued
from premed.fleet import Fleet, Member, fits, workers_of
from premed.ledger import MLflowTracker
from premed.paths import settled_in
from premed.runs import RunStore
from premed.tracker import RetryingTracker
from premed.worker import StageJob, run_stage

TOLD = 0.5  # seconds between two looks at what the ledger has heard


class Session:
    """MLflowTracker and data (`common`), the workers (`fleet`) where there is a Ray, and the word that all is over."""

    def __init__(self, show: Show, ledger: Callable[[], Any], mapper: Callable[..., Iterable] | None):
        """ledger: makes it. mapper: Ray's, where there is one."""
        self.show, self.stopped, self.relaying = show, threading.Event(), threading.Lock()
        self.about: dict[str, dict[str, str]] = {}  # by the run of a stage: its kind, and of which experiment it is
        tracker = ledger()
        self.ledger = RetryingTracker(tracker, show, pause=self.pause)
        self.fleet: Fleet | None = None
        if mapper is not None:
            self.fleet = Fleet(lambda job: Crew(job.train, job.storage, tracker.handle), nodes, free)
            mapper = partial(mapper, fleet=self.fleet)
        self.common = Common(self.ledger, mapper, self.show_or_stop, self.pause)

    def pause(self, seconds: float) -> None:
        """Waits; raises KeyboardInterrupt where the command was stopped, in threads too that no signal reaches."""
        if self.stopped.wait(seconds):
            raise KeyboardInterrupt

    def show_or_stop(self, event: Event) -> None:
        self.pause(0)
        self.show(event)

    def alive(self) -> None:
        """StageFailed where Ray is gone, and the ledger with it: what fails then does not fail by itself."""
        self.ledger.lease_lost("")

    def member(self, number: int = 0) -> Member:
        """Experiment `number` as the fleet knows it."""
        return Member(number, self.pause)

    def trainer(self, member: Member, name: str = "", begun: Callable[[], None] = lambda: None) -> Trainer:
        """Trains the stages of an experiment, whose events name it; calls `begun` when a stage is in line."""

        def train(job: StageJob, run_id: str) -> None:
            self.about[run_id] = {"kind": job.stage.kind, "experiment": name}
            begun()
            try:
                if self.fleet is not None:
                    self.fleet.run(job, run_id, replace(member, tell=partial(self.tell, run_id)))
                else:
                    run_stage(job, partial(self.tell, run_id), lambda numbers: None)
            finally:
                self.relay()

        return train

    def tell(self, run_id: str, event: Event) -> None:
        self.ledger.record_event(run_id, event)
        self.relay()

    def relay(self) -> None:
        """Shows what the ledger has heard, with the kind of stage and the name of the experiment that it is of."""
        with self.relaying:
            for event in self.ledger.drain_events():
                self.show(replace(event, **self.about.get(event.run_id, {})))

    def keep_relaying(self, over: threading.Event) -> None:
        with suppress(StageFailed):  # the ledger ended: whoever asks it something hears of it
            while not over.wait(TOLD):
                self.relay()

    def close(self) -> None:
        """Shows and delivers what is left to tell."""
        self.stopped.clear()  # it ends in order, even where it was stopped
        self.relay()
        if left := self.ledger.close():
            told = f"MLflow has not heard {left} records; the next start delivers them"
            self.show(WarningIssued(told))


@contextmanager
def session(trains: Sequence[Train], show: Show) -> Iterator[Session]:
    """In this process where the first one's `train.workers` is 0, else on Ray.

    UserError where MLflow does not answer, or where the cluster can never place the workers.
    """
    home = settled_in()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
    settings = uri, str(home / "artifacts") if uri.startswith("sqlite") else None, str(home / "spool")
    if trains[0].workers:
        RunStore(*settings[:2])  # makes the database, and says in one line that a store does not answer, before Ray
    with ray_or_not(trains, show) as mapper:
        ledger = partial(MLflowTracker, *settings)
        here = Session(show, ledger if mapper is None else lambda: Remote(actor(MLflowTracker, *settings)), mapper)
        over = threading.Event()
        relay = threading.Thread(target=here.keep_relaying, args=(over,), name="premed relay", daemon=True)
        try:
            if here.fleet is None:
                yield here
            else:
                relay.start()
                yield here
                here.fleet.close()
        finally:
            over.set()
            if relay.is_alive():
                relay.join()
            here.close()


# ---- Ray


def nodes() -> list[dict[str, float]]:
    """What each node of the cluster has: those that are there, and those that its autoscaler may still start."""
    import ray

    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most, worker = autoscaling()
    alike = sum(all(node.get(name, 0) >= value for name, value in worker.items()) for node in there)
    return there + [dict(worker)] * (most - alike)


def free() -> Mapping[str, float]:
    """What nobody holds of what the cluster's nodes have."""
    import ray

    return ray.available_resources()


def autoscaling() -> tuple[int, dict[str, float]]:
    """How many workers there may be, and what each has, by PREMED_NODES (`8 CPU=8 GPU=1`): Ray does not tell."""
    said = os.environ.get("PREMED_NODES", "0")
    most, *resources = said.split()
    try:
        pairs = [each.split("=") for each in resources]
        return int(most), {name: float(value) for name, value in pairs}
    except ValueError:
        raise UserError(
            f"PREMED_NODES={said}: say how many workers there may be and what each has: 8 CPU=8 GPU=1"
        ) from None


@contextmanager
def ray_or_not(trains: Sequence[Train], show: Show) -> Iterator[Callable[..., Iterable] | None]:
    """Ray for as long as the context lasts, and its mapper; nothing where the first one's `train.workers` is 0."""
    if trains[0].workers == 0:
        yield None
        return
    import ray

    show(RayStarting())
    # never a cluster nobody named: RAY_ADDRESS, or one of our own
    address = os.environ.get("RAY_ADDRESS") or "local"
    # else Ray warns of more processes than CPUs, and most of ours only wait and listen
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "32")
    try:
        with own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError) as error:
        if "InvalidAuthToken" in f"{error.__cause__} {error.__context__}":
            mend = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) to its own"
            raise UserError(f"RAY_ADDRESS={address} wants a token: {mend}") from error
        raise UserError(f"RAY_ADDRESS={address} does not answer: start that cluster or unset the variable") from error
    try:
        for train in trains:
            admit(train)
        yield ray_map
    finally:
        ray.shutdown()


def admit(train: Train) -> None:
    """Refuses what this cluster can never place, saying what it needs and what there is."""
    there = nodes()
    workers = train.fewest
    for resource, needed in (("CPU", workers * train.cpus), ("GPU", float(workers * train.gpu))):
        if needed > (most := sum(node.get(resource, 0) for node in there)):
            raise UserError(
                f"train.workers: {workers} workers need {needed:g} {resource}s and the cluster has "
                f"{most:g}; lower train.workers, or train.cpus per worker, or add nodes"
            )
    if not fits(there, workers_of(train, workers)):
        room = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in there)
        raise UserError(
            f"train.cpus: {workers} workers of {train.cpus:g} CPUs{' and a GPU' * train.gpu} find no place on "
            f"nodes with {room}; lower train.cpus or train.workers"
        )


def ray_map(function: Callable, items: Iterable[Any], fleet: Fleet | None = None) -> Iterator[Any]:
    """`function` over `items` as Ray tasks, results as they come; never more under way than there are CPUs.

    fleet: where it holds CPUs, those count that are free or that its workers do not use now.
    """
    import ray

    remote: Any = ray.remote
    held = fleet is not None and fleet.held() > 0
    task = remote(num_cpus=0 if held else 1, scheduling_strategy="SPREAD")(function)
    free = ray.available_resources() if held else ray.cluster_resources()
    most = max(1, int(free.get("CPU", 0 if held else 1) + (fleet.idle() if fleet and held else 0)))
    running: list[Any] = []
    for item in items:
        if len(running) >= most:
            done, running = ray.wait(running)
            yield ray.get(done[0])
        running.append(task.remote(item))
    while running:
        done, running = ray.wait(running)
        yield ray.get(done[0])


class Remote:
    """An actor's handle that is called like the object itself, and fails like it."""

    def __init__(self, handle: Any):
        self.handle = handle

    def __getattr__(self, method: str) -> Callable:
        import ray
        from ray.exceptions import RayError, RayTaskError

        def call(*args: Any) -> Any:
            try:
                return ray.get(getattr(self.handle, method).remote(*args))
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:  # it died, or Ray ended it for want of memory
                raise StageFailed(
                    "the ledger's process ended; the same command goes on from the last checkpoint"
                ) from error

        return call


@contextmanager
def own_signals() -> Iterator[None]:
    """Ray puts its own handlers in; afterwards Ctrl-C and SIGTERM do again what they did."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
