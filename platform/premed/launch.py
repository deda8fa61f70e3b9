"""The driver: finds or trains each stage of an experiment on Ray Train, and records it in MLflow through the ledger."""

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import yaml

from premed.cache import Cache
from premed.contracts import Case, Task
from premed.experiment import Experiment, Kind, Stage, Train, plugin
from premed.home import home, portable
from premed.ledger import Ledger, first_line
from premed.spec import StageFailed, UserError
from premed.vault import Vault
from premed.worker import Job, cases, make_objective, run_stage, train_loop

Show = Callable[[dict[str, Any]], None]
"""Takes the events of a run, as they happen: `{"event": …}`."""


def run(experiment: Experiment, show: Show) -> dict[str, Any]:
    """Runs what is not there yet and returns the outcome: stages, scores, and where they are."""
    return run_all([experiment], show)[0]


def run_all(experiments: Sequence[Experiment], show: Show) -> list[dict[str, Any]]:
    """One after the other, on one Ray and one ledger: those of the first one's `train`."""
    experiments = [rooted(experiment) for experiment in experiments]
    outcomes = []
    with session(experiments[0].train, show) as (ledger, mapper):
        for i, experiment in enumerate(experiments):
            launch = Launch(experiment, ledger, mapper, show)
            if len(experiments) > 1:
                what = f"{launch.task.name} {experiment.strategy}"
                show({"event": "experiment", "what": what, "number": i + 1, "total": len(experiments)})
            outcomes.append(launch.run())
    return outcomes


def prepare(experiment: Experiment, show: Show) -> dict[str, Any]:
    """Prepares all images of an experiment: those of every part, and the unlabelled."""
    experiment = rooted(experiment)
    with session(experiment.train, show) as (ledger, mapper):
        launch = Launch(experiment, ledger, mapper, show)
        for stage in experiment.stages(launch.data):
            del stage  # asking for the data is what prepares it
    root = launch.cache_root
    entries = [path for path in root.rglob("*.safetensors")]
    return {"where": str(root), "num_images": len(entries), "megabytes": sum(path.stat().st_size for path in entries) / 1e6}


