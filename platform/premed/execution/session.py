"""A session: what all experiments of a command share, in this process or on Ray."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

from premed.config.experiment import Stage
from premed.config.settings import PRETRAINING, Kind, Train
from premed.config.spec import Spec, without_scoring
from premed.data.cache import Cache, Mapper, Progress
from premed.data.datamodule import DataModule, Tasks, stage_content, stage_data_sets
from premed.data.leakage import record, refuse_leaks, refuse_recorded_leaks
from premed.errors import StageFailed
from premed.events import Event, EventHandler, ImagesCompared, WarningIssued
from premed.execution.cluster import Remote, RemoteEvents, actor, free, nodes, ray_cluster, ray_map
from premed.execution.executor import Executor, LocalExecutor, RayExecutor
from premed.execution.preflight import Resolved, asks_nothing, other_tasks
from premed.execution.scheduler import Scheduler, Ticket
from premed.execution.single_flight import SingleFlight
from premed.execution.worker_group import WorkerGroup
from premed.paths import ensure_home, home
from premed.tracking.client import locate_store
from premed.tracking.mlflow_tracker import MLflowTracker
from premed.tracking.run_store import RunStore
from premed.tracking.tracker import RetryingTracker, Tracker

POLL = 0.5  # seconds between two looks at the tracker's events


class Session:
    """The tracker, the tasks and their prepared images, the results so far, and whether the command was stopped."""

    concurrent: bool
    """Whether several experiments may run at once."""

    def __init__(self, tracker: Tracker, tasks: Tasks, mapper: Callable[..., Iterable], show: EventHandler):
        """mapper: prepares images in parallel; see `Cache.prepare`."""
        self.tasks, self.mapper, self.show = tasks, mapper, show
        self.stopped, self.relaying = threading.Event(), threading.Lock()
        self.stages: dict[str, dict[str, str]] = {}  # by run: kind and experiment, which events of the run do not name
        self.tracker = RetryingTracker(tracker, show, pause=self.pause)
        self.results = SingleFlight()

    def executor(self, ticket: Ticket) -> Executor:
        """Returns what runs the stages of the ticket's experiment."""
        raise NotImplementedError

    def handler(self, run_id: str) -> EventHandler:
        """Returns a handler for the events of a run's stage, wherever that runs: they are recorded, then shown."""
        raise NotImplementedError

    def stage_events(self, run_id: str, kind: Kind, experiment: str) -> EventHandler:
        """Returns the same; the events are shown with the stage's kind and the experiment's name."""
        self.stages[run_id] = {"kind": kind, "experiment": experiment}
        return self.handler(run_id)

    def data(self, config: Spec) -> DataModule:
        """A task's images: the same for all experiments on it, however they score it."""
        key = "data", without_scoring(config).model_dump_json()
        return self.results(key, lambda: DataModule(self.tasks(config), self.mapper, self.show_or_stop))[0]

    def fingerprint(self, config: Spec, kind: Kind) -> str:
        """Prepares the images of a task that a stage of that kind needs, once, and returns what identifies them."""
        kind = "pretrain" if kind in PRETRAINING else kind
        key = "fingerprint", kind, without_scoring(config).model_dump_json()
        return self.results(key, lambda: self.data(config).fingerprint(kind), pause=self.pause)[0]

    def content(self, stage: Stage) -> str | None:
        """What the files that a stage reads held when the stage was identified; None of an import, which reads none."""
        if stage.kind == "import":
            return None
        known = {file: hash for each in stage.sources for file, hash in self.data(each.task).known.items()}
        return stage_content(stage, stage_data_sets(stage, self.tasks), Cache(home() / "cache"), known)

    def refuse_leaks(self, resolved: Resolved) -> None:
        """Raises UserError if the pre-training shows images that the task keeps for val or test: another data set of
        its own, or one of the finished pre-training that the experiment names.

        Reads images; each two data sets are compared once in a command.
        """
        experiment, finished = resolved.experiment, resolved.pretrained
        task, compared = self.tasks(experiment.task), without_scoring(experiment.task).model_dump_json()
        if finished is not None:
            data_sets, where = finished.record["data_sets"], f"pretrain.encoder: {finished.reference}"
            refuse = partial(refuse_recorded_leaks, task, data_sets, experiment.test, *self.hashing(), where)
            self.results(("leaks", compared, finished.digest, experiment.test), refuse, pause=self.pause)
        if asks_nothing(experiment, task):
            return
        for config in other_tasks(experiment):
            name = without_scoring(config).model_dump_json()
            refuse = partial(refuse_leaks, task, self.tasks(config), experiment.test, *self.hashing())
            self.results(("leaks", compared, name, experiment.test), refuse, pause=self.pause)

    def record(self, configs: Sequence[Spec]) -> list[dict[str, Any]]:
        """Records the images of a pre-training's data sets, for fine-tunings elsewhere. Reads each once."""
        return [record(self.tasks(config), *self.hashing()) for config in configs]

    def hashing(self) -> tuple[Cache, Mapper, Progress]:
        """Where hashes of images are kept, how they are computed in parallel, and how that is shown."""
        progress = lambda done, total: self.show_or_stop(ImagesCompared(done, total))  # noqa: E731
        return Cache(home() / "cache"), self.mapper, progress

    # ---- stopping, and what is shown

    def pause(self, seconds: float) -> None:
        """Waits; raises KeyboardInterrupt if the command was stopped, also in threads, which receive no signals."""
        if self.stopped.wait(seconds):
            raise KeyboardInterrupt

    def show_or_stop(self, event: Event) -> None:
        self.pause(0)
        self.show(event)

    def ensure_alive(self) -> None:
        """Raises StageFailed if Ray has died, and the tracker with it; this is then the cause of other failures."""
        self.tracker.lease_lost("")

    def relay(self) -> None:
        """Shows the events that the tracker received since the last call."""
        with self.relaying:
            for event in self.tracker.drain_events():
                self.show(replace(event, **self.stages.get(event.run_id, {})))

    def close(self) -> None:
        """Shows the last events and delivers to MLflow what is still to be written."""
        self.stopped.clear()  # else the tracker's retries would raise KeyboardInterrupt
        self.relay()
        left = self.tracker.close()
        self.relay()  # what closing had to tell
        if left:
            self.show(WarningIssued(f"{left} records have not reached MLflow yet; the next start delivers them"))


