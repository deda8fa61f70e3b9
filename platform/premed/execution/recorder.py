"""What MLflow is told of an experiment: a run of its own, its fine-tuning and test below it, and what they came to.

A pre-training is nobody's child, for many experiments may share it: they, their fine-tunings and their tests name it
in the tag `pretrain_run`; on a trunk that is the cool-down's, and the experiment names the segments before it in
`trunk_<epochs>_run`. A run has one writer at a time: whoever holds the lease of its digest, until MLflow has heard
that it ended.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from premed.config.expand import title
from premed.config.experiment import Experiment, Stage
from premed.config.settings import BLIND, PRETRAINING, TRUNK, Kind, Pretrain, Train
from premed.contracts import Domain, Task
from premed.data.datamodule import cases, domains
from premed.errors import StageFailed
from premed.events import EventHandler, ModelRegistrationStarted, WarningIssued
from premed.paths import home, portable
from premed.training.stage import StageJob, make_objective
from premed.training.storage import StageStorage

DOING: dict[Kind, str] = {
    "pretrain": "pre-training",
    "trunk": "trunk",
    "cooldown": "cool-down",
    "import": "weights",
    "finetune": "fine-tuning",
    "test": "test",
}
REGISTERING = threading.Lock()  # torch exports one network at a time, and the ledger's threads are for other things
CONTEXTS = {"images": "training", "train": "training", "val": "validation", "test": "testing"}


class ExperimentRecorder:
    """One experiment in MLflow, written through the ledger."""

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        ledger: Any,
        show: EventHandler,
        pause: Callable[[float], None] = time.sleep,
        register: bool = True,
    ):
        """register: a fine-tuned network becomes a version of the task's model."""
        self.experiment, self.task, self.ledger, self.show, self.pause = experiment, task, ledger, show, pause
        self.registers = register
        self.run_id, self.digest = "", ""
        self.writing = False
        self.pretrain_run: str | None = None  # the run of the pre-training that the experiment stands on, once known
        self.copies: dict[str, list[str]] = {}  # by run: folders of the outbox that MLflow is still to read

    # ---- the experiment's own run

    def open(self, data: str) -> None:
        """Finds the experiment's run on that data, or makes it. A finished one stays as it is until there is news."""
        self.digest = hashlib.sha256(f"{self.experiment.digest()} {data}".encode()).hexdigest()
        tags = self.tags("experiment") | {"seed": str(self.experiment.finetune.seed)}
        wanted = self.task.name, title(self.experiment), self.digest, "experiment", None, tags, tree(self.experiment)
        named = self.task.name, self.digest, "experiment"
        found = self.ledger.newest(*named)
        if found is None:
            with self.alone():
                if (found := self.ledger.newest(*named)) is None:
                    found, self.writing = self.ledger.open(*wanted), True
        self.run_id = found

    def close(self, stages: list[dict[str, Any]]) -> None:
        """Scores and the resolved YAML on the experiment's run, unless they are there."""
        tags = {f"{known_as(done)}_run": done["run_id"] for done in stages}
        tags |= {"pretrain_run": self.pretrain_run} if self.pretrain_run else {}
        if self.ledger.holds(self.run_id, tags):
            return
        with self.alone():
            if self.ledger.holds(self.run_id, tags):
                return
            self.ledger.reopen(self.run_id)
            self.ledger.call("set_tags", self.run_id, tags)
            self.ledger.call("log_rows", self.run_id, [row(0, totals(stages))])
            folder = home() / "outbox" / self.run_id
            self.copies[self.run_id] = [folder.name]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "experiment.yaml").write_text(yaml.safe_dump(tree(self.experiment), sort_keys=False))
            self.ledger.call("log_files", self.run_id, str(folder / "experiment.yaml"))
            self.end(self.run_id, "FINISHED")

    def fail(self, status: str, reason: str = "") -> None:
        """The experiment ended early; says so, and why, if it was this command that ran it."""
        if self.writing:
            self.end(self.run_id, status, {"premed.failure": reason} if reason else None)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else opens or closes the experiment's run."""
        while not self.ledger.acquire(self.digest):
            self.pause(0.2)
        try:
            yield
        finally:
            self.ledger.release(self.digest)

    # ---- its stages

    def open_stage(self, stage: Stage, seen: Sequence[Domain], origin: StageStorage | None = None) -> str:
        """The stage's run: the unfinished one goes on, else a new one starts. seen: its data sets."""
        seed = stage.training and stage.training.seed  # type: ignore[attr-defined]
        if not self.writing:
            self.ledger.reopen(self.run_id)
            self.writing = True
        if stage.kind in BLIND:  # others may share it
            seeded = "" if seed is None else f" seed {seed}"
            on_trunk = isinstance(stage.training, Pretrain) and stage.training.trunk
            which = f" {stage.training.epochs} epochs" if on_trunk else ""  # type: ignore[union-attr]
            name, parent = f"{self.experiment.strategy} {DOING[stage.kind]}{which}{seeded}", None
        else:
            name, parent = f"{title(self.experiment)} {DOING[stage.kind]}", self.run_id
        # the first three are tags: as parameters they would crowd the UI's comparisons
        hidden: Any = {"kind": True, "parent": True, "data": True, "task": {"root"}, "pretext": {"weights"}}
        if isinstance(stage.training, Pretrain):
            places = {} if stage.training.sources is None else {"sources": {"__all__": {"task": {"root"}}}}
            hidden |= {"training": places | dict.fromkeys(stage.training.unsaid(), True)}
        params = {"stage": stage.model_dump(mode="json", exclude=hidden)}
        tags = self.tags(stage.kind) | ({} if seed is None else {"seed": str(seed)})
        tags |= {"compute": computed_on(self.experiment.train)}
        tags |= {"premed.data": stage.data, "premed.parent_digest": stage.parent or ""}
        run_id = self.ledger.open(self.task.name, name, stage.digest(), stage.kind, parent, tags, params)
        if stage.training is not None:  # an import sees no images
            self.ledger.call("log_datasets", run_id, self.datasets(stage, seen))
        if origin:  # before the stage's own points, for MLflow takes them in order
            self.ledger.call("log_rows", run_id, curve_of(origin))
        return run_id

    def tags(self, kind: str) -> dict[str, str]:
        experiment, pretrain = self.experiment, self.experiment.pretrain
        tags = {"task": self.task.name, "strategy": experiment.strategy, "stage": kind}
        tags |= {"encoder": experiment.encoder.name}
        if kind in BLIND:  # it has neither labels nor a head
            return tags
        tags |= {"head": experiment.finetune.head.name, "label_fraction": f"{experiment.finetune.label_fraction:g}"}
        tags |= {"score": self.task.score} | ({"pretrain_run": self.pretrain_run} if self.pretrain_run else {})
        trained = pretrain and experiment.kinds[0] in PRETRAINING
        return tags | ({"pretrain_seed": str(pretrain.seed)} if pretrain and trained else {})

    def datasets(self, stage: Stage, seen: Sequence[Domain]) -> list[dict[str, Any]]:
        """Each part of each data set; where there are several, they have one digest together."""
        parts = [part.split(":") for part in stage.data.split(" ")]
        return [
            {
                "name": f"{task.name} {name}",
                "digest": digest[:32],
                "context": CONTEXTS[name],
                "source": portable(task.root),
                "num_cases": len(some),
            }
            for task, _, _ in seen
            for (name, digest), some in zip(
                parts, [task.split("test")] if stage.kind == "test" else cases(stage, task), strict=True
            )
        ]

    def record(self, job: StageJob, run_id: str, result: dict[str, Any]) -> None:
        """Everything of a finished stage: curve, scores, pictures, weights, cost and, of a fine-tuning, the model."""
        storage, call = job.stage_storage, self.ledger.call
        folder = local_copy(storage)
        if not storage.local:
            self.copies[run_id] = [folder.name]
        if curve := curve_of(storage):
            call("log_rows", run_id, curve)
        call("log_rows", run_id, [row(result.get("num_steps", 0), numbers_of(result))])
        if scores := storage.get_json("scores.json"):  # an import and a trunk have none
            call("log_scores", run_id, scores)
        for name in ("pictures", "parts"):
            if (folder / name).is_dir():
                call("log_files", run_id, str(folder / name), name)
        for name in ("result.json", "curve.jsonl", "constant.json"):
            if (folder / name).is_file():
                call("log_files", run_id, str(folder / name))
        call("set_tags", run_id, {"premed.where": place(storage)})
        self.register(job, run_id, result)
        self.end(run_id, "FINISHED")

    def register(self, job: StageJob, run_id: str, result: dict[str, Any]) -> None:
        """A fine-tuned network as a model under the task's name, once; `best` is the one with the highest val score."""
        import numpy as np

        if job.stage.kind != "finetune" or not self.registers:
            return
        try:
            about = job.stage_storage.get_json("parts/card.json")
            if about is None or self.ledger.registered(run_id) is not False:  # no card: storage was cleaned
                return
            self.show(ModelRegistrationStarted(self.task.name))
            # as a test stage does it: the parts that val picked
            stage = job.stage.model_copy(update={"kind": "test"})
            loading = StageJob(stage, job.stage, job.train, job.storage, job.cache)
            objective, _ = make_objective(loading, domains(stage, lambda config: self.task))
            example = np.zeros((2, self.task.channels, *self.task.roi), np.float32)
            score = result["summary"].get(f"val/{self.task.score}", float("-inf"))
            with REGISTERING:
                self.pause(0)  # the command may have been stopped meanwhile
                self.ledger.register(run_id, self.task.name, objective.network, example, score, about)
        except StageFailed as error:
            self.show(WarningIssued(f"the model was not registered: {error}"))

    def end(self, run_id: str, status: str, tags: dict[str, str] | None = None) -> None:
        """The run is over; back when MLflow has heard of it, or has been silent for a while (it will hear later)."""
        if tags:
            self.ledger.call("set_tags", run_id, tags)
        self.ledger.call("finish", run_id, status)
        if self.ledger.settle(run_id):
            for name in self.copies.pop(run_id, []):
                shutil.rmtree(home() / "outbox" / name, ignore_errors=True)