class Launch:
    """One experiment on its way through its stages."""

    def __init__(self, experiment: Experiment, ledger: Any, mapper: Any, show: Show):
        self.experiment, self.ledger, self.mapper, self.show = experiment, ledger, mapper, show
        self.task: Task = plugin("tasks", experiment.task).build(experiment.task)
        self.cache_root = home() / "cache"
        self.storage = storage_of(experiment.train)
        self.data = cache(self.fingerprint)

    def run(self) -> dict[str, Any]:
        parent_run = self.open_parent()
        outcome: dict[str, Any] = {
            "task": self.task.name,
            "strategy": self.experiment.strategy,
            "run_id": parent_run,
            "stages": [],
        }
        try:
            before: Stage | None = None
            for stage in self.experiment.stages(self.data):
                done = self.find_or_train(stage, before, parent_run)
                outcome["stages"].append(done)
                before = stage
            self.close_parent(parent_run, outcome)
        except BaseException as error:
            self.ledger.call("finish", parent_run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        return outcome

    def find_or_train(self, stage: Stage, before: Stage | None, parent_run: str) -> dict[str, Any]:
        """The stage's result: the one that is there, or another command's once it is done, or a new one."""
        job = Job(stage, before, self.experiment.train, self.storage, self.cache_root)
        digest, waiting = stage.digest(), False
        while True:
            if (found := self.find(job, parent_run)) is not None:
                return found
            if self.ledger.acquire(digest):
                break
            if not waiting:
                self.show({"event": "waiting", "kind": stage.kind})
            waiting = True
            time.sleep(1.0)
        try:
            return self.find(job, parent_run) or self.train(job, parent_run)
        finally:
            self.ledger.release(digest)

    def find(self, job: Job, parent_run: str) -> dict[str, Any] | None:
        """A finished stage: in storage, or, where that was cleaned, among MLflow's files."""
        stage = job.stage
        result = job.vault.get_json("result.json")
        run_id = self.ledger.finished(stage.digest(), stage.kind)
        if result is None and run_id is not None:
            with TemporaryDirectory() as folder:
                self.ledger.download(run_id, folder)
                for path in sorted(Path(folder).rglob("*"), key=lambda path: path.name == "result.json"):
                    if path.is_file():
                        job.vault.put(str(path.relative_to(folder)), path.read_bytes())
            result = job.vault.get_json("result.json")
        if result is None:
            return None
        if run_id is None:  # trained with another MLflow, or killed between the result and its record
            run_id = self.open_stage(stage, parent_run)
            self.record(job, run_id, result)
        self.show({"event": "reused", "kind": stage.kind, "where": job.vault.where})
        self.warn_of_gate(stage, result)
        return {"kind": stage.kind, "run_id": run_id, "reused": True, "where": job.vault.where, **result}

    def train(self, job: Job, parent_run: str) -> dict[str, Any]:
        """Runs the stage to its result and records it."""
        stage = job.stage
        run_id = self.open_stage(stage, parent_run)
        self.show({"event": "stage", "kind": stage.kind, "where": job.vault.where})
        job.vault.remove("failure.json")
        try:
            if job.train.workers == 0:
                run_stage(job, lambda event: self.tell(run_id, event), lambda numbers: None)
            else:
                with relayed(self.ledger, self.show):
                    on_ray(job, self.ledger, run_id)
        except KeyboardInterrupt:
            self.ledger.call("finish", run_id, "KILLED")
            raise
        except Exception as error:
            self.ledger.call("finish", run_id, "FAILED")
            raise StageFailed(f"{stage.kind}: {first_line(error)}; the same command goes on from the last checkpoint") from error
        if (failure := job.vault.get_json("failure.json")) is not None:
            self.ledger.call("set_tags", run_id, {"premed.failure": failure["message"]})
            self.ledger.call("finish", run_id, "FAILED")
            raise StageFailed(f"{stage.kind}: {failure['message']}")
        result = job.vault.get_json("result.json")
        if result is None:
            self.ledger.call("finish", run_id, "FAILED")
            raise StageFailed(f"{stage.kind}: the workers ended without a result in {job.vault.where}")
        self.record(job, run_id, result)
        self.warn_of_gate(stage, result)
        return {"kind": stage.kind, "run_id": run_id, "reused": False, "where": job.vault.where, **result}

    def tell(self, run_id: str, event: dict[str, Any]) -> None:
        self.ledger.event(run_id, event)
        for told in self.ledger.drain():
            self.show(told)

    def warn_of_gate(self, stage: Stage, result: dict[str, Any]) -> None:
        gate = result.get("gate")
        if gate and not gate["passed"]:
            self.show({"event": "gate", **gate})

    # ---- data

    def fingerprint(self, kind: Kind) -> str:
        """Prepares what a stage of that kind sees, and says what it is."""
        if kind == "test":
            groups = {"test": self.task.split("test")}
        elif kind == "pretrain":
            blind = [Case(case.name, case.patient, case.image) for case in self.task.split("val")]
            groups = {"images": self.task.images(), "val": blind}
        else:
            groups = {"train": self.task.split("train"), "val": self.task.split("val")}
        store = Cache(self.cache_root)
        every = [case for group in groups.values() for case in group]
        store.prepare(
            every,
            self.task.recipe,
            mapper=self.mapper,
            progress=lambda done, total: self.show({"event": "prepared", "kind": kind, "done": done, "total": total}),
        )
        return " ".join(f"{name}:{store.fingerprint(group, labels=kind != 'pretrain')}" for name, group in groups.items())

    # ---- MLflow

    def open_parent(self) -> str:
        """The experiment's own run, above its stages."""
        experiment, seed = self.experiment, self.experiment.finetune.seed
        digest = "-".join((experiment.digest(), *(self.data("finetune"),)))
        name = experiment.name or f"{experiment.strategy} seed {seed}"
        return self.ledger.open(
            self.task.name, name, short(digest), "experiment", None, self.tags("experiment"), tree(experiment)
        )

    def open_stage(self, stage: Stage, parent_run: str) -> str:
        seed = stage.training.seed  # type: ignore[attr-defined]
        name = f"{self.experiment.strategy} {stage.kind} seed {seed}"
        params = {"stage": stage.model_dump(mode="json", exclude={"task": {"root"}})}
        tags = self.tags(stage.kind) | {"seed": str(seed), "premed.data": stage.data, "premed.parent_digest": stage.parent or ""}
        run_id = self.ledger.open(self.task.name, name, stage.digest(), stage.kind, parent_run, tags, params)
        self.ledger.call("log_datasets", run_id, self.datasets(stage))
        return run_id

    def tags(self, kind: str) -> dict[str, str]:
        finetune = self.experiment.finetune
        return {
            "task": self.task.name,
            "strategy": self.experiment.strategy,
            "stage": kind,
            "seed": str(finetune.seed),
            "label_fraction": f"{finetune.label_fraction:g}",
            "pretrain_seed": str(self.experiment.pretrain.seed) if self.experiment.pretrain else "",
        }

    def datasets(self, stage: Stage) -> list[dict[str, Any]]:
        source = portable(Path(getattr(self.experiment.task, "root", self.task.name)))
        contexts = {"images": "training", "train": "training", "val": "validation", "test": "testing"}
        parts = dict(part.split(":") for part in stage.data.split(" "))
        sizes = {"test": len(self.task.split("test"))} if stage.kind == "test" else dict(zip(parts, map(len, cases(stage, self.task)), strict=True))
        return [
            {"name": f"{self.task.name} {name}", "digest": digest[:32], "context": contexts[name], "source": source, "num_cases": sizes[name]}
            for name, digest in parts.items()
        ]

    def record(self, job: Job, run_id: str, result: dict[str, Any]) -> None:
        """Everything of a finished stage: scores, pictures, weights, cost and, of a fine-tuning, the model."""
        folder = local_copy(job.vault)
        curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()] if (folder / "curve.jsonl").is_file() else []
        if curve:
            self.ledger.call("log_rows", run_id, curve)
        few = {name: value for name, value in result["summary"].items() if name.count("/") == 1}
        few |= {"seconds": result["seconds"], "peak_memory_mb": result["peak_memory_mb"]}
        if result["kind"] == "test":
            few |= {"test/low": result["interval"][0], "test/high": result["interval"][1], "test/constant": result["constant"]}
        step = result.get("num_steps", 0)
        # a curve's own last point is already at the last step: the summary of the chosen weights goes by other names
        named = {(f"best/{name}" if name.startswith("val/") else name): value for name, value in few.items()}
        self.ledger.call("log_rows", run_id, [{"step": step, "time": int(time.time() * 1000), "metrics": named}])
        self.ledger.call("log_scores", run_id, json.loads((folder / "scores.json").read_text()))
        for name in ("pictures", "parts"):
            if (folder / name).is_dir():
                self.ledger.call("log_files", run_id, str(folder / name), name)
        for name in ("result.json", "curve.jsonl"):
            if (folder / name).is_file():
                self.ledger.call("log_files", run_id, str(folder / name))
        self.ledger.call("set_tags", run_id, {"premed.where": portable(Path(job.vault.where)) if job.vault.local else job.vault.where})
        if job.stage.kind == "finetune":
            self.register(job, run_id, result)
        self.ledger.call("finish", run_id, "FINISHED")

    def register(self, job: Job, run_id: str, result: dict[str, Any]) -> None:
        """The fine-tuned network as a model under the task's name; `best` is the one with the highest val score."""
        import numpy as np

        self.show({"event": "registering", "name": self.task.name})
        # as a test stage does it: the parts that val picked
        stage = job.stage.model_copy(update={"kind": "test"})
        objective, _ = make_objective(Job(stage, job.stage, job.train, job.storage, job.cache), self.task)
        example = np.zeros((2, self.task.channels, *self.task.roi), np.float32)
        about = job.vault.get_json("parts/card.json")
        score = result["summary"].get(f"val/{self.task.score}", float("-inf"))
        self.ledger.register(run_id, self.task.name, objective.network, example, score, about)

    def close_parent(self, parent_run: str, outcome: dict[str, Any]) -> None:
        """Scores and the resolved YAML on the experiment's own run."""
        numbers = {}
        for done in outcome["stages"]:
            prefix = "pretrain_" if done["kind"] == "pretrain" else ""
            numbers |= {f"{prefix}{name}": v for name, v in done["summary"].items() if name.count("/") == 1}
            numbers[f"{done['kind']}_seconds"] = done["seconds"]
            self.ledger.call("set_tags", parent_run, {f"{done['kind']}_run": done["run_id"]})
        self.ledger.call("log_rows", parent_run, [{"step": 0, "time": int(time.time() * 1000), "metrics": numbers}])
        folder = home() / "outbox" / parent_run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "experiment.yaml").write_text(yaml.safe_dump(tree(self.experiment), sort_keys=False))
        self.ledger.call("log_files", parent_run, str(folder / "experiment.yaml"))
        self.ledger.call("finish", parent_run, "FINISHED")


