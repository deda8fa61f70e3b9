"""The driver: one experiment through its stages, each found or trained, and recorded. Neither Ray nor MLflow here."""

import hashlib
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch

from premed.cache import Cache
from premed.contracts import Case, Task
from premed.entry import Entry
from premed.experiment import BLIND, Experiment, Kind, Stage, plugin
from premed.home import home, storage
from premed.ledger import first_line
from premed.records import Records
from premed.spec import LeaseLost, StageFailed, UserError, canonical
from premed.supervised import Supervised
from premed.worker import Job, make_objective, run_stage

Show = Callable[[dict[str, Any]], None]
"""Takes the events of a run, as they happen: `{"event": …}`."""
Trainer = Callable[[Job, str], None]
"""Runs a stage to its result in the vault; what it tells goes to the ledger, under the run's id."""
KNOWN_BY = ("import", "finetune")  # the kinds of stages whose data tell two experiments of the same fields apart
POLL = 1.0  # seconds between two looks at a stage that another command is at


class Once:
    """What several threads of a command want: the first to ask does it, the others wait for what comes of it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.known: dict[Hashable, Future] = {}

    def __call__(self, name: Hashable, work: Callable[[], Any], wait: Callable[[], Any] = lambda: None) -> Any:
        """What `work()` gave (or raised) for the first to ask, and whether this one was it; `wait()` before a wait."""
        with self.lock:
            first = name not in self.known
            result = self.known.setdefault(name, Future())
        if first:
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)
        elif not result.done():
            wait()
        return result.result(), first


class Data:
    """The images of a task, prepared when a stage asks for them and not before; any number of experiments may ask."""

    def __init__(self, experiment: Experiment, mapper: Any, show: Show):
        self.task: Task = plugin("tasks", experiment.task).build(experiment.task)
        self.root, self.mapper, self.show = home() / "cache", mapper, show
        self.files: set[Path] = set()
        self.once = Once()

    def fingerprint(self, kind: Kind) -> str:
        """Prepares what a stage of that kind sees, and says what it is: `part:hash part:hash`."""
        return self.once(kind, partial(self.prepared, kind))[0]

    def prepared(self, kind: Kind) -> str:
        if kind == "test":
            groups = {"test": self.task.split("test")}
        elif kind == "pretrain":
            blind = [Case(case.name, case.patient, case.image) for case in self.task.split("val")]
            groups = {"images": self.task.images(), "val": blind}
        else:
            groups = {"train": self.task.split("train"), "val": self.task.split("val")}
        store = Cache(self.root)
        entries = store.prepare(
            [case for group in groups.values() for case in group],
            self.task.recipe,
            mapper=self.mapper,
            progress=lambda done, total: self.show({"event": "prepared", "done": done, "total": total}),
        )
        refuse_unnamed([case for group in groups.values() for case in group], entries, self.task.labels)
        self.files |= {entry.path for entry in entries}
        # beside the files' content: what the task makes of them, whose they are, and the order that draws go by
        about = [self.task.name, self.task.classes, self.task.channels, self.task.recipe.digest()]

        def told(group: list[Case]) -> str:
            listed = [[case.name, case.patient] for case in group]
            content = store.fingerprint(group, labels=kind != "pretrain")
            return hashlib.sha256(canonical([about, listed, content]).encode()).hexdigest()

        return " ".join(f"{name}:{told(group)}" for name, group in groups.items())


def refuse_unnamed(cases: Sequence[Case], entries: Sequence[Entry], labels: Sequence[int]) -> None:
    """Refuses a label map with a value that no class has: in the loss that would be an index error at best."""
    for case, entry in zip(cases, entries, strict=True):
        if isinstance(case.label, Path) and (unknown := set(entry.labels_present) - set(labels)):
            held = ", ".join(map(str, sorted(unknown)))
            raise UserError(
                f"{case.label}: holds the label {held}, which no class has (they are {labels[0]} to {labels[-1]}); "
                "mend the map (premed data check finds all such files)"
            )


@dataclass
class Common:
    """What all experiments of a command share."""

    ledger: Any
    mapper: Any
    """Prepares images: called like `map`, or None."""
    show: Show
    pause: Callable[[float], None] = time.sleep
    """Waits so many seconds; raises KeyboardInterrupt where the command was stopped."""
    once: Once = field(default_factory=Once)

    def data(self, experiment: Experiment) -> Data:
        """One for all experiments on the same task."""
        task = "data", experiment.task.model_dump_json()
        return self.once(task, lambda: Data(experiment, self.mapper, self.show))[0]


class Driver:
    """One experiment on its way through its stages. Several may be on theirs at once, a thread each."""

    rehearsing = threading.Lock()  # torch's `meta` is a word to the whole process

    def __init__(self, experiment: Experiment, common: Common, trainer: Trainer, show: Show):
        self.experiment, self.common, self.trainer, self.show = experiment, common, trainer, show
        self.ledger, self.data = common.ledger, common.data(experiment)
        self.task = self.data.task
        self.records = Records(experiment, self.task, self.ledger, show, common.pause)
        self.storage = storage(experiment.train.storage)

    def run(self) -> dict[str, Any]:
        """What came of it: task, strategy, the score's name, the MLflow run, and each stage's result."""
        self.records.open(" ".join(self.fingerprint(kind) for kind in self.experiment.kinds if kind in KNOWN_BY))
        stages: list[dict[str, Any]] = []
        try:
            before: Stage | None = None
            for stage in self.experiment.stages(self.fingerprint):
                stages.append(self.find_or_train(stage, before))
                if stage.kind in BLIND:
                    self.records.pretrain_run = stages[-1]["run_id"]
                before = stage
            self.records.close(stages)
        except Exception as error:
            self.records.fail("FAILED", first_line(error))
            raise
        except BaseException:  # Ctrl-C
            self.records.fail("KILLED")
            raise
        about = {"task": self.task.name, "strategy": self.experiment.strategy, "score": self.task.score}
        return about | {"run_id": self.records.run_id, "stages": stages}

    def fingerprint(self, kind: Kind) -> str:
        """What a stage of that kind sees: images; or weights, made to fit the task's channels and values."""
        if kind != "import":
            return self.data.fingerprint(kind)
        content = plugin("pretext", self.experiment.pretext).content(self.experiment.pretext)
        seen = canonical([content, self.task.channels, self.task.recipe.digest()])
        return f"weights:{hashlib.sha256(seen.encode()).hexdigest()}"

    def find_or_train(self, stage: Stage, before: Stage | None) -> dict[str, Any]:
        """The stage's result: what another experiment of this command made of it, its failure too, or our own."""

        def wait() -> None:
            self.show({"event": "waiting", "kind": stage.kind, "whose": "experiment"})
            if stage.kind == "pretrain":
                self.rehearse()

        work = partial(self.found_or_trained, stage, before)
        result, ours = self.common.once((stage.digest(), self.storage), work, wait)
        if ours:
            return result
        self.show({"event": "reused", "kind": stage.kind, "where": result["where"]})
        return result | {"reused": True}

    def found_or_trained(self, stage: Stage, before: Stage | None) -> dict[str, Any]:
        """The result that is there, or another command's once it is done, or a new one."""
        job = Job(stage, before, self.experiment.train, self.storage, self.data.root)
        digest, waiting = stage.digest(), False
        while (found := self.find(job)) is None:
            if self.ledger.acquire(digest):
                try:  # whoever held the lease may just have ended
                    return self.find(job) or self.restore(job) or self.train(job)
                except LeaseLost as error:
                    self.show({"event": "warning", "text": f"{stage.kind}: {error}"})
                finally:
                    self.ledger.release(digest)
            if not waiting:
                self.show({"event": "waiting", "kind": stage.kind, "whose": "command"})
            waiting = True
            self.common.pause(POLL)
        return found

    def find(self, job: Job) -> dict[str, Any] | None:
        """A stage that is finished, in storage and in MLflow."""
        result = job.vault.get_json("result.json")
        run_id = self.ledger.finished(job.stage.digest(), job.stage.kind) if result else None
        return self.reused(job, run_id, result) if result and run_id else None

    def restore(self, job: Job) -> dict[str, Any] | None:
        """A stage that is finished in one of the two: storage was cleaned, or MLflow is another (or missed the end)."""
        stage, vault = job.stage, job.vault
        result = vault.get_json("result.json")
        run_id = self.ledger.finished(stage.digest(), stage.kind)
        if result is None and run_id is not None:
            with TemporaryDirectory() as folder:
                if self.ledger.fetch(run_id, folder, stage.kind != "import"):
                    files = [path for path in Path(folder).rglob("*") if path.is_file()]
                    for path in sorted(files, key=lambda path: path.name == "result.json"):  # it says that all is there
                        vault.put(path.relative_to(folder).as_posix(), path.read_bytes())
            result = vault.get_json("result.json")
        if result is None:
            return None
        if run_id is None:
            run_id = self.records.open_stage(stage)
            self.records.record(job, run_id, result)
        return self.reused(job, run_id, result)

    def reused(self, job: Job, run_id: str, result: dict[str, Any]) -> dict[str, Any]:
        self.show({"event": "reused", "kind": job.stage.kind, "where": job.vault.where})
        return self.done(job, run_id, result, reused=True)

    def done(self, job: Job, run_id: str, result: dict[str, Any], reused: bool) -> dict[str, Any]:
        if (gate := result.get("gate")) and not gate["passed"]:
            self.show({"event": "gate", **gate})
        return {"run_id": run_id, "reused": reused, "where": job.vault.where} | result

    def train(self, job: Job) -> dict[str, Any]:
        """Runs the stage to its result and records it."""
        kind, vault = job.stage.kind, job.vault
        if kind == "pretrain":
            self.rehearse()
        run_id = self.records.open_stage(job.stage)
        self.show({"event": "stage", "kind": kind, "where": vault.where})
        if vault.get("failure.json"):  # of an earlier try
            vault.remove("failure.json")
        try:
            if kind == "import":  # here, where the file is
                run_stage(job, self.show, lambda numbers: None)
            else:
                self.trainer(job, run_id)
        except Exception as error:
            if self.ledger.taken(job.stage.digest()):  # no record from here: the run is the other command's now
                raise LeaseLost(str(error)) from None
            if vault.get("failure.json"):
                return self.refuse(job, run_id)
            vault.put("traceback.txt", traceback.format_exc().encode())
            message = f"{first_line(error)} ({vault.where}/traceback.txt has the whole story)"
            self.records.end(run_id, "FAILED", {"premed.failure": message})
            raise StageFailed(f"{kind}: {message}; the same command goes on from the last checkpoint") from error
        except BaseException:  # Ctrl-C
            self.records.end(run_id, "KILLED")
            raise
        result = vault.get_json("result.json")
        if result is None:
            self.refuse(job, run_id)
        self.records.record(job, run_id, result)
        return self.done(job, run_id, result, reused=False)

    def refuse(self, job: Job, run_id: str) -> NoReturn:
        """The workers ended without a result, and have said why in `failure.json` (or have not)."""
        failure = job.vault.get_json("failure.json")
        message = failure["message"] if failure else f"the workers ended without a result in {job.vault.where}"
        self.records.end(run_id, "FAILED", {"premed.failure": message})
        if failure and failure["kind"] == "UserError":
            raise UserError(message)
        raise StageFailed(f"{job.stage.kind}: {message}")

    def rehearse(self) -> None:
        """Builds all networks without memory for their weights: a mistake in a later stage costs no earlier one."""
        with self.rehearsing, torch.device("meta"):
            for stage in self.experiment.stages(lambda kind: ""):
                objective, _ = make_objective(Job(stage, None, self.experiment.train, "", self.data.root), self.task)
                if isinstance(objective, Supervised):
                    objective.network(torch.zeros(1, self.task.channels, *self.task.roi))
