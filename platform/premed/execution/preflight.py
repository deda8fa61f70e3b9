"""Before anything starts: resolves paths, builds tasks, names experiments, and refuses invalid ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from premed.config.expand import distinct_titles
from premed.config.experiment import Experiment
from premed.config.image_processing import Augmentation
from premed.config.settings import PRETRAINING, Pretrain
from premed.contracts import Case, Task
from premed.data.check import refuse
from premed.data.datamodule import Tasks
from premed.data.splits import is_unlabelled
from premed.data.transforms import turning_planes
from premed.errors import UserError
from premed.execution.networks import build_networks
from premed.execution.pretrained import Pretrainings, settle_pretrained
from premed.paths import storage
from premed.tracking.pretrainings import FinishedPretraining
from premed.training.import_weights import foresee


@dataclass(frozen=True)
class Resolved:
    """An experiment whose folders are absolute paths."""

    experiment: Experiment
    tasks: Tasks
    """All tasks of the command."""
    name: str
    """Its name in messages: the fields that the command's experiments differ in. Empty if it is the only one."""
    pretrained: FinishedPretraining | None = None
    """The finished pre-training that it names."""
    pretrainings: Pretrainings = field(default_factory=Pretrainings)
    """All that the command's experiments name."""
    tags: dict[str, str] = field(default_factory=dict)
    """Further tags of its own run in MLflow."""

    @property
    def task(self) -> Task:
        return self.tasks(self.experiment.task)


def resolve(experiments: Sequence[Experiment], known: Resolved | None = None) -> list[Resolved]:
    """Returns the experiments with absolute paths, their tasks and their names.

    Builds each task once, and looks up each pre-training once. known: another of the command's experiments, which has
    those of earlier calls. Raises UserError if a data set is missing, an augmentation is for images of another number
    of dimensions, or a finished pre-training that an experiment names is not there or does not fit.
    """
    tasks, pretrainings = (known.tasks, known.pretrainings) if known else (Tasks(), Pretrainings())
    experiments = [settled(experiment, tasks) for experiment in experiments]
    found = [settle_pretrained(experiment, tasks(experiment.task), pretrainings) for experiment in experiments]
    experiments = [experiment for experiment, _ in found]
    names = distinct_titles(experiments, [tasks(experiment.task).name for experiment in experiments])
    return [
        Resolved(experiment, tasks, name, pretrained, pretrainings)
        for (experiment, pretrained), name in zip(found, names, strict=True)
    ]


def settled(experiment: Experiment, tasks: Tasks) -> Experiment:
    """The experiment with the folders of its data as absolute paths, so that every worker looks in the same place."""
    finetune, pretrain = experiment.finetune, experiment.pretrain
    if finetune is not None:
        refuse_misfits(tasks(experiment.task), finetune.augment, "finetune.augment")
    changed: dict[str, Any] = {"task": tasks.resolve_root(experiment.task)}
    if isinstance(pretrain, Pretrain) and pretrain.sources:
        sources = []
        for number, source in enumerate(pretrain.sources):
            where = f"pretrain.sources.{number}.augment" if source.augment else "pretrain.augment"
            refuse_misfits(tasks(source.task), source.augment or pretrain.augment, where)
            sources.append(source.model_copy(update={"task": tasks.resolve_root(source.task)}))
        changed["pretrain"] = pretrain.model_copy(update={"sources": tuple(sources)})
    elif isinstance(pretrain, Pretrain):
        refuse_misfits(tasks(experiment.task), pretrain.augment, "pretrain.augment")
    return experiment.model_copy(update=changed)


def refuse_misfits(task: Task, augment: Augmentation, where: str) -> None:
    """Raises UserError for an augmentation (of the field `where`) that no image of the task could have."""
    for name in augment.inapplicable_fields(task.dims):
        kind = "pictures" if task.dims == 3 else "volumes"
        raise UserError(f"{where}.{name}: is for {kind}, and {task.name} has none; leave it out")
    if augment.rotate and not turning_planes(task.roi, augment.rotate_plane):
        edges = " × ".join(map(str, task.roi))
        raise UserError(
            f"{where}.rotate: the roi {edges} has no equal edges to turn in; leave it out or change task.roi"
        )


def validate(resolved: Sequence[Resolved]) -> None:
    """Raises UserError for a mistake that can be found before Ray starts and before any image is read."""
    checked: list[tuple[Any, bool, bool]] = []
    built: list[Experiment] = []
    for each in resolved:
        experiment = each.experiment
        own = (experiment.task, experiment.tested, experiment.finetune is None)
        for task in (own, *((config, False, True) for config in other_tasks(experiment))):
            if task not in checked:
                config, *how = task
                refuse(each.tasks(config), *how)
                checked.append(task)
        refuse_other_split(experiment, each.tasks)
        foresee(experiment, each.tasks)
        if (networks := without_seeds(experiment)) not in built:
            build_networks(experiment, each.tasks)
            built.append(networks)
        storage(experiment.train.storage)


def without_seeds(experiment: Experiment) -> Experiment:
    """The experiment without what most of a command's differ in, and what its networks do not depend on."""
    same: dict[str, Any] = {"name": None}
    if isinstance(experiment.pretrain, Pretrain):
        same["pretrain"] = experiment.pretrain.model_copy(update={"seed": 0})
    if experiment.finetune:
        same["finetune"] = experiment.finetune.model_copy(update={"seed": 0, "label_fraction": 1.0})
    return experiment.model_copy(update=same)


def other_tasks(experiment: Experiment) -> list[Any]:
    """The configurations of the other tasks that the experiment's pre-training learns from."""
    configs = [source.task for source in experiment.sources(experiment.kinds[0])]
    return [config for number, config in enumerate(configs) if config not in (experiment.task, *configs[:number])]


def learns_from_itself(experiment: Experiment) -> bool:
    """Whether the experiment's pre-training shows images of its own task, the unlabelled ones among them."""
    stages = [(kind, experiment.sources(kind)) for kind in experiment.kinds]
    shown = [source.task for kind, sources in stages if kind in PRETRAINING for source in sources]
    return experiment.task in shown


def asks_nothing(experiment: Experiment, task: Task) -> bool:
    """Whether the experiment is a pre-training alone, and its task has no labels: there is no val or test to leak."""
    return experiment.finetune is None and is_unlabelled(task)


def refuse_other_split(experiment: Experiment, tasks: Tasks) -> None:
    """Raises UserError if a source of the pre-training is the task's own folder, split so that it shows val or test.

    Found by the listings alone; `Session.refuse_leaks` compares all sources by their content. With `test: false` the
    test part is not even listed, and every image that the task itself does not pre-train on is refused.
    """
    own = tasks(experiment.task)
    if asks_nothing(experiment, own):
        return

    def images(task: Task) -> dict[tuple[str, ...], Case]:
        """The cases that a pre-training may use, by the paths of their files below the root."""
        return {tuple(str(path).removeprefix(str(task.root)) for path in case.image): case for case in task.images()}

    for config in other_tasks(experiment):
        other = tasks(config)
        if type(config) is not type(experiment.task) or other.root.resolve() != own.root.resolve():
            continue
        known = images(own)
        strange = [case for files, case in images(other).items() if files not in known]
        if experiment.test:
            held = {case.patient for case in (*own.split("val"), *own.split("test"))}
            strange = [case for case in strange if case.patient in held]
        if strange:
            raise UserError(
                f"pretrain.sources: {other.name} shows {min(case.name for case in strange)} (and {len(strange) - 1} "
                "more), which the task keeps for val or test; split both in the same way"
            )
