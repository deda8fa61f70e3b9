"""Experiments on Ray, or in this process: the session with its ledger, and a stage on Ray Train workers."""

import logging
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from premed.check import Check, refuse
from premed.driver import Data, Driver, Show, Trainer
from premed.experiment import Experiment, Train, plugin
from premed.home import home
from premed.ledger import Ledger, Patient
from premed.runs import RunStore
from premed.spec import StageFailed, UserError
from premed.worker import Job, run_stage, train_loop


def run(experiment: Experiment, show: Show) -> dict[str, Any]:
    """Runs what is not there yet and returns the outcome: stages, scores, and where they are."""
    return run_all([experiment], show)[0]


def run_all(experiments: Sequence[Experiment], show: Show) -> list[dict[str, Any]]:
    """One after the other, on one Ray and one ledger: those of the first one's `train`."""
    experiments = [rooted(experiment) for experiment in experiments]
    for experiment in {(each.task, each.test): each for each in experiments}.values():  # before Ray starts
        refuse(plugin("tasks", experiment.task).build(experiment.task), experiment.test)
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
    experiment = rooted(experiment)
    with ray_or_not(experiment.train, show) as mapper:
        data = Data(experiment, mapper, show)
        for _ in experiment.stages(data.fingerprint):
            continue  # asking for the data is what prepares it
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


def rooted(experiment: Experiment) -> Experiment:
    """The data's folder as an absolute path, so that every worker looks in the same place."""
    task = plugin("tasks", experiment.task).build(experiment.task)
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
        yield Session(ledger, mapper, lambda job, run_id: on_ray(job, ledger, run_id, show))


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
def ray_or_not(train: Train, show: Show) -> Iterator[Callable[[Callable, Iterable], Iterable] | None]:
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


def ray_map(function: Callable, items: Iterable[Any]) -> Iterator[Any]:
    """`function` over `items` as Ray tasks, results as they come; never more under way than there are CPUs."""
    import ray

    remote: Any = ray.remote
    task = remote(num_cpus=1)(function)
    most = max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: list[Any] = []
    for item in items:
        if len(running) >= most:
            done, running = ray.wait(running)
            yield ray.get(done[0])
        running.append(task.remote(item))
    while running:
        done, running = ray.wait(running)
        yield ray.get(done[0])


def actor(kind: type, *args: Any) -> Any:
    """An object in a process of its own on this node, where its files are; it takes no worker's place."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote
    return remote(num_cpus=0, max_concurrency=8, scheduling_strategy=here)(kind).remote(*args)


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


def on_ray(job: Job, ledger: Any, run_id: str, show: Show) -> None:
    """The stage on `train.workers` Ray Train workers."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # it gates report(), whose default is 2 s
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    train = job.train
    resources = {"CPU": train.cpus} | ({"GPU": 1} if train.gpu else {})
    # a name of its own: Ray would take an old one's state for this run's, and resuming is the vault's business
    name = f"{job.stage.folder}-{uuid.uuid4().hex[:8]}"
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job, "ledger": ledger.handle, "run_id": run_id},
        scaling_config=ScalingConfig(num_workers=train.workers, use_gpu=train.gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=f"{job.storage}/ray",
            failure_config=FailureConfig(max_failures=train.max_failures),
        ),
    )
    try:
        with relayed(ledger, show), own_signals():
            trainer.fit()
    except SystemExit as error:  # how Ray Train answers Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        if "://" not in job.storage:
            shutil.rmtree(f"{job.storage}/ray/{name}", ignore_errors=True)


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
