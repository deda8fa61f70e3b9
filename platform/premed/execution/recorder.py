"""What an experiment records in MLflow: a run of its own, its fine-tuning and test as child runs, and their results.

A pre-training has no parent run, for many experiments may share it: they, their fine-tunings and their tests name it
in the tag `pretrain_run`; on a trunk that is the cool-down's, and the experiment names the segments before it in
`trunk_<epochs>_run`. A run has one writer at a time: the holder of the lease of its digest, until its end is delivered.
"""

import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from premed.config.expand import title
from premed.config.experiment import Experiment, Stage
from premed.config.settings import LABEL_FREE, PRETRAINING, TRUNK, Kind, Pretrain, Train
from premed.config.spec import with_versions
from premed.contracts import DataSet, Task
from premed.data.datamodule import stage_cases, stage_data_sets
from premed.errors import StageFailed, UserError, first_line
from premed.events import EventHandler, ModelRegistrationStarted, WarningIssued
from premed.execution.run_summary import arm_digest, numbers_of, row, summary_params, totals
from premed.paths import home, portable_path
from premed.tracking import model_registry
from premed.tracking.tracker import Tracker
from premed.training.artifacts import curve_of, put_root
from premed.training.privacy import Privacy
from premed.training.setup import StageJob, make_objective
from premed.training.storage import StageStorage

DOING: dict[Kind, str] = {
    "pretrain": "pre-training",
    "trunk": "trunk",
    "cooldown": "cool-down",
    "import": "weights",
    "finetune": "fine-tuning",
    "test": "test",
}
REGISTERING = threading.Lock()  # torch exports one network at a time; more would only take turns
CONTEXTS = {"images": "training", "train": "training", "val": "validation", "test": "testing"}


