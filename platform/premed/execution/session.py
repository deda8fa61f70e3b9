"""A session: what all experiments of a command share, in this process or on Ray."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

from premed.config.experiment import Stage
from premed.config.settings import PRETRAINING, Kind, Train
from premed.config.spec import Spec, without_scoring
from premed.data.cache import Cache, Mapper, Progress
from premed.data.datamodule import DataModule, Tasks, join_fingerprints, stage_content, stage_data_sets
from premed.data.leakage import record, refuse_leaks, refuse_recorded_leaks
from premed.data.splits import is_unlabelled
from premed.errors import StageFailed, Stopped
from premed.events import Event, EventHandler, ImagesCompared, WarningIssued
from premed.execution.cluster import Remote, RemoteEvents, actor, free, nodes, ray_cluster, ray_map
from premed.execution.executor import Executor, LocalExecutor, RayExecutor
from premed.execution.preflight import Resolved, asks_nothing, learns_from_itself, other_tasks
from premed.execution.recorder import DOING
from premed.execution.scheduler import Scheduler, Ticket
from premed.execution.single_flight import SingleFlight
from premed.execution.worker_group import WorkerGroup
from premed.paths import ensure_home, home
from premed.tracking.client import locate_store
from premed.tracking.mlflow_tracker import MLflowTracker
from premed.tracking.run_store import RunStore
from premed.tracking.tracker import RetryingTracker, Tracker
from premed.training import stopping
from premed.training.checkpoint import CheckpointManager
from premed.training.storage import StageStorage

POLL = 0.5  # seconds between two looks at the tracker's events
DELIVERY, LAST_DELIVERY = 60, 10  # seconds in which MLflow gets what is left: at an end, and when stopped
NAMED = 4  # stages in the line that says where a stopped command goes on


class StoppedStage(NamedTuple):
    """A stage that was under way when the command was stopped."""

    experiment: str
    kind: Kind
    step: int | None
    """Of its newest checkpoint; None if there is none."""
    finished: bool
    """Whether it has a result all the same."""

    def __str__(self) -> str:
        doing = DOING[self.kind]
        if self.finished:
            return f"after the {doing}"
        if self.kind not in ("test", "import") and self.step is None:
            return f"in the {doing}, before its first checkpoint"
        return f"in the {doing}" if self.step is None else f"at step {self.step} of the {doing}"

    @property
    def remedy(self) -> str:
        goes_on = self.finished or self.step is not None
        return f"run the same command again to {'go on from there' if goes_on else 'start it over'}"


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
        self.stopped_stages: list[StoppedStage] = []

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

    def fingerprint(self, config: Spec, kind: Kind, labels: bool = False) -> str:
        """Prepares the images of a task that a stage of that kind needs, once, and returns what identifies them.

        labels: a pre-training depends on them, too, as far as there are any.
        """
        if labels and not is_unlabelled(self.tasks(config)):
            return join_fingerprints([self.fingerprint(config, kind), self.fingerprint(config, "finetune")])
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
        its own, the task's unlabelled images, or a data set of the finished pre-training that the experiment names.

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
        for config in [experiment.task] * learns_from_itself(experiment) + other_tasks(experiment):
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

    @property
    def stopping(self) -> bool:
        """Whether the command was stopped: what fails from now on may fail because of that."""
        return self.stopped.is_set() or stopping.asked()

    def note_stop(self, experiment: str, kind: Kind, storage: StageStorage) -> None:
        """Notes where a stage was stopped, for the command's last line."""
        with suppress(Exception):  # a storage that does not answer, say
            steps, finished = CheckpointManager(storage).steps(), storage.get("result.json") is not None
            self.stopped_stages.append(StoppedStage(experiment, kind, steps[-1] if steps else None, finished))

    def stopped_words(self) -> str:
        """Where the command was stopped, and how it goes on."""
        stages = sorted(self.stopped_stages, key=lambda stage: (not stage.finished, -(stage.step or 0)))
        if not stages:
            return "stopped; run the same command again to go on"
        if len(stages) == 1:
            return f"stopped {stages[0]}; {stages[0].remedy}"
        named = [f"{stage.experiment} {stage}".strip() for stage in stages[:NAMED]]
        more = [f"and {len(stages) - NAMED} more"] * (len(stages) > NAMED)
        return f"stopped: {'; '.join([*named, *more])}; run the same command again to go on from there"

    def pause(self, seconds: float) -> None:
        """Waits; raises KeyboardInterrupt if the command was stopped, also in threads, which receive no signals."""
        self.stopped.wait(seconds)
        if self.stopping:
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
        """Shows the last events and delivers to MLflow what is still to be written. No other thread may use it now."""
        self.tracker.pause = time.sleep  # `pause` would raise KeyboardInterrupt in a stopped command
        self.relay()
        left = self.tracker.close(LAST_DELIVERY if self.stopping else DELIVERY)
        self.relay()  # what closing had to tell
        if left:
            self.show(WarningIssued(f"{left} records have not reached MLflow yet; the next start delivers them"))

    @contextmanager
    def until_closed(self) -> Iterator[None]:
        """Closes the session at the end. Raises Stopped, which says where the command goes on, if it was stopped."""
        try:
            yield
        except KeyboardInterrupt:
            self.stopped.set()
            with suppress(StageFailed):  # Ray has ended, and the tracker with it
                self.close()
            raise Stopped(self.stopped_words()) from None
        except BaseException:
            self.close()
            raise
        self.close()


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
        with local.until_closed():
            yield local
        return
    RunStore(*settings[:2])  # creates the database, and raises a one-line error if the store does not answer
    with ray_cluster(trains, show):
        session = RaySession(settings, tasks, show)
        try:
            with session.until_closed(), session.keep_relaying():
                yield session
                session.scheduler.close()
        finally:
            session.scheduler.leave()  # before Ray is shut down: a thread in its library could crash the process then
