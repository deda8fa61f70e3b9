"""The Ray cluster: starts or joins one, lists the resources of its nodes, maps functions in parallel, makes actors."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from premed.config.settings import Train
from premed.errors import StageFailed, UserError
from premed.events import EventHandler, RayStarting
from premed.execution.connection import connect

Resources = Mapping[str, float]
"""Amounts by the names of Ray's resources: `CPU`, `GPU`, …"""


@contextmanager
def ray_cluster(trains: Sequence[Train], show: EventHandler) -> Iterator[None]:
    """Connects to the cluster at RAY_ADDRESS, or starts one on this machine, until the context ends.

    Raises UserError if that cluster does not answer, or can never place the workers of one of `trains`.
    """
    show(RayStarting())
    connect()
    import ray

    try:
        for train in trains:
            admit(train)
        yield
    finally:
        ray.shutdown()


@contextmanager
def parallel_map(train: Train, show: EventHandler) -> Iterator[Callable[..., Iterable]]:
    """Yields `ray_map`, on a cluster that lasts as long as the context; or plain `map` if `train.workers` is 0."""
    if train.workers == 0:
        yield map
    else:
        with ray_cluster([train], show):
            yield ray_map


# ---- resources for workers


def nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive, and of each that the autoscaler may still start."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most, worker = autoscaling()
    started = sum(all(node.get(name, 0) >= value for name, value in worker.items()) for node in alive)
    return alive + [dict(worker)] * (most - started)


def free() -> Resources:
    """The resources of all nodes that no task or actor reserves."""
    import ray

    return ray.available_resources()


def autoscaling() -> tuple[int, dict[str, float]]:
    """The largest number of worker nodes and the resources of each, from PREMED_NODES (`8 CPU=8 GPU=1`).

    Ray's API does not expose either.
    """
    value = os.environ.get("PREMED_NODES", "0")
    most, *resources = value.split()
    try:
        pairs = [each.split("=") for each in resources]
        return int(most), {name: float(number) for name, number in pairs}
    except ValueError:
        raise UserError(
            f"PREMED_NODES={value}: write the largest number of worker nodes and the resources of each: 8 CPU=8 GPU=1"
        ) from None


def admit(train: Train) -> None:
    """Raises UserError if this cluster can never place the workers; names what they need and what there is."""
    there = nodes()
    workers = train.min_workers
    for resource, needed in (("CPU", workers * train.cpus), ("GPU", float(workers * train.gpu))):
        if needed > (most := sum(node.get(resource, 0) for node in there)):
            raise UserError(
                f"train.workers: {workers} workers need {needed:g} {resource}s and the cluster has "
                f"{most:g}; lower train.workers, or train.cpus per worker, or add nodes"
            )
    if not fits(there, workers_of(train, workers)):
        room = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in there)
        raise UserError(
            f"train.cpus: {workers} workers of {train.cpus:g} CPUs{' and a GPU' * train.gpu} do not fit on "
            f"nodes with {room}; lower train.cpus or train.workers"
        )


def workers_of(train: Train, number: int) -> list[Resources]:
    """The resources of each of `number` workers."""
    return [{"CPU": train.cpus, "GPU": float(train.gpu)}] * number


def fits(nodes: Iterable[Resources], workers: Iterable[Resources]) -> bool:
    """Whether all workers fit on the nodes at once: first fit, the largest worker first."""
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


# ---- work in other processes


def ray_map(
    function: Callable,
    items: Iterable[Any],
    held: Callable[[], float] = lambda: 0.0,
    idle: Callable[[], float] = lambda: 0.0,
) -> Iterator[Any]:
    """`function` over `items` as Ray tasks; yields results as they finish. At most as many run as there are CPUs.

    held: returns the CPUs that the caller's own actors reserve. If there are any, the tasks reserve none, and as many
    run as CPUs are free. idle: returns how many of the held CPUs are not used now; these count as free.
    """
    import ray

    remote: Any = ray.remote
    reserved = held() > 0
    task = remote(num_cpus=0 if reserved else 1, scheduling_strategy="SPREAD")(function)
    cpus = free() if reserved else ray.cluster_resources()
    most = max(1, int(cpus.get("CPU", 0 if reserved else 1) + (idle() if reserved else 0)))
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
    """Starts an actor of the class `kind` on this node, where its files are. It reserves no CPU. Returns its handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote
    return remote(num_cpus=0, max_concurrency=8, scheduling_strategy=here)(kind).remote(*args)


class Remote:
    """Calls an actor's methods as if it were the object itself: waits for the result, raises the method's exception.

    Raises StageFailed if the actor's process has ended. name: the actor's, for that message.
    """

    def __init__(self, handle: Any, name: str):
        self.handle, self.name = handle, name

    def __getattr__(self, method: str) -> Callable:
        import ray
        from ray.exceptions import RayError, RayTaskError

        def call(*args: Any) -> Any:
            try:
                return ray.get(getattr(self.handle, method).remote(*args))
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:  # it died, or Ray killed it when memory ran out
                what = "process ended; run the same command again to resume from the last checkpoint"
                if getattr(error, "actor_init_failed", False):  # and would fail again
                    what = f"process does not start: {str(error).strip().splitlines()[-1].strip()}"
                raise StageFailed(f"the {self.name}'s {what}") from error

        return call


class RemoteEvents:
    """An event handler that sends a stage's events to the tracker's actor, from any process that unpickles it."""

    def __init__(self, tracker: Any, run_id: str):
        self.tracker, self.run_id = tracker, run_id
        self.sent: list[Any] = []

    def __call__(self, event: Any) -> None:
        """Waits for the previous event only: the actor has several threads, and MLflow takes points in order."""
        import ray

        ray.get(self.sent)
        self.sent = [self.tracker.record_event.remote(self.run_id, event)]
