"""Experiments from the first stage to the outcome, one or many at once; and what is done with their data alone."""

import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from premed.check import Check, refuse
from premed.contracts import Task
from premed.data import Data, Show
from premed.driver import Driver
from premed.experiment import Experiment
from premed.fanout import told_apart
from premed.home import storage
from premed.importing import foresee
from premed.ledger import first_line
from premed.session import Session, ray_or_not, session
from premed.settings import plugin
from premed.spec import StageFailed, UserError


def run(experiment: Experiment, show: Show) -> dict[str, Any]:
    """Runs what is not there yet and returns the outcome: stages, scores, and where they are."""
    (experiment,) = looked_over([experiment])
    with session([experiment.train], show) as here:
        return Driver(experiment, here.common, here.trainer(here.member()), show).run()


def run_all(experiments: Sequence[Experiment], show: Show) -> list[dict[str, Any]]:
    """All of them, on one Ray and one ledger, as many at once as there is room for; their outcomes, in this order.

    One that fails says why (`failure`) and stops no other. A pre-training that several need is trained once. Without
    Ray (the first one's `train.workers` is 0) they run one after the other.
    """
    experiments = looked_over(experiments)
    with session([experiment.train for experiment in experiments], show) as here:
        show({"event": "experiments", "total": len(experiments)})
        several = Several(experiments, here)
        return several.one_by_one() if here.fleet is None else several.at_once()


class Several:
    """The experiments of one command."""

    def __init__(self, experiments: Sequence[Experiment], here: Session):
        self.experiments, self.here = experiments, here
        self.tasks = [here.common.data(experiment).task for experiment in experiments]
        self.names = told_apart(experiments, [task.name for task in self.tasks])
        self.ended, self.counting = 0, threading.Lock()

    def in_order(self) -> list[int]:
        """Those with a pre-training first, for others may wait for it."""
        return sorted(range(len(self.experiments)), key=lambda number: self.experiments[number].pretrain is None)

    def one_by_one(self) -> list[dict[str, Any]]:
        outcomes = {number: self.attempt(number) for number in self.in_order()}
        return [outcomes[number] for number in range(len(outcomes))]

    def at_once(self) -> list[dict[str, Any]]:
        """A thread each. One starts when the one before stands in line or waits, so that the line is in order."""
        outcomes: dict[int, Future] = {}
        with ThreadPoolExecutor(len(self.experiments), "premed experiment") as pool:
            try:
                for number in self.in_order():
                    begun = threading.Event()
                    outcomes[number] = pool.submit(self.attempt, number, begun.set)
                    begun.wait()
                return [outcomes[number].result() for number in range(len(self.experiments))]
            except BaseException:  # Ctrl-C: the threads end, too
                self.here.stopped.set()
                raise

    def attempt(self, number: int, begun: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """One experiment's outcome, or why it failed; calls `begun` as soon as it stands in line, waits or ends."""
        experiment, task, name, here = self.experiments[number], self.tasks[number], self.names[number], self.here

        def rest() -> None:
            """Nobody holds anything for an experiment that waits, or has ended."""
            if here.fleet is not None:
                here.fleet.leave(number)
            begun()

        def show(event: dict[str, Any]) -> None:
            if event["event"] == "waiting":
                rest()
            here.show(event | {"who": name})

        trainer = here.trainer(here.member(number), name, begun)
        driver = Driver(experiment, here.common, trainer, show)
        outcome = {
            "name": name,
            "task": task.name,
            "strategy": experiment.strategy,
            "label_fraction": experiment.finetune.label_fraction,
            "seed": experiment.finetune.seed,
            "score": task.score,
            "stages": [],
        }
        try:
            outcome |= driver.run()
        except (UserError, StageFailed) as error:
            outcome |= {"run_id": driver.records.run_id, "failure": str(error)}
        except Exception as error:  # a bug's whole story is worth telling
            show({"event": "warning", "text": traceback.format_exc()})
            outcome |= {"run_id": driver.records.run_id, "failure": f"{type(error).__name__}: {first_line(error)}"}
        finally:
            rest()
        with self.counting:
            self.ended += 1
            show({"event": "ended", "done": self.ended, "total": len(self.experiments), "outcome": outcome})
        return outcome


def looked_over(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The experiments with the data's folder settled; refuses what can be seen to be wrong before Ray starts."""
    experiments = [settled(experiment) for experiment in experiments]
    looked_at: list[tuple[Any, bool]] = []
    for experiment in experiments:
        if (experiment.task, experiment.test) not in looked_at:
            refuse(plugin("tasks", experiment.task).build(experiment.task), experiment.test)
            looked_at.append((experiment.task, experiment.test))
        foresee(experiment)
        storage(experiment.train.storage)
    return experiments


def prepare(experiment: Experiment, show: Show) -> dict[str, Any]:
    """Prepares the images of an experiment's stages (those of the test part too, unless `test` is false)."""
    experiment = settled(experiment)
    with ray_or_not([experiment.train], show) as mapper:
        data = Data(experiment, mapper, show)
        for kind in experiment.kinds:
            if kind != "import":  # weights are no images
                data.fingerprint(kind)  # asking for it is what prepares it
    megabytes = sum(path.stat().st_size for path in data.files if path.is_file()) / 1e6  # else in other nodes' caches
    return {"where": str(data.root), "num_images": len(data.files), "megabytes": megabytes}


def check(experiment: Experiment, show: Show, html: Path | None = None) -> dict[str, Any]:
    """What is wrong with an experiment's data (the test part too, unless `test` is false); `html`: as a page, too."""
    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"{html}: there is no such folder to write it into; make it")
    checked = Check(experiment)
    with ray_or_not([experiment.train], show) if checked.jobs else nullcontext() as mapper:
        checked.open_images(mapper, lambda done, total: show({"event": "checked", "done": done, "total": total}))
        if html is not None:
            try:
                html.write_text(checked.page(mapper), encoding="utf-8")
            except OSError as error:
                raise UserError(f"{html}: cannot be written ({error.strerror}); name another file") from None
    return checked.outcome()


def settled(experiment: Experiment) -> Experiment:
    """The data's folder as an absolute path, so that every worker looks in the same place.

    UserError where an augmentation is for images of another number of dimensions than the task's.
    """
    task: Task = plugin("tasks", experiment.task).build(experiment.task)
    for name, training in (("pretrain", experiment.pretrain), ("finetune", experiment.finetune)):
        for field in training.augment.misfits(task.dims) if training else []:
            kind = "pictures" if task.dims == 3 else "volumes"
            raise UserError(f"{name}.augment.{field}: is for {kind}, which {task.name} has not; leave it out")
    return experiment.model_copy(update={"task": experiment.task.model_copy(update={"root": task.root})})
