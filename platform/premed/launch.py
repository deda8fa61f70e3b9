"""Experiments on Ray, or in this process: the session with its ledger, its mapper and its workers."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from premed.check import Check, refuse
from premed.contracts import Task
from premed.crew import Crew, actor
from premed.driver import Data, Driver, Show, Trainer
from premed.experiment import Experiment, Train, plugin
from premed.home import home
from premed.importing import foresee
from premed.ledger import Ledger, Patient
from premed.runs import RunStore
from premed.spec import StageFailed, UserError
from premed.worker import Job, run_stage


def run(experiment: Experiment, show: Show) -> dict[str, Any]:
    """Runs what is not there yet and returns the outcome: stages, scores, and where they are."""
    return run_all([experiment], show)[0]


def run_all(experiments: Sequence[Experiment], show: Show) -> list[dict[str, Any]]:
    """One after the other, on one Ray and one ledger: those of the first one's `train`."""
    experiments = [settled(experiment) for experiment in experiments]
    looked_at: list[tuple[Any, bool]] = []
    for experiment in experiments:  # before Ray starts
        if (experiment.task, experiment.test) not in looked_at:
            refuse(plugin("tasks", experiment.task).build(experiment.task), experiment.test)
            looked_at.append((experiment.task, experiment.test))
        foresee(experiment)
    outcomes = []
    with session(experiments[0].train, show) as (ledger, mapper, trainer):
        for i, experiment in enumerate(experiments):
            driver = Driver(experiment, ledger, mapper, trainer, show)
            if len(experiments) > 1:
                what = f"{driver.task.name} {experiment.strategy}"
                show({"event": "experiment", "what": what, "number": i + 1, "total": len(experiments)})
            outcomes.append(driver.run())
    return outcomes


def prepare(experiment: Experiment, show: Show) -> dict[str, Any]:
    """Prepares the images of an experiment's stages (those of the test part too, unless `test` is false)."""
    experiment = settled(experiment)
    with ray_or_not(experiment.train, show) as mapper:
        data = Data(experiment, mapper, show)
        for kind in experiment.kinds:
            if kind != "import":  # weights are no images
                data.fingerprint(kind)  # asking for it is what prepares it
    megabytes = sum(path.stat().st_size for path in data.files) / 1e6
    return {"where": str(data.root), "num_images": len(data.files), "megabytes": megabytes}


def check(experiment: Experiment, show: Show, html: Path | None = None) -> dict[str, Any]:
    """What is wrong with an experiment's data (the test part too, unless `test` is false); `html`: as a page, too."""
    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"{html}: there is no such folder to write it into; make it")
    checked = Check(experiment)
    with ray_or_not(experiment.train, show) if checked.jobs else nullcontext() as mapper:
        checked.open_images(mapper, lambda done, total: show({"event": "checked", "done": done, "total": total}))
        if html is not None:
            try:
                html.write_text(checked.page(mapper), encoding="utf-8")
            except OSError as error:
                raise UserError(f"{html}: cannot be written ({error.strerror}); name another file") from None
    return checked.outcome()


def settled(experiment: Experiment) -> Experiment:
    """The data's folder as an absolute path, so that every worker looks in the same place.

    UserError where an augmentation is for images of another number of dimensions than the task's.
    """
    task: Task = plugin("tasks", experiment.task).build(experiment.task)
    for name, training in (("pretrain", experiment.pretrain), ("finetune", experiment.finetune)):
        for field in training.augment.misfits(task.dims) if training else []:
            kind = "pictures" if task.dims == 3 else "volumes"
            raise UserError(f"{name}.augment.{field}: is for {kind}, which {task.name} has not; leave it out")
    return experiment.model_copy(update={"task": experiment.task.model_copy(update={"root": task.root})})


# ---- a session: what all experiments of a command share


class Session(NamedTuple):
    """The ledger, a mapper for preparing data (None: plain `map`), and what trains a stage."""

    ledger: Any
    mapper: Callable[[Callable, Iterable], Iterable] | None
    trainer: Trainer


