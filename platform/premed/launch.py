"""Experiments from the first stage to the outcome, one or many at once; and what is done with their data alone."""

import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from premed.check import Check, refuse
from premed.config.expand import told_apart
from premed.config.experiment import Experiment
from premed.config.plugins import plugin
from premed.config.transforms import Augment
from premed.contracts import Task
from premed.data import Data, Show
from premed.driver import Driver
from premed.errors import StageFailed, UserError, first_line
from premed.events import Event, ExperimentEnded, ExperimentsStarted, ImagesChecked, WaitingForStage, WarningIssued
from premed.importing import foresee
from premed.paths import home, storage
from premed.session import Session, ray_or_not, session


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
        show(ExperimentsStarted(len(experiments)))
        several = Several(experiments, here)
        return several.one_by_one() if here.fleet is None else several.at_once()


class Several:
    """The experiments of one command."""

    def __init__(self, experiments: Sequence[Experiment], here: Session):
        self.experiments, self.here = experiments, here
        self.tasks = [here.common.data(experiment.task).task for experiment in experiments]
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

        def show(event: Event) -> None:
            if isinstance(event, WaitingForStage):
                rest()
            here.show(replace(event, experiment=name))

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
            show(WarningIssued(traceback.format_exc()))
            outcome |= {"run_id": driver.records.run_id, "failure": f"{type(error).__name__}: {first_line(error)}"}
        finally:
            rest()
        with self.counting:
            self.ended += 1
            show(ExperimentEnded(self.ended, len(self.experiments), outcome))
        return outcome


def looked_over(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The experiments with the data's folder settled; refuses what can be seen to be wrong before Ray starts."""
    experiments = [settled(experiment) for experiment in experiments]
    looked_at: list[tuple[Any, bool, bool]] = []
    for experiment in experiments:
        own = (experiment.task, experiment.test, False)
        for seen in (own, *((each, False, True) for each in others(experiment))):
            if seen not in looked_at:
                config, *how = seen
                refuse(plugin("tasks", config).build(config), *how)
                looked_at.append(seen)
        refuse_strangers(experiment)
        foresee(experiment)
        storage(experiment.train.storage)
    return experiments


def others(experiment: Experiment) -> list[Any]:
    """The tasks beside its own whose images its pre-training sees."""
    configs = [origin.task for origin in experiment.origins(experiment.kinds[0])]
    return [config for number, config in enumerate(configs) if config not in (experiment.task, *configs[:number])]


def refuse_strangers(experiment: Experiment) -> None:
    """Raises UserError where a pre-training would see images of the task's own folder that are not its to see.

    Another split_seed deals them out otherwise: what it trains on there would be validated or tested on here.
    """
    own: Task = plugin("tasks", experiment.task).build(experiment.task)

    def places(task: Task) -> dict[tuple[str, ...], str]:
        """Its images' files, by their places in the folder, and what they are called."""
        root = str(task.root)
        return {tuple(str(path).removeprefix(root) for path in case.image): case.name for case in task.images()}

    for config in others(experiment):
        other: Task = plugin("tasks", config).build(config)
        if other.root.resolve() == own.root.resolve() and (strange := places(other).keys() - places(own).keys()):
            name = places(other)[min(strange)]
            raise UserError(
                f"pretrain.sources: {other.name} shows {name} (and {len(strange) - 1} more), which the task "
                "keeps for val or test; split both alike"
            )


def prepare(experiment: Experiment, show: Show) -> dict[str, Any]:
    """Prepares the images of an experiment's stages (those of the test part too, unless `test` is false)."""
    experiment = settled(experiment)
    with ray_or_not([experiment.train], show) as mapper:
        files = set[Path]()
        for kind in experiment.kinds:
            for origin in experiment.origins(kind) if kind != "import" else ():  # weights are no images
                data = Data(origin.task, mapper, show)
                data.fingerprint(kind)  # asking for it is what prepares it
                files |= data.files
    megabytes = sum(path.stat().st_size for path in files if path.is_file()) / 1e6  # else in other nodes' caches
    return {"where": str(home() / "cache"), "num_images": len(files), "megabytes": megabytes}


def check(experiment: Experiment, show: Show, html: Path | None = None) -> dict[str, Any]:
    """What is wrong with an experiment's data (the test part too, unless `test` is false); `html`: as a page, too.

    What its pre-training names beside its own is under `sources`, and not on the page.
    """
    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"{html}: there is no such folder to write it into; make it")
    checked = Check(experiment.task, experiment.test)
    sources = [Check(config, test=False) for config in others(experiment)]
    jobs = [job for each in (checked, *sources) for job in each.jobs]
    with ray_or_not([experiment.train], show) if jobs else nullcontext() as mapper:
        for each in (checked, *sources):
            each.open_images(mapper, lambda done, total: show(ImagesChecked(done, total)))
        if html is not None:
            try:
                html.write_text(checked.page(mapper), encoding="utf-8")
            except OSError as error:
                raise UserError(f"{html}: cannot be written ({error.strerror}); name another file") from None
    return checked.outcome() | ({"sources": [source.outcome() for source in sources]} if sources else {})


def settled(experiment: Experiment) -> Experiment:
    """The data's folder as an absolute path, so that every worker looks in the same place.

    UserError where an augmentation is for images of another number of dimensions than the task's.
    """
    changed = {"task": rooted(experiment.task, "finetune.augment", experiment.finetune.augment)}
    if (pretrain := experiment.pretrain) is not None and pretrain.sources:
        sources = []
        for number, source in enumerate(pretrain.sources):
            where = f"pretrain.sources.{number}.augment" if source.augment else "pretrain.augment"
            task = rooted(source.task, where, source.augment or pretrain.augment)
            sources.append(source.model_copy(update={"task": task}))
        changed["pretrain"] = pretrain.model_copy(update={"sources": tuple(sources)})
    elif pretrain is not None:
        rooted(experiment.task, "pretrain.augment", pretrain.augment)
    return experiment.model_copy(update=changed)


def rooted(config: Any, where: str, augment: Augment) -> Any:
    """A task's configuration with its folder as an absolute path; `where` its augmentation is said."""
    task: Task = plugin("tasks", config).build(config)
    for field in augment.misfits(task.dims):
        kind = "pictures" if task.dims == 3 else "volumes"
        raise UserError(f"{where}.{field}: is for {kind}, which {task.name} has not; leave it out")
    return config.model_copy(update={"root": task.root})
