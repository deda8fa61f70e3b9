"""Workers that go from stage to stage: one Ray Train run for as long as there is work, since it takes long to start.

The driver puts jobs on a desk (an actor), every rank takes them from it in order. A rank that dies ends the group; Ray
starts it again, and it goes on with the first job that is not done.
"""

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from premed.config.settings import Train
from premed.desk import Desk
from premed.errors import CalledOff, StageFailed, UserError
from premed.events import Event, EventHandler
from premed.network import speak_over
from premed.worker import StageJob, run_stage

LOOK = 0.1  # seconds between two looks at the desk


class Crew:
    """The driver's side: `run` hands a job to the workers and waits for it."""

    def __init__(self, train: Train, storage: str, ledger: Any):
        self.train, self.storage, self.ledger = train, storage, ledger
        self.desk = actor(Desk)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._fit, name="premed crew", daemon=True)
        self.thread.start()

    def suits(self, job: StageJob) -> bool:
        """Whether it works still, in the way and the place that the job wants."""
        import ray

        as_wanted = (self.train, self.storage) == (job.train, job.storage)
        return as_wanted and self.thread.is_alive() and ray.get(self.desk.fresh.remote())

    @property
    def alive(self) -> bool:
        """Whether its workers are there, or about to be; their CPUs and GPUs are free once they are not."""
        return self.thread.is_alive()

    def run(
        self,
        job: StageJob,
        run_id: str,
        pause: Callable[[float], None],
        ruling: Callable[[], float] | None = None,
        short: Callable[[Callable[[], bool]], None] = lambda lacking: None,
    ) -> bool:
        """Back when every rank is through with the job; False where the crew had gone home. Raises what ended it.

        pause: called between two looks; what it raises ends the wait (CalledOff: once the workers have let go).
        ruling: the last validated step that the job may go on from; without it, from all. short: called between two
        looks, with a function that says whether the workers lack a place.
        """
        import ray

        number: Any = ray.get(self.desk.put.remote([ray.put(job)], run_id, ruling is not None))
        ruled = 0.0
        while number is not None and not self.through(number):
            short(self.lacking)
            try:
                pause(0)
            except CalledOff:
                self.desk.call_off.remote(number)
                while not self.through(number):
                    pass
                raise
            if ruling and ruling() > ruled:
                self.desk.rule.remote(number, ruled := ruling())
        return number is not None

    def lacking(self) -> bool:
        """Whether the workers wait for a place: of this command's places of their size some are not there, or none."""
        import ray

        ours = ray.get_runtime_context().get_job_id()  # which the names of all places end with that it asked for
        groups = {name: group for name, group in ray.util.placement_group_table().items() if name.endswith(ours)}
        states = {group["state"] for group in groups.values() if self.resources in group["bundles"].values()}
        return "CREATED" not in states or not states <= {"CREATED", "REMOVED"}

    @property
    def resources(self) -> dict[str, float]:
        """What each worker holds."""
        return {"CPU": float(self.train.cpus)} | ({"GPU": 1.0} if self.train.gpu else {})

    def through(self, number: int) -> bool:
        """Whether every rank is through with the job, after a short wait. Raises what ended the workers before."""
        import ray

        self.thread.join(LOOK)
        done: Any = ray.get(self.desk.done.remote(number))
        alive = self.thread.is_alive()
        if not done and not alive and not ray.get(self.desk.done.remote(number)):
            raise self.error or StageFailed("the workers went home in the middle of a stage")
        return done

    def dismiss(self) -> None:
        """Lets the workers go when they are through; they take some seconds."""
        self.desk.close.remote()

    def close(self) -> None:
        """Lets the workers go, and waits until they have."""
        import ray

        self.dismiss()
        self.thread.join()
        ray.kill(self.desk)

    def _fit(self) -> None:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # it gates report(), whose default is 2 s
        os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        train = self.train
        # a name of its own: Ray would take an old one's state for this run's, and checkpoints are premed's own
        name = f"premed-{uuid.uuid4().hex[:8]}"
        trainer = TorchTrainer(
            work,
            train_loop_config={"desk": self.desk, "ledger": self.ledger},
            torch_config=networked() if not train.gpu else None,  # NCCL has its own ways
            scaling_config=ScalingConfig(
                num_workers=train.workers,
                use_gpu=train.gpu,
                resources_per_worker=self.resources,
                # others join after a checkpoint at the earliest, else they would cost more than they bring
                elastic_resize_monitor_interval_s=max(60 * train.save_minutes, 30),
            ),
            run_config=RunConfig(
                name=name,
                storage_path=f"{self.storage}/ray",
                failure_config=FailureConfig(max_failures=train.max_failures),
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - it is the driver's thread that has to hear of it
            cause = getattr(getattr(error, "controller_failure", None), "cause", None)
            self.error = cause if isinstance(cause, UserError) else error
        finally:
            if "://" not in self.storage:
                shutil.rmtree(f"{self.storage}/ray/{name}", ignore_errors=True)


def networked() -> Any:
    """Ray's settings of torch, with a look at each node's networks before its workers meet over one."""
    import ray
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            addresses = worker_group.execute(ray.util.get_node_ip_address)
            worker_group.execute(lambda: speak_over(ray.util.get_node_ip_address(), len(set(addresses)) > 1))
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config()


def work(config: dict[str, Any]) -> None:
    """What Ray Train calls on every worker: `config` has the desk and the ledger."""
    import ray
    import ray.train

    desk, ledger, context = config["desk"], config["ledger"], ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    number: int = ray.get(desk.first.remote(rank))
    while (found := ray.get(desk.take.remote(number))) != "go home":
        if found == "wait":
            time.sleep(LOOK)
            continue
        (reference,), run_id = found
        job: Any = ray.get(reference)
        with suppress(CalledOff):
            run_stage(job, teller(ledger, run_id), partial(reported, desk, number))
        ray.get(desk.finish.remote(number, rank, world))
        number += 1


def reported(desk: Any, number: int, numbers: dict[str, float]) -> None:
    """Tells Ray of a validation, and raises CalledOff on all ranks alike where the job is not wanted any more."""
    import ray
    import ray.train

    ray.train.report(numbers)
    while (going_on := ray.get(desk.may_go_on.remote(number, numbers["step"]))) is None:
        time.sleep(LOOK)
    if not going_on:
        raise CalledOff


def teller(ledger: Any, run_id: str) -> EventHandler:
    """Hands a stage's events to the ledger's actor, one after the other."""
    import ray

    told: list[Any] = []

    def emit(event: Event) -> None:
        # the ledger has several threads, and a point that comes late would be left out
        ray.get(told)
        told[:] = [ledger.record_event.remote(run_id, event)]

    return emit


def actor(kind: type, *args: Any) -> Any:
    """An object in a process of its own on this node, where its files are; it takes no worker's place."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote
    return remote(num_cpus=0, max_concurrency=8, scheduling_strategy=here)(kind).remote(*args)