# ---- Ray


@contextmanager
def session(train: Train, show: Show) -> Iterator[tuple[Any, Any]]:
    """The ledger, and a mapper for preparing data: in this process, or on Ray."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    settings = (uri, str(home() / "artifacts") if uri.startswith("sqlite") else None, str(home() / "spool"))
    home().mkdir(parents=True, exist_ok=True)
    if train.workers == 0:
        ledger: Any = Ledger(*settings)
        try:
            yield ledger, None
        finally:
            close(ledger, show)
        return
    import ray

    show({"event": "starting", "what": "Ray"})
    # never a cluster nobody named: RAY_ADDRESS, or one of our own
    ray.init(address=os.environ.get("RAY_ADDRESS") or "local", log_to_driver=False, logging_level="ERROR")
    try:
        admit(train)
        Ledger(*settings).close()  # a store that does not answer is this process's error, in one line
        handle = ray.remote(num_cpus=0, max_concurrency=8)(Ledger).remote(*settings)
        ledger = Remote(handle)
        try:
            yield ledger, ray_map
        finally:
            close(ledger, show)
    finally:
        ray.shutdown()


def close(ledger: Any, show: Show) -> None:
    for event in ledger.drain():
        show(event)
    if left := ledger.close():
        show({"event": "warning", "text": f"MLflow has not heard {left} records; the next start delivers them"})


class Remote:
    """An actor's handle that is called like the object itself."""

    def __init__(self, handle: Any):
        self.handle = handle

    def __getattr__(self, method: str) -> Callable:
        import ray

        return lambda *args: ray.get(getattr(self.handle, method).remote(*args))


