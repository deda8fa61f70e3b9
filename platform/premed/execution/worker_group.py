"""A group of Ray Train workers: one Ray Train run for many jobs, one after the other, because a run starts slowly.

The driver puts jobs into a queue (an actor), and every rank takes them from it in order. A rank that dies ends the
group; Ray Train restarts it, and it continues with the first job that is not finished.
"""

import math
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
from premed.data.datamodule import Tasks
from premed.errors import CalledOff, StageFailed, Stopped, UserError
from premed.events import EventHandler
from premed.execution.cluster import actor
from premed.execution.connection import MALLOC, cluster_address
from premed.execution.job_queue import JobQueue, Signal
from premed.execution.network_interface import torch_config
from premed.training.setup import StageJob
from premed.training.stage import run_stage

POLL = 0.1  # seconds between two checks of the queue
LOOK = 0.5  # seconds between two looks of a training at whether the command was stopped
GRACE = 20.0  # seconds in which a stopped command waits for checkpoints; schedulers kill after 30 or more
LEAVE = 5.0  # further seconds, in which its threads leave Ray's library
NEVER = 7 * 24 * 3600  # seconds: PyTorch counts milliseconds in 32 bits


class WorkerGroup:
    """The driver's side: `run` puts a job into the workers' queue and waits for it."""

    def __init__(self, train: Train, storage: str):
        self.train, self.storage = train, storage
        self.queue = actor(JobQueue)
        self.error: BaseException | None = None
        # a KeyboardInterrupt in Thread.join makes Python (3.11) take the thread for dead
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._work, name="premed worker group", daemon=True)
        self.thread.start()

    def suits(self, job: StageJob) -> bool:
        """Whether it is alive, was never restarted, and has the job's `train` settings and storage."""
        import ray

        same = (self.train, self.storage) == (job.train, job.storage)
        return same and self.alive and ray.get(self.queue.fresh.remote())

    @property
    def alive(self) -> bool:
        """Whether its workers run or are starting. Once they have ended, their CPUs and GPUs are free."""
        return not self.ended.is_set()

    def run(
        self,
        job: StageJob,
        events: EventHandler,
        report: Callable[[int], bool] | None,
        pause: Callable[[float], None],
        shortage: Callable[[Callable[[], bool]], None] = lambda lacking: None,
    ) -> bool:
        """Blocks until every rank has finished the job. Returns False if the group had already shut down; re-raises
        the error that stopped it.

        events, report: see `Executor.run_stage`; `events` is pickled for the workers. pause: called repeatedly; what it
        raises ends the wait (CalledOff: once the workers have ended the job; KeyboardInterrupt: once they have saved a
        checkpoint, within GRACE seconds). shortage: called repeatedly with `lacking`.
        """
        import ray

        number: Any = ray.get(self.queue.put.remote([ray.put((job, events))], report is not None))
        try:
            while number is not None and not self.finished(number):
                shortage(self.lacking)
                pause(0)
                if report is not None:
                    step: Any = ray.get(self.queue.asked_step.remote(number))
                    if step is not None and report(step):
                        self.queue.allow.remote(number, step)
        except CalledOff:
            self.queue.cancel.remote(number)
            while not self.finished(number):  # type: ignore[arg-type]
                pass
            raise
        except KeyboardInterrupt:
            self.stop(number)  # type: ignore[arg-type]
            raise
        return number is not None

    def stop(self, number: int, seconds: float = GRACE) -> None:
        """Has the workers save a checkpoint and end; returns when they have, or so many seconds and LEAVE later."""
        import ray
        from ray.exceptions import RayError

        deadline = time.monotonic() + seconds
        with suppress(RayError):  # the queue's process has ended: so have the workers
            waiting: Any = ray.get(self.queue.stop.remote(number))
            while waiting and self.alive and time.monotonic() < deadline:
                time.sleep(POLL)
                waiting = not ray.get(self.queue.first_done.remote(number))
            self.wait(time.monotonic() + LEAVE)  # also for one that has just begun, or waits for workers

    def wait(self, deadline: float) -> None:
        """Returns when the workers have ended and the thread has left Ray's library, or at the deadline.

        Where Ray is shut down while a thread is in its library, the process may crash.
        """
        self.ended.wait(max(deadline - time.monotonic(), 0))

    def lacking(self) -> bool:
        """Whether workers wait for resources: not all of this command's placement groups of their size are created."""
        import ray

        ours = ray.get_runtime_context().get_job_id()  # Ray ends the names of a job's placement groups with its id
        groups = {name: group for name, group in ray.util.placement_group_table().items() if name.endswith(ours)}
        states = {group["state"] for group in groups.values() if self.resources in group["bundles"].values()}
        return "CREATED" not in states or not states <= {"CREATED", "REMOVED"}

    @property
    def resources(self) -> dict[str, float]:
        """What each worker reserves."""
        return {"CPU": float(self.train.cpus)} | ({"GPU": 1.0} if self.train.gpu else {})

    def finished(self, number: int) -> bool:
        """Whether every rank has finished the job, after a wait of POLL. Raises the error that ended the workers."""
        import ray

        self.ended.wait(POLL)
        done: Any = ray.get(self.queue.done.remote(number))
        alive = self.alive
        if not done and not alive and not ray.get(self.queue.done.remote(number)):
            raise self.error or StageFailed("the workers shut down in the middle of a stage")
        return done

    def dismiss(self) -> None:
        """Closes the queue: the workers end after its last job, within some seconds."""
        self.queue.close.remote()

    def close(self) -> None:
        """Ends the workers, and waits until they have ended."""
        import ray

        self.dismiss()
        self.thread.join()
        ray.kill(self.queue)

    def _work(self) -> None:
        try:
            self._fit()
        finally:
            self.ended.set()

    def _fit(self) -> None:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # report() waits for it; the default is 2 s
        os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
        own = cluster_address() == "local"
        if own:  # of one node, which no scheduler takes away: one process less
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        patience = self.train.hang_timeout or NEVER
        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(patience)  # of a process that is stopped
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        train = self.train
        # a new name: Ray would resume a run of the same name, and premed resumes from its own checkpoints
        name = f"premed-{uuid.uuid4().hex[:8]}"
        trainer = TorchTrainer(
            worker_loop,
            train_loop_config={"queue": self.queue},
            # workers that wait for one that is stuck write down where they wait, before the process group gives up
            torch_config=torch_config(int(patience) + 60, choose=not train.gpu),  # NCCL finds its own interface
            scaling_config=ScalingConfig(
                num_workers=train.workers,
                use_gpu=train.gpu,
                resources_per_worker=self.resources,
                # new workers join after a checkpoint at the earliest: an earlier restart would cost more than they gain
                elastic_resize_monitor_interval_s=max(60 * train.save_minutes, 30),
            ),
            run_config=RunConfig(
                name=name,
                storage_path=f"{self.storage}/ray",
                failure_config=FailureConfig(max_failures=train.max_failures),
                # workers of this command's own Ray have it from their node's process
                worker_runtime_env=None if train.gpu or own else {"env_vars": MALLOC},
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - `finished` raises it in the thread that waits
            cause = getattr(getattr(error, "controller_failure", None), "cause", None)
            self.error = cause if isinstance(cause, UserError) else error
        finally:
            if "://" not in self.storage:
                shutil.rmtree(f"{self.storage}/ray/{name}", ignore_errors=True)


# ---- on the workers


def worker_loop(config: dict[str, Any]) -> None:
    """Ray Train's training function, on every worker: runs the jobs of `config["queue"]` until the queue shuts down."""
    import ray
    import ray.train

    queue, context, tasks = config["queue"], ray.train.get_context(), Tasks()
    rank, world = context.get_world_rank(), context.get_world_size()
    number: int = ray.get(queue.first.remote(rank))
    while (item := ray.get(queue.take.remote(number))) is not Signal.SHUTDOWN:
        if item is Signal.WAIT:
            time.sleep(POLL)
            continue
        job, events = ray.get(item[0])
        with suppress(CalledOff, Stopped):
            run_stage(job, events, partial(reported, queue, number), tasks, StopRequests(queue, number))
        ray.get(queue.finish.remote(number, rank, world))
        number += 1


def reported(queue: Any, number: int, numbers: dict[str, float]) -> None:
    """Reports a validation to Ray Train and waits until the job may continue; if it is cancelled, raises CalledOff."""
    import ray
    import ray.train

    ray.train.report(numbers)
    while (going_on := ray.get(queue.may_continue.remote(number, numbers["step"]))) is None:
        time.sleep(POLL)
    if not going_on:
        raise CalledOff


class StopRequests:
    """Whether the command was stopped, as the queue knows; looks every LOOK seconds."""

    def __init__(self, queue: Any, number: int):
        self.queue, self.number = queue, number
        self.looked, self.stopped = -math.inf, False

    def __call__(self) -> bool:
        import ray

        if not self.stopped and time.monotonic() - self.looked >= LOOK:
            self.stopped = bool(ray.get(self.queue.stopping.remote(self.number)))
            self.looked = time.monotonic()
        return self.stopped
