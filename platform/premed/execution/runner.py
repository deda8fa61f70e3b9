"""Runs experiments, one or many at once, to their outcomes; prepares and checks their data without training."""

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from premed.config.expand import arm_title
from premed.config.experiment import Experiment
from premed.config.plugins import plugin
from premed.config.settings import Train
from premed.contracts import Task
from premed.data.cache import Cache
from premed.data.check import Check
from premed.data.check_leakage import leaks, recorded_leaks
from premed.data.datamodule import DataModule
from premed.data.io.memory import num_cpus
from premed.data.processes import process_map
from premed.errors import Finding, StageFailed, UserError, first_line
from premed.events import EventHandler, ExperimentEnded, ExperimentsStarted, ImagesChecked, WarningIssued
from premed.execution.cluster import parallel_map
from premed.execution.pipeline import StagePipeline
from premed.execution.preflight import Resolved, other_tasks, resolve, validate
from premed.execution.pretrained import Pretrainings, settle_pretrained
from premed.execution.run_summary import arm_digest
from premed.execution.scheduler import Ticket
from premed.execution.session import Session, open_session
from premed.paths import home, writing
from premed.reporting import data_check

FEW = 64
"""Images that are checked one after the other: processes take seconds to start."""


def run(experiment: Experiment, show: EventHandler) -> dict[str, Any]:
    """Runs the stages that have no result yet, and returns the outcome: stages, scores, and where they are."""
    (resolved,) = resolve([experiment])
    validate([resolved])
    with open_session([resolved.experiment.train], resolved.tasks, show) as session:
        return StagePipeline(replace(resolved, name=""), session, Ticket(0, session.pause)).run()


def run_all(experiments: Sequence[Experiment], show: EventHandler, register: bool = True) -> list[dict[str, Any]]:
    """Runs all experiments with one Ray and one tracker, as many at once as resources allow.

    Returns their outcomes in the order given. If one fails, `failure` in its outcome has the reason, and
    the others continue. A pre-training that several need is trained once. Without Ray (the first one's `train.workers`
    is 0) they run one after the other. register: fine-tuned networks become versions of their tasks' models in MLflow.
    """
    resolved = resolve(experiments)
    validate(resolved)
    with open_session([each.experiment.train for each in resolved], resolved[0].tasks, show) as session:
        for each in resolved:
            session.refuse_leaks(each)
        show(ExperimentsStarted(len(resolved)))
        batch = ExperimentBatch(resolved, session, register)
        return batch.at_once() if session.concurrent else batch.one_by_one()


