"""Cross-validation: the runs of one training on several folds, pooled into one run that scored the cases of all folds.

Each case is scored once, by networks that have not seen it. So a comparison has as many patients as there are, in
place of those of one test part; and a seed's score is that of its networks of all folds.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from premed.errors import UserError
from premed.reporting.comparison.selection import DESIGN, FRACTION, ExperimentRun
from premed.reporting.formatting import counted

FOLD, FOLDS = "task.fold", "task.folds"
DATA = "data."  # the fingerprints of a fold's parts
SCORED, LEARNT, WEIGHTS = "data.test", "data.images", "data.weights"


def is_cross_validated(runs: Sequence[ExperimentRun]) -> bool:
    """Whether runs have several folds, each with a test part of its own. With one test part for all (nnU-Net's
    labelsTs) they are trainings on other images, and fields of a protocol that differ."""
    if len({run.fields.get(FOLDS) for run in runs}) > 1 or any(FOLD not in run.fields for run in runs):
        return False
    tested = [{run.fields.get(SCORED, "") for run in some} for some in of_fold(runs).values()]
    return len(tested) > 1 and len(set.union(*tested)) == sum(map(len, tested))


def of_fold(runs: Sequence[ExperimentRun]) -> dict[str, list[ExperimentRun]]:
    """Runs, which all have one, by their fold, in its order."""
    found: dict[str, list[ExperimentRun]] = defaultdict(list)
    for run in runs:
        found[run.fields[FOLD]].append(run)
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def pooled(runs: Sequence[ExperimentRun]) -> tuple[list[ExperimentRun], list[str]]:
    """Runs that are cross-validated, pooled, and notes on those that are left out, since a fold of theirs is missing.

    Raises UserError if none has all folds.
    """
    folds = of_fold(runs)
    if any(DESIGN in run.run.tags for run in runs):
        raise UserError(
            f"{runs[0].task}: {FOLD} differs and seeds were added fold by fold (seeds: auto), so that folds have other "
            f"seeds; list the seeds, or compare one fold: --where {FOLD}={next(iter(folds))}"
        )
    groups: dict[tuple, dict[str, ExperimentRun]] = defaultdict(dict)
    elsewhere, older = of_all_folds(folds), list[ExperimentRun]()
    for fold, some in folds.items():  # in their order, and so in each group
        for run in some:  # the newest first
            if groups[training(run, elsewhere)].setdefault(fold, run) is not run:
                older.append(run)
    whole = [group for group in groups.values() if len(group) == len(folds)]
    part = [group for group in groups.values() if len(group) < len(folds)]
    missing = [fold for fold in folds if any(fold not in group for group in part)]
    remedy = f"run {FOLD}=[{','.join(missing)}], or compare one fold: --where {FOLD}={next(iter(folds))}"
    num = sum(map(len, part))
    if not whole:
        raise UserError(f"{runs[0].task}: no training has a run of each of the {len(folds)} folds: {remedy}")
    notes = []
    if older:
        notes.append(
            f"{counted(len(older), 'run')} left out, for another of the same training and fold has other data, "
            "and which of them belong to those of other folds is not known: the newest counts"
        )
    if part:
        some = f"{counted(num, 'run')} of {counted(len(part), 'training')}"
        notes.append(f"{some} left out, for folds are missing: {remedy}")
    if absent := sorted(dealt(runs[0]) - {*folds}, key=int):
        listed = ",".join(absent)
        notes.append(f"no run has the fold {listed}, so that its patients do not count: run {FOLD}=[{listed}]")
    return [one_run([*group.values()]) for group in whole], notes


def dealt(run: ExperimentRun) -> set[str]:
    """The folds that there are, by the run's tag; of a run from before it had one, where the task deals them."""
    number = run.run.tags.get("folds", run.fields.get(FOLDS, ""))
    return {*map(str, range(int(number)))} if number.isdecimal() else set()


def of_all_folds(folds: Mapping[str, Sequence[ExperimentRun]]) -> set[str]:
    """The fingerprints of what a pre-training learns from that every fold has. They are of other data sets, and tell
    trainings apart: each patient of the task is in the test part of a fold, so that no fold learns from those of all.
    """
    return set.intersection(*({run.fields.get(LEARNT, "") for run in some} for some in folds.values()))


def training(run: ExperimentRun, elsewhere: Collection[str]) -> tuple:
    """What the runs of one training on several folds have in common. elsewhere: see `of_all_folds`."""
    fields = [
        (name, value)
        for name, value in run.variant
        if name != FOLD and (not name.startswith(DATA) or name == WEIGHTS or (name == LEARNT and value in elsewhere))
    ]
    return *fields, run.fields.get(FRACTION), run.seed, run.pretrain_seed


def one_run(runs: Sequence[ExperimentRun]) -> ExperimentRun:
    """One run in place of a training's runs, one for each fold."""
    names = {name for run in runs for name in run.fields}
    fields = {name: one_value(name, [run.fields.get(name, "not set") for run in runs]) for name in names}
    own = replace(runs[0].run, name=f"{re.sub(r' fold [0-9]+', '', runs[0].run.name)}, {len(runs)} folds")
    return replace(runs[0], run=own, fields=fields, folds=tuple(runs))


def one_value(name: str, values: Sequence[str]) -> str:
    """One value for those of all folds, if they differ; of fingerprints one of them all."""
    if len(set(values)) == 1:
        return values[0]
    text = ",".join(values)
    return hashlib.sha256(text.encode()).hexdigest()[:12] if name.startswith(DATA) else text