def ray_map(function: Callable, items: Iterable[Any]) -> Iterator[Any]:
    """`function` over `items` as Ray tasks, results as they come; never more under way than there are CPUs."""
    import ray

    task = ray.remote(num_cpus=1)(function)
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


def on_ray(job: Job, ledger: Remote, run_id: str) -> None:
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
    trainer.fit()
    if "://" not in job.storage:
        shutil.rmtree(f"{job.storage}/ray/{name}", ignore_errors=True)


@contextmanager
def relayed(ledger: Any, show: Show) -> Iterator[None]:
    """Shows the ledger's events while something else blocks."""
    done = Event()

    def relay() -> None:
        while not done.wait(0.5):
            for event in ledger.drain():
                show(event)

    thread = Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for event in ledger.drain():
            show(event)


# ---- small things


def rooted(experiment: Experiment) -> Experiment:
    """The data's folder as an absolute path, so that every worker looks in the same place."""
    task = plugin("tasks", experiment.task).build(experiment.task)
    return experiment.model_copy(update={"task": experiment.task.model_copy(update={"root": task.root})})


def storage_of(train: Train) -> str:
    if train.storage is None:
        return str(home() / "checkpoints")
    return train.storage if "://" in train.storage else str(Path(train.storage).absolute())


def local_copy(vault: Vault) -> Path:
    """The vault's files on this machine: its own folder, or a copy that stays until MLflow has heard of it."""
    if vault.local:
        return Path(vault.where)
    folder = home() / "outbox" / Path(vault.where).name
    for name in vault.names():
        content = vault.get(name)
        if content is not None and not name.startswith(("checkpoints/", "best/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


def tree(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment, its data root as ${PREMED_DATA}/…."""
    whole = experiment.model_dump(mode="json")
    if whole["task"].get("root"):
        whole["task"]["root"] = portable(Path(whole["task"]["root"]))
    return whole


def short(digest: str) -> str:
    import hashlib

    return hashlib.sha256(digest.encode()).hexdigest()