@contextmanager
def session(train: Train, show: Show) -> Iterator[Session]:
    """In this process where `train.workers` is 0, else on Ray. UserError where MLflow does not answer."""
    try:
        home().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"PREMED_HOME: {home()} cannot be made ({error.strerror}); name a folder you may write"
        ) from None
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    settings = uri, str(home() / "artifacts") if uri.startswith("sqlite") else None, str(home() / "spool")
    if train.workers == 0:
        with closing(Ledger(*settings), show) as ledger:
            yield Session(ledger, None, lambda job, run_id: in_process(job, ledger, run_id, show))
        return
    RunStore(*settings[:2])  # makes the database, and says in one line that a store does not answer, before Ray starts
    with ray_or_not(train, show) as mapper, closing(Remote(actor(Ledger, *settings)), show) as ledger:
        workers = Workers(ledger, show)
        assert mapper is not None
        yield Session(ledger, lambda *args: mapper(*args, held=workers.held), workers)
        workers.go_home()


@contextmanager
def closing(ledger: Any, show: Show) -> Iterator[Any]:
    """A ledger that waits for MLflow; what it has to tell is shown, and delivered, at the end."""
    try:
        yield Patient(ledger, show)
    finally:
        relay(ledger, show)
        if left := ledger.close():
            show({"event": "warning", "text": f"MLflow has not heard {left} records; the next start delivers them"})


def relay(ledger: Any, show: Show) -> None:
    for event in ledger.drain():
        show(event)


def in_process(job: Job, ledger: Any, run_id: str, show: Show) -> None:
    """The stage right here, for debugging and for small things."""

    def emit(event: dict[str, Any]) -> None:
        ledger.event(run_id, event)
        relay(ledger, show)

    run_stage(job, emit, lambda numbers: None)


# ---- Ray


@contextmanager
def ray_or_not(train: Train, show: Show) -> Iterator[Callable[..., Iterable] | None]:
    """Ray for as long as the context lasts, and its mapper; nothing where `train.workers` is 0."""
    if train.workers == 0:
        yield None
        return
    import ray

    show({"event": "starting", "what": "Ray"})
    # never a cluster nobody named: RAY_ADDRESS, or one of our own
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        with own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError) as error:
        raise UserError(f"RAY_ADDRESS={address} does not answer: start that cluster or unset the variable") from error
    try:
        admit(train)
        yield ray_map
    finally:
        ray.shutdown()


def admit(train: Train) -> None:
    """Refuses what this cluster can never place, saying what it needs and what there is."""
    import ray

    there = ray.cluster_resources()
    for resource, needed in (("CPU", train.workers * train.cpus), ("GPU", float(train.workers * train.gpu))):
        if needed > there.get(resource, 0):
            raise UserError(
                f"train.workers: {train.workers} workers need {needed:g} {resource}s and the cluster has "
                f"{there.get(resource, 0):g}; lower train.workers, or train.cpus per worker, or add nodes"
            )


def ray_map(function: Callable, items: Iterable[Any], held: float = 0) -> Iterator[Any]:
    """`function` over `items` as Ray tasks, results as they come; never more under way than there are CPUs.

    held: CPUs that workers of this session hold without using them now; then it is those that are used.
    """
    import ray

    remote: Any = ray.remote
    task = remote(num_cpus=0 if held else 1, scheduling_strategy="SPREAD")(function)
    most = max(1, int(held or ray.cluster_resources().get("CPU", 1)))
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
        from ray.exceptions import RayActorError, RayTaskError

        def call(*args: Any) -> Any:
            try:
                return ray.get(getattr(self.handle, method).remote(*args))
            except RayTaskError as error:
                raise error.cause from None
            except RayActorError as error:
                raise StageFailed(
                    "the ledger's process ended; the same command goes on from the last checkpoint"
                ) from error

        return call


class Workers:
    """Runs stages (`driver.Trainer`) on Ray Train workers, which stay between two stages that want the same ones."""

    def __init__(self, ledger: Any, show: Show):
        self.ledger, self.show = ledger, show
        self.crew: Crew | None = None

    def __call__(self, job: Job, run_id: str) -> None:
        with relayed(self.ledger, self.show):
            while True:
                if self.crew is None or not self.crew.suits(job):
                    self.go_home()
                    self.crew = Crew(job.train, job.storage, self.ledger.handle)
                if self.crew.run(job, run_id):
                    return

    @property
    def held(self) -> float:
        """The CPUs that idle workers hold."""
        return self.crew.train.workers * self.crew.train.cpus if self.crew and self.crew.thread.is_alive() else 0

    def go_home(self) -> None:
        if self.crew:
            self.crew.close()
        self.crew = None


@contextmanager
def relayed(ledger: Any, show: Show) -> Iterator[None]:
    """Shows the ledger's events while something else blocks."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.5):
            relay(ledger, show)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        relay(ledger, show)


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
