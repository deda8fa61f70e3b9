"""StagePipeline: runs one experiment's stages; each is reused or trained, and recorded. No Ray, no MLflow."""

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NoReturn, cast

from premed.config.experiment import FinishedStage, Stage
from premed.config.plugins import plugin
from premed.config.settings import LABEL_FREE, PRETRAINING, Kind, Pretrain
from premed.config.spec import canonical
from premed.contracts import DataSet
from premed.data.datamodule import join_fingerprints, stage_data_sets
from premed.errors import LeaseLost, StageFailed, UserError, first_line
from premed.events import (
    CollapseDetected,
    Event,
    GateNotPassed,
    StageReused,
    StageStarted,
    WaitingForStage,
    WarningIssued,
)
from premed.execution.executor import LocalExecutor
from premed.execution.networks import refuse_full_storage
from premed.execution.preflight import Resolved
from premed.execution.publisher import publish
from premed.execution.recorder import ExperimentRecorder
from premed.execution.scheduler import Ticket
from premed.execution.session import Session
from premed.paths import home, storage
from premed.training.results import other_rounding, put_files, read_result, whole_result
from premed.training.setup import StageJob, is_usable

IDENTIFYING = ("import", "finetune")
"""The kinds of stages whose data distinguish two experiments with the same fields."""
POLL = 1.0  # seconds between two checks of a stage that another command trains