class ExperimentRecorder:
    """Records one experiment in MLflow, through the tracker."""

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        tracker: Tracker,
        on_event: EventHandler,
        pause: Callable[[float], None] = time.sleep,
        register: bool = True,
    ):
        """register: a fine-tuned network becomes a version of the task's model."""
        self.experiment, self.task, self.tracker, self.on_event = experiment, task, tracker, on_event
        self.pause, self.registers = pause, register
        self.run_id, self.digest, self.writing, self.privacy = "", "", False, Privacy.of(experiment.tracking)
        self.pretrain_run: str | None = None  # the run of the pre-training that the experiment starts from, once known
        self.pretrain_encoder: str | None = None  # the name by which the experiment takes a finished one
        self.more_tags: dict[str, str] = {}  # of the experiment's run once it is finished
        self.copies: dict[str, list[str]] = {}  # by run: folders of copied files that MLflow has not read yet

    # ---- the experiment's own run

    def open(self, data: str) -> None:
        """Finds or creates the run. A finished one stays as it is until there are results. data: its fingerprints."""
        self.digest = hashlib.sha256(f"{self.experiment.digest()} {data}".encode()).hexdigest()
        key = self.task.name, self.digest, "experiment"
        run_id = self.tracker.newest_run(*key)
        if run_id is None:
            with self.exclusive():
                if (run_id := self.tracker.newest_run(*key)) is None:
                    tags = self.tags("experiment") | {"arm_digest": arm_digest(self.experiment, data)}
                    about = None, tags, summary_params(self.experiment)
                    run_id = self.tracker.open_run(self.task.name, title(self.experiment), *key[1:], *about)
                    self.writing = True
        self.run_id = run_id

    def close(self, stages: list[dict[str, Any]]) -> None:
        """Logs scores and the resolved YAML to the experiment's run, unless they are there, and ends it."""
        tags = {f"{name_of(result)}_run": result["run_id"] for result in stages}
        tags |= self.more_tags | ({"pretrain_run": self.pretrain_run} if self.pretrain_run else {})
        if self.tracker.finished_with(self.run_id, tags):
            return
        with self.exclusive():
            if self.tracker.finished_with(self.run_id, tags):
                return
            self.tracker.reopen_run(self.run_id, summary_params(self.experiment))
            named = {"pretrain_encoder": self.pretrain_encoder} if self.pretrain_encoder else {}
            self.tracker.set_tags(self.run_id, tags | named)
            self.tracker.log_rows(self.run_id, [row(0, totals(stages))])
            folder = home() / "outbox" / self.run_id
            self.copies.setdefault(self.run_id, []).append(folder.name)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "experiment.yaml").write_text(yaml.safe_dump(tree(self.experiment), sort_keys=False))
            self.tracker.log_files(self.run_id, str(folder / "experiment.yaml"))
            self.end(self.run_id, "FINISHED")

    def fail(self, status: str, reason: str = "") -> None:
        """Ends the experiment's run early, with the reason, if this command has written to it."""
        if self.writing:
            self.end(self.run_id, status, {"premed.failure": reason} if reason else None)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the lease of the experiment's run: nobody else creates or ends it."""
        while not self.tracker.acquire(self.digest):
            self.pause(0.2)
        try:
            yield
        finally:
            self.tracker.release(self.digest)

    # ---- its stages

    def open_stage(self, stage: Stage, data_sets: Sequence[DataSet], trunk: StageStorage | None = None) -> str:
        """Starts or reopens the stage's run; returns its id. trunk: the segment it continues, whose curve is logged."""
        seed = stage.training and stage.training.seed  # type: ignore[attr-defined]
        if not self.writing:
            self.tracker.reopen_run(self.run_id, summary_params(self.experiment))
            self.writing = True
        if stage.kind in LABEL_FREE:  # others may share it
            seeded = "" if seed is None else f" seed {seed}"
            on_trunk = isinstance(stage.training, Pretrain) and stage.training.trunk
            length = f" {stage.training.epochs} epochs" if on_trunk else ""  # type: ignore[union-attr]
            strategy = stage.pretext.name  # type: ignore[union-attr]  # of an import, the one that has the weights
            name, parent = f"{strategy} {DOING[stage.kind]}{length}{seeded}", None
        else:
            name, parent = f"{title(self.experiment)} {DOING[stage.kind]}", self.run_id
        # the first three are tags: as parameters they would crowd the UI; weights are a path, and init is its parent
        hidden: Any = {"kind": True, "parent": True, "data": True, "task": {"root"}, "pretext": {"weights", "init"}}
        if isinstance(stage.training, Pretrain):
            places = {} if stage.training.sources is None else {"sources": {"__all__": {"task": {"root"}}}}
            hidden |= {"training": places | dict.fromkeys(stage.training.unused_fields(), True)}
        params = {"stage": self.privacy.fields(with_versions(stage.model_dump(mode="json", exclude=hidden), stage))}
        tags = self.tags(stage.kind) | ({} if seed is None else {"seed": str(seed)})
        tags |= {"strategy": stage.pretext.name} if stage.pretext else {}  # type: ignore[attr-defined]
        tags |= {"compute": resources_of(self.experiment.train)}
        tags |= {"premed.data": stage.data, "premed.parent_digest": stage.parent or ""}
        run_id = self.tracker.open_run(self.task.name, name, stage.digest(), stage.kind, parent, tags, params)
        if stage.training is not None:  # an import has no images
            self.tracker.log_datasets(run_id, self.datasets(stage, data_sets))
        if trunk:  # before the stage's own points: MLflow takes them in order
            self.tracker.log_rows(run_id, curve_of(trunk))
        return run_id

    def tags(self, kind: str) -> dict[str, str]:
        experiment, pretrain, finetune = self.experiment, self.experiment.pretrain, self.experiment.finetune
        tags = {"task": self.task.name, "strategy": experiment.strategy, "encoder": experiment.encoder.name}
        if kind in LABEL_FREE:
            return tags | {"stage": kind}
        tags |= {"stage": kind} | ({"folds": str(self.task.num_folds)} if self.task.num_folds else {})
        if finetune is not None:  # else there are neither labels nor a head
            tags |= {"head": finetune.head.name, "label_fraction": f"{finetune.label_fraction:g}"}
            tags |= {"score": self.task.score} | ({"pretrain_run": self.pretrain_run} if self.pretrain_run else {})
        trained = experiment.pretrained or any(each in PRETRAINING for each in experiment.kinds)
        tags |= {"pretrain_seed": str(pretrain.seed)} if pretrain and trained else {}
        return tags | ({"seed": str((finetune or pretrain).seed)} if kind == "experiment" else {})  # type: ignore

    def datasets(self, stage: Stage, data_sets: Sequence[DataSet]) -> list[dict[str, Any]]:
        """An entry for each part of each data set; where there are several data sets, they share one digest."""
        parts = [part.split(":") for part in stage.data.split(" ")]
        return [
            {
                "name": f"{task.name} {name}",
                "digest": digest[:32],
                "context": CONTEXTS[name],
                "source": portable_path(task.root),
                "num_cases": len(part),
            }
            for task, _, _ in data_sets
            for (name, digest), part in zip(
                parts, [task.split("test")] if stage.kind == "test" else stage_cases(stage, task), strict=True
            )
        ]

    def record(self, job: StageJob, run_id: str, result: dict[str, Any]) -> None:
        """Records a finished stage: curve, scores, pictures, weights, cost and, of a fine-tuning, the model."""
        storage, tracker = job.stage_storage, self.tracker
        folder = local_copy(storage)
        if not storage.local:
            self.copies.setdefault(run_id, []).append(folder.name)
        if curve := curve_of(storage):
            tracker.log_rows(run_id, curve)
        tracker.log_rows(run_id, [row(result.get("num_steps", 0), numbers_of(result))])
        if scores := storage.get_json("scores.json"):  # an import and a trunk have none
            tracker.log_scores(run_id, scores)
        for name in ("pictures", "parts"):
            if (folder / name).is_dir():
                tracker.log_files(run_id, str(folder / name), name)
        for name in ("result.json", "curve.jsonl", "constant.json"):
            if (folder / name).is_file():
                tracker.log_files(run_id, str(folder / name))
        ended = {"premed.stopped": f"at step {end['step']} of {end['of']}"} if (end := result.get("stopped")) else {}
        how = {f"premed.{name}": str(result[name]) for name in ("precision", "compiled") if name in result}
        tracker.set_tags(run_id, {"premed.where": portable_place(storage)} | how | ended)
        if storage.local and job.stage.kind == "finetune" and self.privacy.key is None:
            put_root(storage, self.task.root)
        self.register(job, run_id, result)
        self.end(run_id, "FINISHED")

    def register(self, job: StageJob, run_id: str, result: dict[str, Any]) -> None:
        """Registers a fine-tuned network as a version of the task's model, once; `best` has the highest val score."""
        import numpy as np

        if job.stage.kind != "finetune" or not self.registers:
            return
        try:
            card = job.stage_storage.get_json("parts/card.json")
            if card is None or self.tracker.is_registered(run_id) is not False:  # no card: storage was cleaned
                return
            self.on_event(ModelRegistrationStarted(self.task.name))
            # loaded as a test stage does it: the parts that validation picked
            stage = job.stage.model_copy(update={"kind": "test"})
            loading = StageJob(stage, job.stage, job.train, job.storage, job.cache)
            objective, _ = make_objective(loading, stage_data_sets(stage, lambda config: self.task))
            example = np.zeros((2, self.task.channels, *self.task.roi), np.float32)
            score = result["summary"].get(f"val/{self.task.score}", -math.inf)
            self.register_network(run_id, self.task.name, objective.network, example, score, card)
        except (StageFailed, UserError) as error:  # UserError: its weights are damaged
            self.on_event(WarningIssued(f"the model was not registered: {error}"))

    def register_network(
        self, run_id: str, name: str, network: Any, example: Any, score: float | None, card: dict[str, Any]
    ) -> str | None:
        """Exports a network here, where its weights are, and registers it; returns the version, None if that fails."""
        with REGISTERING, TemporaryDirectory() as folder:
            self.pause(0)  # the command may have been stopped meanwhile
            try:
                model_registry.export(network, example, card, Path(folder) / "model")
            except Exception as error:  # noqa: BLE001 - torch's, of whatever kind: it must not fail a training
                self.on_event(WarningIssued(f"the network was not registered: {first_line(error)}"))
                return None
            return self.tracker.register_model(run_id, name, f"{folder}/model", score)

    def end(self, run_id: str, status: str, tags: dict[str, str] | None = None) -> None:
        """Ends a run; waits some seconds for its delivery to MLflow, and then removes copied files.

        In a stopped command one second: closing the tracker delivers what is left of all runs together.
        """
        if tags:
            self.tracker.set_tags(run_id, self.privacy.tags(tags))
        self.tracker.finish(run_id, status)
        if self.tracker.wait_delivered(run_id, 1.0 if status == "KILLED" else 10.0):
            for name in self.copies.pop(run_id, []):
                shutil.rmtree(home() / "outbox" / name, ignore_errors=True)