def row(step: int, metrics: dict[str, float]) -> dict[str, Any]:
    return {"step": step, "time": int(time.time() * 1000), "metrics": metrics}


def numbers_of(result: dict[str, Any]) -> dict[str, float]:
    """The few numbers of a stage's result that a run is listed with; those of each class are in its files."""
    few = {name: value for name, value in result["summary"].items() if name.count("/") == 1}
    few |= {"seconds": result["seconds"], "peak_memory_mb": result["peak_memory_mb"]}
    if result["kind"] == "test":
        few |= {"test/low": result["interval"][0], "test/high": result["interval"][1]}
        few |= {"test/constant": result["constant"]}
    # a curve's own last point is already at the last step: the summary of the chosen weights goes by other names
    return {(f"best/{name}" if name.startswith("val/") else name): value for name, value in few.items()}


def computed_on(train: Train) -> str:
    """What a second of a stage takes: `2 CPU`, `4 GPU`."""
    workers = max(train.most, 1)  # where their number changes, at the most
    return f"{workers} GPU" if train.gpu else f"{workers * train.cpus:g} CPU"


def totals(stages: list[dict[str, Any]]) -> dict[str, float]:
    """The scores and seconds of all stages, for the experiment's run."""
    numbers: dict[str, float] = {}
    for done in stages:
        which = "pretrain" if done["kind"] in PRETRAINING else done["kind"]
        prefix = "pretrain_" if which == "pretrain" else ""
        numbers |= {f"{prefix}{name}": value for name, value in done["summary"].items() if name.count("/") == 1}
        numbers[f"{which}_seconds"] = numbers.get(f"{which}_seconds", 0.0) + done["seconds"]
    return numbers