class LocalSession(Session):
    """Runs in this process, one experiment after the other."""

    concurrent = False

    def __init__(self, settings: tuple, tasks: Tasks, show: EventHandler):
        super().__init__(MLflowTracker(*settings), tasks, map, show)

    def executor(self, ticket: Ticket) -> Executor:
        return LocalExecutor(self.tasks, ticket.pause)

    def handler(self, run_id: str) -> EventHandler:
        def handle(event: Event) -> None:
            self.tracker.record_event(run_id, event)
            self.relay()

        return handle


class RaySession(Session):
    """Runs on Ray: the tracker is an actor, and stages run on worker groups, as many at once as resources allow."""

    concurrent = True

    def __init__(self, settings: tuple, tasks: Tasks, show: EventHandler):
        self.handle = actor(MLflowTracker, *settings)
        self.scheduler = Scheduler(lambda job: WorkerGroup(job.train, job.storage), nodes, free)
        mapper = partial(ray_map, held=self.scheduler.held, idle=self.scheduler.idle)
        super().__init__(cast(Tracker, Remote(self.handle, "MLflow tracker")), tasks, mapper, show)

    def executor(self, ticket: Ticket) -> Executor:
        return RayExecutor(self.scheduler, ticket)

    def handler(self, run_id: str) -> EventHandler:
        return RemoteEvents(self.handle, run_id)

    @contextmanager
    def keep_relaying(self) -> Iterator[None]:
        """Shows what workers report for as long as the context lasts."""
        over = threading.Event()

        def loop() -> None:
            with suppress(StageFailed):  # the tracker's process ended; its next caller gets the error
                while not over.wait(POLL):
                    self.relay()

        thread = threading.Thread(target=loop, name="premed relay", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def open_session(trains: Sequence[Train], tasks: Tasks, show: EventHandler) -> Iterator[Session]:
    """Yields a LocalSession if the first `train.workers` is 0, else a RaySession; closes it afterwards.

    Raises UserError if MLflow does not answer, or if the cluster can never place the workers.
    """
    settings = (*locate_store(), str(ensure_home() / "spool"))
    if trains[0].workers == 0:
        local = LocalSession(settings, tasks, show)
        try:
            yield local
        finally:
            local.close()
        return
    RunStore(*settings[:2])  # creates the database, and raises a one-line error if the store does not answer
    with ray_cluster(trains, show):
        session = RaySession(settings, tasks, show)
        try:
            with session.keep_relaying():
                yield session
                session.scheduler.close()
        finally:
            session.close()
