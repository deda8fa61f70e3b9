"""The driver: one experiment through its stages, each found or trained, and recorded. Neither Ray nor MLflow here."""

import hashlib
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch

from premed.checkpoint import CheckpointManager
from premed.cohort import cases, domains
from premed.config.experiment import Experiment, Stage
from premed.config.plugins import plugin
from premed.config.settings import BLIND, PRETRAINING, Kind
from premed.config.spec import Spec, canonical, unscored
from premed.contracts import Domain
from premed.data.datamodule import Data, Show, joined
from premed.errors import LeaseLost, StageFailed, UserError, first_line
from premed.events import CollapseDetected, GateNotPassed, StageReused, StageStarted, WaitingForStage, WarningIssued
from premed.models.network import load_resized
from premed.once import Once
from premed.paths import storage
from premed.planning import planned
from premed.records import ExperimentRecorder
from premed.supervised import Supervised
from premed.tracker import Tracker
from premed.worker import StageJob, make_objective, run_stage

Trainer = Callable[[StageJob, str], None]
"""Runs a stage until its result is in its storage; its events go to the tracker, under the run's id."""
KNOWN_BY = ("import", "finetune")  # the kinds of stages whose data tell two experiments of the same fields apart
POLL = 1.0  # seconds between two looks at a stage that another command is at


@dataclass
class Common:
    """What all experiments of a command share."""

    ledger: Tracker
    mapper: Any
    """Prepares images: called like `map`, or None."""
    show: Show
    pause: Callable[[float], None] = time.sleep
    """Waits so many seconds; raises KeyboardInterrupt where the command was stopped."""
    once: Once = field(default_factory=Once)
    register: bool = True
    """Whether a fine-tuned network becomes a version of the task's model in MLflow."""

    def data(self, config: Spec) -> Data:
        """A task's, one for all experiments on it, however they score it."""
        task = "data", unscored(config).model_dump_json()
        return self.once(task, lambda: Data(config, self.mapper, self.show))[0]