class StagePipeline:
    """Runs the stages of one experiment. Several experiments may run at once, each in a thread."""

    def __init__(self, resolved: Resolved, session: Session, ticket: Ticket, register: bool = True):
        """register: a fine-tuned network becomes a version of the task's model in MLflow."""
        self.experiment, self.name, self.session, self.ticket = resolved.experiment, resolved.name, session, ticket
        self.resolved = resolved
        self.task, self.tracker, self.executor = resolved.task, session.tracker, session.executor(ticket)
        self.recorder = ExperimentRecorder(
            self.experiment, self.task, self.tracker, self.show, ticket.pause, register=register
        )
        self.recorder.pretrain_encoder = resolved.pretrained and resolved.pretrained.reference
        self.recorder.more_tags = resolved.tags
        self.storage, self.cache = storage(self.experiment.train.storage), home() / "cache"
        self.stages: list[dict[str, Any]] = []
        """The results of those that are finished so far."""
        self.jobs: dict[str, StageJob] = {}
        """The jobs of the stages so far, by digest."""

    def show(self, event: Event) -> None:
        """Shows an event with the experiment's name, where the command has several."""
        self.session.show(replace(event, experiment=self.name))

    def run(self) -> dict[str, Any]:
        """Runs all stages. Returns the outcome: task, strategy, name of the score, MLflow run, each stage's result;
        of a pre-training alone the published encoder, too."""
        self.session.refuse_leaks(self.resolved)
        self.recorder.open(self.identity())
        about: dict[str, Any] = {"task": self.task.name, "strategy": self.experiment.strategy, "score": self.task.score}
        try:
            parent = self.take_pretraining()
            for stage in self.experiment.stages(self.fingerprint):
                self.stages.append(self.find_or_train(stage, parent))
                if stage.kind in LABEL_FREE:
                    self.recorder.pretrain_run = self.stages[-1]["run_id"]
                parent = stage
            if self.experiment.finetune is None:
                assert isinstance(parent, Stage)
                job, run_id = self.jobs[parent.digest()], self.stages[-1]["run_id"]
                about["encoder"] = publish(job, run_id, self.resolved, self.session, self.recorder)
            self.recorder.close(self.stages)
        except Exception as error:
            self.recorder.fail(*(("KILLED",) if self.session.stopping else ("FAILED", first_line(error))))
            raise
        except BaseException:  # Ctrl-C
            self.recorder.fail("KILLED")
            raise
        return about | {"run_id": self.recorder.run_id, "stages": self.stages}

    def identity(self) -> str:
        """The fingerprints of the experiment's data. A pre-training without sources of its own adds no images."""
        pretrain, alone = self.experiment.pretrain, self.experiment.finetune is None
        others = PRETRAINING if alone or (isinstance(pretrain, Pretrain) and pretrain.sources) else ()
        kinds: list[Kind] = [kind for kind in self.experiment.kinds if kind in (*IDENTIFYING, *others)]
        return " ".join(dict.fromkeys(self.fingerprint(kind) for kind in kinds))

    def data_sets(self, stage: Stage) -> list[DataSet]:
        """The data sets of a stage."""
        return stage_data_sets(stage, self.session.tasks)

    def fingerprint(self, kind: Kind) -> str:
        """The fingerprint of a stage's data: images; or weights, with the channels and preprocessing they must fit."""
        if kind != "import":
            sources, labels = self.experiment.sources(kind), self.experiment.stops_by_labels(kind)
            return join_fingerprints([self.session.fingerprint(each.task, kind, labels) for each in sources])
        given, task = self.experiment.imported, self.session.tasks(self.experiment.sources(kind)[0].task)
        content = plugin("pretext", given).content(given)
        made = canonical([content, task.channels, task.preprocessing.digest()])
        return f"weights:{hashlib.sha256(made.encode()).hexdigest()}"

    def take_pretraining(self) -> FinishedStage | None:
        """The stage of the finished pre-training that the experiment names; it is not trained."""
        if (named := self.resolved.pretrained) is None:
            return None
        stage = FinishedStage(cast(Kind, named.kind), named.digest)
        job = StageJob(cast(Stage, stage), None, self.experiment.train, self.storage, self.cache)
        result, ours = self.once(job, (named.digest, self.storage), partial(self.fetch, job))
        if result is None:
            what = f"its weights are neither in {job.stage_storage.where} nor in MLflow; pre-train again"
            raise UserError(f"pretrain.encoder: {named.reference}: {what}")
        if not ours:
            self.show(StageReused(stage.kind, result["where"]))
        self.stages.append(result | {"reused": True})
        self.recorder.pretrain_run = result["run_id"]
        return stage

    def fetch(self, job: StageJob) -> dict[str, Any] | None:
        """The result of a finished stage, which is copied from MLflow if storage lacks it; None if both do."""
        while (result := self.find(job, usable=True)) is None:
            if self.tracker.acquire(job.stage.digest()):
                try:
                    return self.find(job, usable=True) or self.restore(job)
                finally:
                    self.tracker.release(job.stage.digest())
            self.ticket.pause(POLL)
        return result

    def find_or_train(self, stage: Stage, parent: Stage | FinishedStage | None) -> dict[str, Any]:
        """Returns the stage's result or raises its failure, both shared with this command's other experiments."""
        job = StageJob(stage, parent, self.experiment.train, self.storage, self.cache, self.recorder.privacy)
        self.jobs[stage.digest()] = job
        result, ours = self.once(job, (stage.digest(), self.storage), partial(self.obtain, job))
        if ours:
            return result
        self.show(StageReused(stage.kind, result["where"]))
        return result | {"reused": True}

    def once(self, job: StageJob, key: Hashable, function: Callable[[], Any]) -> tuple[Any, bool]:
        """The result of `function`, called once for all experiments of this command, and whether it was called now."""

        def on_wait() -> None:
            self.wait(job.stage.kind, "experiment")
            if job.stage.kind in PRETRAINING:
                refuse_full_storage(self.experiment, self.resolved.tasks)

        return self.session.results(key, function, on_wait, self.ticket.pause)

    def wait(self, kind: Kind, owner: Literal["experiment", "command"]) -> None:
        """Gives up this experiment's workers while another experiment or command trains the stage."""
        self.executor.release()
        self.show(WaitingForStage(kind, owner))

    def obtain(self, job: StageJob, usable: bool = False) -> dict[str, Any]:
        """Returns the finished result, or another command's once it has it, or trains the stage. usable: see `find`."""
        kind, digest, waiting = job.stage.kind, job.stage.digest(), False
        restore = (lambda job: None) if usable and kind == "trunk" else self.restore  # MLflow keeps no checkpoints
        while (result := self.find(job, usable)) is None:
            if self.tracker.acquire(digest):
                try:  # the command that held the lease may have just finished it
                    return self.find(job, usable) or restore(job) or self.train(job)
                except LeaseLost as error:
                    self.show(WarningIssued(f"{kind}: {error}"))
                finally:
                    self.tracker.release(digest)
            if not waiting:
                self.wait(kind, "command")
            waiting = True
            self.ticket.pause(POLL)
        return result

    def ensure_usable(self, job: StageJob) -> None:
        """Has what the next stage loads of this one fetched from MLflow, or trained again, if it is gone or damaged."""
        if not is_usable(job):
            if job.stage.kind == "trunk":  # of other stages, `restore` names what is gone
                self.show(WarningIssued(f"{job.stage_storage.where}: has no checkpoint any more; training it again"))
            key = job.stage.digest(), self.storage, "usable"
            self.once(job, key, partial(self.obtain, job, usable=True))

    def find(self, job: StageJob, usable: bool = False) -> dict[str, Any] | None:
        """The result of a stage that is finished in storage and in MLflow; else None. usable: see `is_usable`."""
        result = read_result(job.stage_storage)
        run_id = self.tracker.finished_run(job.stage.digest(), job.stage.kind) if result else None
        if result is None or run_id is None or (usable and not is_usable(job)):
            return None
        return self.reused(job, run_id, result)

    def restore(self, job: StageJob) -> dict[str, Any] | None:
        """Copies a stage that is finished in storage or MLflow alone to the other; returns its result, else None."""
        stage, stage_storage = job.stage, job.stage_storage
        result = whole_result(job.stage_storage, job.stage.kind, self.show)
        run_id = self.tracker.finished_run(stage.digest(), stage.kind)
        if result is None and run_id is not None:
            with TemporaryDirectory() as folder:
                if self.tracker.download(run_id, folder, stage.kind not in ("import", "trunk")):
                    put_files(stage_storage, Path(folder))
            result = whole_result(job.stage_storage, job.stage.kind, self.show)
        if result is None:
            return None
        if run_id is None:
            run_id = self.recorder.open_stage(stage, self.data_sets(stage))
            self.recorder.record(job, run_id, result)
        return self.reused(job, run_id, result)

    def reused(self, job: StageJob, run_id: str, result: dict[str, Any]) -> dict[str, Any]:
        """Shows that a finished stage is reused; returns its result."""
        self.show(StageReused(job.stage.kind, job.stage_storage.where))
        for words in other_rounding(result, job.train):
            self.show(WarningIssued(f"{job.stage_storage.where}: {words}"))
        self.recorder.register(job, run_id, result)  # a sweep, which registers none, may have trained it
        return self.done(job, run_id, result, reused=True)

    def done(self, job: StageJob, run_id: str, result: dict[str, Any], reused: bool) -> dict[str, Any]:
        """Warns of a gate not passed or a collapse; returns the result with its MLflow run and its folder."""
        if (gate := result.get("gate")) and not gate["passed"]:
            self.show(GateNotPassed(gate["loss"], gate["gate"]))
        if collapse := result.get("collapse"):
            self.show(CollapseDetected(**collapse))
        return {"run_id": run_id, "reused": reused, "where": job.stage_storage.where} | result

    def train(self, job: StageJob) -> dict[str, Any]:
        """Runs the stage and records its result."""
        kind, stage_storage = job.stage.kind, job.stage_storage
        if kind in PRETRAINING:
            refuse_full_storage(self.experiment, self.resolved.tasks)
        if job.stage.parent in self.jobs:
            self.ensure_usable(self.jobs[job.stage.parent])
        job = replace(job, content=self.session.content(job.stage))
        run_id = self.recorder.open_stage(job.stage, self.data_sets(job.stage), job.trunk_storage)
        self.show(StageStarted(kind, stage_storage.where))
        for name in ("failure.json", "result.json"):  # of an earlier try; of a segment without its checkpoint
            if stage_storage.get(name):
                stage_storage.remove(name)
        try:
            self.execute(job, run_id)
        except Exception as error:
            if self.session.stopping:
                self.end_stopped(job, run_id)
                raise KeyboardInterrupt from error
            if self.tracker.lease_lost(job.stage.digest()):  # another command owns the run now
                raise LeaseLost(str(error)) from None
            if stage_storage.get("failure.json"):
                return self.refuse(job, run_id)
            if isinstance(error, UserError):  # the node is set up wrongly; the stage itself is fine
                self.recorder.end(run_id, "FAILED", {"premed.failure": str(error)})
                raise
            stage_storage.put("traceback.txt", self.recorder.privacy.traceback(error).encode())
            message = f"{first_line(error)} ({stage_storage.where}/traceback.txt has the traceback)"
            self.recorder.end(run_id, "FAILED", {"premed.failure": message})
            raise StageFailed(
                f"{kind}: {message}; run the same command again to resume from the last checkpoint"
            ) from error
        except KeyboardInterrupt:
            self.end_stopped(job, run_id)
            raise
        except BaseException:  # a trial that was called off
            self.recorder.end(run_id, "KILLED")
            raise
        result = read_result(stage_storage)
        if result is None:
            self.refuse(job, run_id)
        self.recorder.record(job, run_id, result)
        return self.done(job, run_id, result, reused=False)

    def end_stopped(self, job: StageJob, run_id: str) -> None:
        """Notes how far a stage came whose command was stopped, and ends its run."""
        self.session.note_stop(self.name, job.stage.kind, job.stage_storage)
        self.recorder.end(run_id, "KILLED")

    def execute(self, job: StageJob, run_id: str) -> None:
        """Runs the stage on the executor; an import in this process, where its file is."""
        if job.stage.kind == "import":
            LocalExecutor(self.session.tasks, self.ticket.pause).run_stage(job, self.show)
            return
        events = self.session.stage_events(run_id, job.stage.kind, self.name)
        try:
            self.executor.run_stage(job, events, self.ticket.report if job.stage.kind == "finetune" else None)
        finally:
            self.session.relay()

    def refuse(self, job: StageJob, run_id: str) -> NoReturn:
        """Records and raises why the workers ended without a result; `failure.json` says why if they wrote it."""
        failure = job.stage_storage.get_json("failure.json")
        message = failure["message"] if failure else f"the workers ended without a result in {job.stage_storage.where}"
        self.recorder.end(run_id, "FAILED", {"premed.failure": message})
        if failure and failure["kind"] == "UserError":
            raise UserError(message)
        raise StageFailed(f"{job.stage.kind}: {message}")