class ExperimentBatch:
    """The experiments of one command."""

    def __init__(self, experiments: Sequence[Resolved], session: Session, register: bool = True):
        """register: as in `run_all`."""
        self.experiments, self.session, self.register = experiments, session, register
        self.ended, self.counting = 0, threading.Lock()

    def in_order(self) -> list[int]:
        """Their indices, those with a pre-training first, because others may wait for it."""
        numbers = range(len(self.experiments))
        return sorted(numbers, key=lambda number: self.experiments[number].experiment.pretrain is None)

    def one_by_one(self) -> list[dict[str, Any]]:
        outcomes = {number: self.attempt(number) for number in self.in_order()}
        return [outcomes[number] for number in range(len(outcomes))]

    def at_once(self) -> list[dict[str, Any]]:
        """Runs each in a thread, which starts once the one before is queued or waits: so they are queued in order."""
        outcomes: dict[int, Future] = {}
        with ThreadPoolExecutor(len(self.experiments), "premed experiment") as pool:
            try:
                for number in self.in_order():
                    queued = threading.Event()
                    outcomes[number] = pool.submit(self.attempt, number, queued.set)
                    queued.wait()
                return [outcomes[number].result() for number in range(len(self.experiments))]
            except BaseException:  # Ctrl-C: the threads end, too
                self.session.stopped.set()
                raise

    def attempt(self, number: int, on_queued: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """An experiment's outcome, with `failure` if it failed. on_queued: called once it is queued, waits or ends."""
        resolved = self.experiments[number]
        experiment, task = resolved.experiment, resolved.task
        ticket = Ticket(number, self.session.pause, on_queued=on_queued)
        pipeline = StagePipeline(resolved, self.session, ticket, self.register)
        finetune = experiment.finetune
        outcome = {
            "name": resolved.name,
            "task": task.name,
            "strategy": experiment.strategy,
            "arm": {"name": arm_title(experiment), "digest": arm_digest(experiment, "")},
            "head": finetune and finetune.head.name,
            "label_fraction": finetune and finetune.label_fraction,
            "seed": (finetune or experiment.pretrain).seed,  # type: ignore[union-attr]
            "score": task.score,
            "stages": [],
        }
        try:
            outcome |= pipeline.run()
        except (UserError, StageFailed) as error:
            self.session.pause(0)  # in a stopped command nothing fails: it is interrupted
            outcome |= {"run_id": pipeline.recorder.run_id, "failure": str(error)}
        except Exception as error:  # a bug: its traceback is shown
            self.session.pause(0)
            pipeline.show(WarningIssued(traceback.format_exc()))
            outcome |= {"run_id": pipeline.recorder.run_id, "failure": f"{type(error).__name__}: {first_line(error)}"}
        finally:
            pipeline.executor.release()
        with self.counting:
            self.ended += 1
            pipeline.show(ExperimentEnded(self.ended, len(self.experiments), outcome))
        return outcome


def prepare(experiment: Experiment, show: EventHandler) -> dict[str, Any]:
    """Prepares the images of an experiment's stages (those of the test part too, unless `test` is false)."""
    (resolved,) = resolve([experiment])
    experiment, files = resolved.experiment, set[Path]()
    modules: dict[int, DataModule] = {}  # one for each task: what they say of files is said once
    with parallel_map(experiment.train, show) as mapper:
        for kind in experiment.kinds:
            for source in experiment.sources(kind) if kind != "import" else ():  # weights are no images
                task = resolved.tasks(source.task)
                data = modules.setdefault(id(task), DataModule(task, mapper, show))
                data.fingerprint(kind)  # prepares them
                files |= data.files
    megabytes = sum(path.stat().st_size for path in files if path.is_file()) / 1e6  # else in other nodes' caches
    return {"where": str(home() / "cache"), "num_images": len(files), "megabytes": megabytes}


@contextmanager
def local_map(train: Train, num_jobs: int) -> Iterator[Callable[..., Iterable]]:
    """Yields a `map` over the CPUs of this machine, without Ray; plain `map` for few jobs, or without workers."""
    if train.workers == 0 or num_jobs < FEW or num_cpus() < 2:
        yield map
        return
    with process_map() as parallel:
        yield parallel


def preparation_notes(experiment: Experiment, task: Task) -> list[Finding]:
    """Where the task prepares images otherwise than those of the weights were that the experiment starts from."""
    findings: list[Finding] = []
    for config in (experiment.pretext, getattr(experiment.pretext, "init", None)):
        if config is not None and (notes := getattr(plugin("pretext", config), "preparation_notes", None)):
            findings += notes(config, task)
    return findings


def check(experiment: Experiment, show: EventHandler, html: Path | None = None) -> dict[str, Any]:
    """Checks an experiment's data (the test part too, unless `test` is false); returns the findings.

    html: also writes them as a page. The findings of `pretrain.sources` are under `sources`, and not on the page.
    """
    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"{html}: its folder does not exist; create it")
    checked = Check(experiment.task, experiment.test)
    finished = None
    if checked.jobs:
        checked.findings += preparation_notes(experiment, checked.task)
    if experiment.pretrained and checked.jobs:
        try:
            finished = settle_pretrained(experiment, checked.task, Pretrainings())[1]
        except UserError as error:
            checked.findings.append(Finding.of(error))
    sources = [Check(config, test=False) for config in other_tasks(experiment)]
    jobs = [job for each in (checked, *sources) for job in each.jobs]
    with local_map(experiment.train, len(jobs)) as mapper:
        for each in (checked, *sources):
            each.open_images(mapper, lambda done, total: show(ImagesChecked(done, total)))
        for source in sources:
            source.findings += leaks(checked, source, Cache(home() / "cache"), mapper)
        if finished is not None:
            where = f"pretrain.encoder: {finished.reference}"
            cache = Cache(home() / "cache")
            checked.findings += recorded_leaks(checked, finished.record["data_sets"], cache, mapper, where)
        if html is not None:
            text = data_check.page(checked, mapper)
            with writing(html):
                html.write_text(text, encoding="utf-8")
    return checked.outcome() | ({"sources": [source.outcome() for source in sources]} if sources else {})