def resources_of(train: Train) -> str:
    """What a stage computes on: `2 CPU`, `4 GPU`."""
    workers = max(train.max_workers, 1)  # the largest number, if it is elastic
    return f"{workers} GPU" if train.gpu else f"{workers * train.cpus:g} CPU"


def name_of(result: dict[str, Any]) -> str:
    """The name of a stage in the experiment's tags."""
    if result["kind"] == "trunk":
        return f"{TRUNK}{result['epochs']}"
    return "pretrain" if result["kind"] in PRETRAINING else result["kind"]


def local_copy(storage: StageStorage) -> Path:
    """The folder of a stage's files on this machine: its storage, or a copy that stays until MLflow has read it."""
    if storage.local:
        return Path(storage.where)
    folder = home() / "outbox" / Path(storage.where).name
    for name in storage.names():
        content = None if name.startswith(("checkpoints/", "best/", "snapshots/")) else storage.get(name)
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


def portable_place(storage: StageStorage) -> str:
    """The folder of a stage for its run's tag: ${PREMED_HOME}/… if it is in there, so that PREMED_HOME can be moved."""
    inside = storage.local and Path(storage.where).is_relative_to(home())
    return os.path.join("${PREMED_HOME}", os.path.relpath(storage.where, home())) if inside else storage.where


def tree(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment as JSON, its data root (and a file of weights) as ${PREMED_DATA}/…."""
    fields = experiment.model_dump(mode="json")
    sources = (fields["pretrain"] or {}).get("sources") or []
    given = [fields["pretext"], fields["pretext"].get("init") or {}]
    places = [(fields["task"], "root"), *((each, "weights") for each in given)]
    places += [(each["task"], "root") for each in sources]
    for part, field in places:
        if part.get(field):
            part[field] = portable_path(Path(part[field]))
    return Privacy.of(experiment.tracking).fields(fields)