class Driver:
    """One experiment on its way through its stages. Several may be on theirs at once, a thread each."""

    rehearsing = threading.Lock()  # torch's `meta` is a word to the whole process

    def __init__(self, experiment: Experiment, common: Common, trainer: Trainer, show: Show):
        self.experiment, self.common, self.trainer, self.show = experiment, common, trainer, show
        self.ledger, self.data = common.ledger, common.data(experiment.task)
        self.task = self.data.task
        self.records = ExperimentRecorder(experiment, self.task, self.ledger, show, common.pause, common.register)
        self.storage = storage(experiment.train.storage)
        self.stages: list[dict[str, Any]] = []
        """The results of those that are finished so far."""
        self.jobs: dict[str, StageJob] = {}  # by digest, of the stages that were asked for so far

    def run(self) -> dict[str, Any]:
        """What came of it: task, strategy, the score's name, the MLflow run, and each stage's result."""
        self.records.open(self.known_by())
        try:
            before: Stage | None = None
            for stage in self.experiment.stages(self.fingerprint):
                self.stages.append(self.find_or_train(stage, before))
                if stage.kind in BLIND:
                    self.records.pretrain_run = self.stages[-1]["run_id"]
                before = stage
            self.records.close(self.stages)
        except Exception as error:
            self.records.fail("FAILED", first_line(error))
            raise
        except BaseException:  # Ctrl-C
            self.records.fail("KILLED")
            raise
        about = {"task": self.task.name, "strategy": self.experiment.strategy, "score": self.task.score}
        return about | {"run_id": self.records.run_id, "stages": self.stages}

    def known_by(self) -> str:
        """The fingerprints of what the experiment sees. A pre-training on the task's own images sees no others."""
        others = PRETRAINING if self.experiment.pretrain and self.experiment.pretrain.sources else ()
        seen = [self.fingerprint(kind) for kind in self.experiment.kinds if kind in (*KNOWN_BY, *others)]
        return " ".join(dict.fromkeys(seen))

    def domains(self, stage: Stage) -> list[Domain]:
        """The data sets that a stage sees."""
        return domains(stage, [self.common.data(origin.task).task for origin in stage.origins])

    def fingerprint(self, kind: Kind) -> str:
        """What a stage of that kind sees: images; or weights, made to fit the task's channels and values."""
        if kind != "import":
            return joined([self.common.data(each.task).fingerprint(kind) for each in self.experiment.origins(kind)])
        content = plugin("pretext", self.experiment.pretext).content(self.experiment.pretext)
        seen = canonical([content, self.task.channels, self.task.recipe.digest()])
        return f"weights:{hashlib.sha256(seen.encode()).hexdigest()}"

    def find_or_train(self, stage: Stage, before: Stage | None) -> dict[str, Any]:
        """The stage's result: what another experiment of this command made of it, its failure too, or our own."""
        job = StageJob(stage, before, self.experiment.train, self.storage, self.data.root)
        self.jobs[stage.digest()] = job
        work, wait = partial(self.found_or_trained, job), partial(self.wait, stage)
        result, ours = self.common.once((stage.digest(), self.storage), work, wait, self.common.pause)
        if ours:
            return result
        self.show(StageReused(stage.kind, result["where"]))
        return result | {"reused": True}

    def wait(self, stage: Stage) -> None:
        """Another experiment of this command is at the stage."""
        self.show(WaitingForStage(stage.kind, "experiment"))
        if stage.kind in PRETRAINING:
            self.rehearse()

    def found_or_trained(self, job: StageJob, whole: bool = False) -> dict[str, Any]:
        """The result that is there, or another command's once it is done, or a new one.

        whole: what the next segment of a trunk goes on from is there, too.
        """
        kind, digest, waiting = job.stage.kind, job.stage.digest(), False
        while (found := self.find(job, whole)) is None:
            if self.ledger.acquire(digest):
                try:  # whoever held the lease may just have ended
                    return self.find(job, whole) or (None if whole else self.restore(job)) or self.train(job)
                except LeaseLost as error:
                    self.show(WarningIssued(f"{kind}: {error}"))
                finally:
                    self.ledger.release(digest)
            if not waiting:
                self.show(WaitingForStage(kind, "command"))
            waiting = True
            self.common.pause(POLL)
        return found

    def regain(self, job: StageJob) -> None:
        """Makes sure of the state that a segment of a trunk ended with.

        It is in the storage alone and in no MLflow: where that was cleaned, the segment is trained again.
        """
        work = partial(self.found_or_trained, job, whole=True)
        if not CheckpointManager(job.stage_storage).steps():
            self.show(WarningIssued(f"{job.stage_storage.where}: its state is gone, so it is trained again"))
            self.common.once((job.stage.digest(), self.storage, "whole"), work, partial(self.wait, job.stage))

    def find(self, job: StageJob, whole: bool = False) -> dict[str, Any] | None:
        """A stage that is finished, in storage and in MLflow."""
        result = job.stage_storage.get_json("result.json")
        if whole and not CheckpointManager(job.stage_storage).steps():
            return None
        run_id = self.ledger.finished_run(job.stage.digest(), job.stage.kind) if result else None
        return self.reused(job, run_id, result) if result and run_id else None

    def restore(self, job: StageJob) -> dict[str, Any] | None:
        """A stage that is finished in one of the two: storage was cleaned, or MLflow is another (or missed the end)."""
        stage, stage_storage = job.stage, job.stage_storage
        result = stage_storage.get_json("result.json")
        run_id = self.ledger.finished_run(stage.digest(), stage.kind)
        if result is None and run_id is not None:
            with TemporaryDirectory() as folder:
                if self.ledger.download(run_id, folder, stage.kind not in ("import", "trunk")):
                    files = [path for path in Path(folder).rglob("*") if path.is_file()]
                    for path in sorted(files, key=lambda path: path.name == "result.json"):  # it says that all is there
                        stage_storage.put(path.relative_to(folder).as_posix(), path.read_bytes())
            result = stage_storage.get_json("result.json")
        if result is None:
            return None
        if run_id is None:
            run_id = self.records.open_stage(stage, self.domains(stage))
            self.records.record(job, run_id, result)
        return self.reused(job, run_id, result)

    def reused(self, job: StageJob, run_id: str, result: dict[str, Any]) -> dict[str, Any]:
        self.show(StageReused(job.stage.kind, job.stage_storage.where))
        self.records.register(job, run_id, result)  # where a sweep trained it, which registers none
        return self.done(job, run_id, result, reused=True)

    def done(self, job: StageJob, run_id: str, result: dict[str, Any], reused: bool) -> dict[str, Any]:
        if (gate := result.get("gate")) and not gate["passed"]:
            self.show(GateNotPassed(gate["loss"], gate["gate"]))
        if collapse := result.get("collapse"):
            self.show(CollapseDetected(**collapse))
        return {"run_id": run_id, "reused": reused, "where": job.stage_storage.where} | result

    def train(self, job: StageJob) -> dict[str, Any]:
        """Runs the stage to its result and records it."""
        kind, stage_storage = job.stage.kind, job.stage_storage
        if kind in PRETRAINING:
            self.rehearse()
        if job.trunk_storage:
            self.regain(self.jobs[job.stage.parent or ""])
        run_id = self.records.open_stage(job.stage, self.domains(job.stage), job.trunk_storage)
        self.show(StageStarted(kind, stage_storage.where))
        for name in ("failure.json", "result.json"):  # of an earlier try; of a segment whose state is gone
            if stage_storage.get(name):
                stage_storage.remove(name)
        try:
            if kind == "import":  # here, where the file is
                run_stage(job, self.show, lambda numbers: None)
            else:
                self.trainer(job, run_id)
        except Exception as error:
            if self.ledger.lease_lost(job.stage.digest()):  # no record from here: the run is the other command's now
                raise LeaseLost(str(error)) from None
            if stage_storage.get("failure.json"):
                return self.refuse(job, run_id)
            if isinstance(error, UserError):  # what is wrong with a node is no stage's failure
                self.records.end(run_id, "FAILED", {"premed.failure": str(error)})
                raise
            stage_storage.put("traceback.txt", traceback.format_exc().encode())
            message = f"{first_line(error)} ({stage_storage.where}/traceback.txt has the whole story)"
            self.records.end(run_id, "FAILED", {"premed.failure": message})
            raise StageFailed(f"{kind}: {message}; the same command goes on from the last checkpoint") from error
        except BaseException:  # Ctrl-C
            self.records.end(run_id, "KILLED")
            raise
        result = stage_storage.get_json("result.json")
        if result is None:
            self.refuse(job, run_id)
        self.records.record(job, run_id, result)
        return self.done(job, run_id, result, reused=False)

    def refuse(self, job: StageJob, run_id: str) -> NoReturn:
        """The workers ended without a result, and have said why in `failure.json` (or have not)."""
        failure = job.stage_storage.get_json("failure.json")
        message = failure["message"] if failure else f"the workers ended without a result in {job.stage_storage.where}"
        self.records.end(run_id, "FAILED", {"premed.failure": message})
        if failure and failure["kind"] == "UserError":
            raise UserError(message)
        raise StageFailed(f"{job.stage.kind}: {message}")

    def rehearse(self) -> None:
        """Builds all networks without memory for their weights: a mistake in a later stage costs no earlier one."""
        for stage in self.experiment.stages(lambda kind: ""):
            if stage.kind == "trunk":
                planned(stage, [len(cases(stage, domain.task)[0]) for domain in self.domains(stage)])
        before = None
        with self.rehearsing, torch.device("meta"):
            for stage in self.experiment.stages(lambda kind: ""):
                job = StageJob(stage, None, self.experiment.train, "", self.data.root)
                objective, _ = make_objective(job, self.domains(stage))
                encoder = objective.parts["encoder"]
                if isinstance(objective, Supervised):
                    objective.network(torch.zeros(1, self.task.channels, *self.task.roi))
                    self.refuse_misfit(before, encoder)
                before = encoder

    def refuse_misfit(self, before: Any, encoder: Any) -> None:
        """UserError where an encoder, pre-trained on images of another shape, does not fit the task's."""
        try:
            load_resized(encoder, before.state_dict(), before.grid)
        except UserError as error:
            raise UserError(f"pretrain.sources: their encoder does not suit {self.task.name}: {error}") from None
