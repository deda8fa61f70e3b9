"""The data sets and cases of a stage: which it trains on, which it is validated on, and what few labels do not show."""

from collections.abc import Sequence

from premed.config.experiment import Stage
from premed.config.plugins import plugin
from premed.config.settings import PRETRAINING, Finetune, Training
from premed.config.transforms import Augment
from premed.contracts import Case, Domain, Sample, Task
from premed.errors import UserError
from premed.partition import unlabelled_val
from premed.rng import key, permutation


def domains(stage: Stage, tasks: Sequence[Task] = ()) -> list[Domain]:
    """The data sets that a stage sees. tasks: theirs, where they are built already."""
    tasks = tasks or [plugin("tasks", origin.task).build(origin.task) for origin in stage.origins]
    usual = stage.training.augment if isinstance(stage.training, Training) else Augment()
    found = [
        Domain(task, origin.group or task.name, origin.augment or usual)
        for task, origin in zip(tasks, stage.origins, strict=True)
    ]
    seen = getattr(plugin("pretext", stage.pretext), "seen", None) if stage.pretext else None
    return seen(stage.encoder, found) if seen else found


def cases(stage: Stage, task: Task) -> tuple[list[Case], list[Case]]:
    """What the stage trains on of a data set, and what it is validated on. A pre-training's have no labels."""
    if stage.kind in PRETRAINING:
        train, val = task.images(), unlabelled_val(task)
    else:
        assert isinstance(stage.training, Finetune)
        train = fraction(task.split("train"), stage.training.label_fraction, stage.training.seed)
        val = task.split("val")
    if not train:
        raise UserError(f"task: {task.name} has no train images for this stage; mend its split")
    return train, val


def fraction(labelled: list[Case], share: float, seed: int) -> list[Case]:
    """The cases of the first `share` of the patients, in an order drawn by `seed`: 5 % are part of 10 %."""
    patients = sorted({case.patient for case in labelled})
    order = permutation(key(seed, "label fraction"), len(patients))
    chosen = {patients[i] for i in order[: max(1, round(share * len(patients)))]}
    return [case for case in labelled if case.patient in chosen]


def absent(task: Task, train: Sequence[Sample]) -> list[str]:
    """The classes that no image of `train` shows, as may be where few labels are used."""
    if task.labels:
        present = {value for sample in train for value in sample.entry.labels_present}
        return [name for name, united in task.regions.items() if not present & set(united)]
    labels = [sample.case.label for sample in train if isinstance(sample.case.label, tuple)]
    return [name for i, name in enumerate(task.classes) if not any(label[i] > 0 for label in labels)]