def known_as(done: dict[str, Any]) -> str:
    """What an experiment calls a stage of its own, by its result."""
    if done["kind"] == "trunk":
        return f"{TRUNK}{done['epochs']}"
    return "pretrain" if done["kind"] in PRETRAINING else done["kind"]


def curve_of(storage: StageStorage) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (storage.get("curve.jsonl") or b"").splitlines()]


def local_copy(storage: StageStorage) -> Path:
    """The storage's files on this machine: its own folder, or a copy that stays until MLflow has heard of it."""
    if storage.local:
        return Path(storage.where)
    folder = home() / "outbox" / Path(storage.where).name
    for name in storage.names():
        content = None if name.startswith(("checkpoints/", "best/", "snapshots/")) else storage.get(name)
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


def place(storage: StageStorage) -> str:
    """Where a storage is, as a run records it: below ${PREMED_HOME} where it lies there, so that the home can move."""
    inside = storage.local and Path(storage.where).is_relative_to(home())
    return os.path.join("${PREMED_HOME}", os.path.relpath(storage.where, home())) if inside else storage.where


def tree(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment, its data root (and a file of weights) as ${PREMED_DATA}/…."""
    whole = experiment.model_dump(mode="json")
    sources = (whole["pretrain"] or {}).get("sources") or []
    for part, field in (
        (whole["task"], "root"),
        (whole["pretext"], "weights"),
        *((source["task"], "root") for source in sources),
    ):
        if part.get(field):
            part[field] = portable(Path(part[field]))
    return whole
