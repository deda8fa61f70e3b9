"""Splits of cases into parts: listed in `task.split`, drawn by patient, or val carved out of train by patient.

No patient is in two parts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from premed.contracts import Case, Part, Task
from premed.errors import Finding, Missing, UserError
from premed.rng import SampleRng, key, permutation

PARTS: tuple[Part, ...] = get_args(Part)
Split = dict[Part, tuple[str, ...]]
"""Case names per part."""
VAL_SHARE = 0.1
"""Of the patients of a data set without labels, the share that its pre-training is validated on."""


def listed_cases(
    split: Split, part: Part, labelled: Mapping[str, Case], root: Path, lenient: bool = False
) -> list[Case]:
    """The cases of a part, in listed order. Raises UserError for the first fault, unless `lenient`."""
    raise_first_error(() if lenient else split_faults(split, labelled, root, [part]))
    if not split.get(part):
        raise UserError(f"task.split.{part} is empty: name at least one case")
    return [labelled[name] for name in split[part] if name in labelled]


def split_faults(
    split: Split, labelled: Mapping[str, Case], root: Path, parts: Sequence[Part] = PARTS
) -> Iterator[Finding]:
    """Yields names and patients in two parts, then names listed in `parts` that no labelled case has."""
    part_of: dict[str, Part] = {}
    for part, listed in split.items():
        for name in sorted(listed):
            if name in part_of:
                yield Finding("error", "task.split", f"{name} is in two parts; keep it in one")
            part_of.setdefault(name, part)
    known = {name: part for name, part in part_of.items() if name in labelled}
    for what in shared_patients((labelled[name].patient for name in known), known.values()):
        yield Finding("error", "task.split", what)
    for part in parts:
        for name in sorted(set(split.get(part, ())) - set(labelled)):
            yield Finding("error", f"task.split.{part}", f"{name} is not a labelled case of {root}")


def raise_first_error(findings: Iterable[Finding]) -> None:
    """Raises the first error among `findings` as a UserError."""
    for finding in findings:
        if finding.severity == "error":
            raise UserError(f"{finding.where}: {finding.what}")


def carve_val(names: Sequence[str], there: Mapping[str, Case], share: float, of: int) -> tuple[list[str], list[str]]:
    """Splits those of `names` that are `there` into (train, val) by patient, both in the order of `names`.

    of: a random key, which shuffles all patients (an absent case counts as one); val is the first `share` of those that
    are there, so that a missing case changes the split little. Val gets at least one of two or more.
    """
    patients = {name: there[name].patient if name in there else name for name in names}
    everyone, present = list(dict.fromkeys(patients.values())), {patients[name] for name in names if name in there}
    order = [everyone[i] for i in permutation(of, len(everyone)) if everyone[i] in present]
    val = set(order[: min(max(1, round(share * len(order))), len(order) - 1)] if order else [])
    some = [name for name in names if name in there]
    return [n for n in some if patients[n] not in val], [n for n in some if patients[n] in val]


def unlabelled_to_learn(unlabelled: Iterable[Case], labelled: Iterable[Case], train: Iterable[Case]) -> list[Case]:
    """The unlabelled cases that may be pre-trained on: none of a patient whose labelled cases are in val or test."""
    held_out = {case.patient for case in labelled} - {case.patient for case in train}
    return [case for case in unlabelled if case.patient not in held_out]


def pretraining_cases(task: Task) -> tuple[list[Case], list[Case]]:
    """The cases, without labels, that a pre-training learns from and is validated on: those of `images` and of val.

    Where no image of the task has a label, there are no parts: a share of the patients is kept for validation.
    """
    images = task.images()
    if not is_unlabelled(task):
        return images, [Case(case.name, case.patient, case.image) for case in task.split("val")]
    val = unlabelled_val(case.patient for case in images)
    return [case for case in images if case.patient not in val], [case for case in images if case.patient in val]


def is_unlabelled(task: Task) -> bool:
    """Whether no image of the task has a label: it has images, and refuses all parts for the same reason."""
    refusals = set()
    for part in ("val", "train"):
        try:
            task.split(part)
            return False
        except UserError as refusal:
            refusals.add(str(refusal))
    return len(refusals) == 1 and bool(task.images())


def unlabelled_val(patients: Iterable[str]) -> set[str]:
    """The patients, of a data set without labels, on whose images a pre-training is validated: about VAL_SHARE.

    A patient's name alone decides, so that scans that are added move no others. At least one patient is in val, and one
    is not; of a single patient there is no val.
    """
    draws = {who: float(SampleRng(key("unlabelled", who)).uniform("val")[0]) for who in set(patients)}
    order = sorted(draws, key=lambda who: (draws[who], who))
    drawn = sum(draw < VAL_SHARE for draw in draws.values())
    return set(order[: min(max(drawn, 1), len(order) - 1)] if order else ())


def missing_files(cases: Iterable[Case]) -> Iterator[Finding]:
    """Yields an error for each missing file of `cases`."""
    for case in cases:
        for path in case.files:
            if not path.exists():  # a folder may be one volume
                what = "is listed and missing; add it, or remove it from the list"
                yield Missing("error", str(path), what)


def assign_patients(patients: Iterable[str], shares: Sequence[float], key: int) -> dict[str, str]:
    """Assigns patients to parts, by shares of their number, shuffled by `key`. Train and val get at least one each."""
    order = shuffled_patients(patients, key)
    num_train, num_val = (max(1, round(share * len(order))) for share in shares[:2])
    return {who: PARTS[(i >= num_train) + (i >= num_train + num_val)] for i, who in enumerate(order)}


def carve_patients(patients: Iterable[str], share: float, key: int) -> set[str]:
    """Draws a share of the patients, at least one."""
    order = shuffled_patients(patients, key)
    return set(order[: max(1, round(share * len(order)))])


def shuffled_patients(patients: Iterable[str], key: int) -> list[str]:
    """The distinct patients, in an order that depends only on their names and `key`."""
    names = sorted(set(patients))
    return [names[i] for i in permutation(key, len(names))]


def shared_patients(patients: Iterable[str], parts: Iterable[str]) -> Iterator[str]:
    """Yields a message for each patient with images in more than one part; an empty part does not count."""
    parts_of: dict[str, set[str]] = {}
    for who, part in zip(patients, parts, strict=True):
        parts_of.setdefault(who, set()).add(part)
    for who, some in parts_of.items():
        if len(some - {""}) > 1:
            yield f"patient {who} is in {' and '.join(sorted(some - {''}))}; keep each patient in one part"


def listing_faults(split: Mapping[Any, Sequence[str]], patients: set[str]) -> Iterator[str]:
    """Yields a message if a split lists a patient twice, and one if it lists a patient without labelled images."""
    listed = [who for some in split.values() for who in some]
    if twice := {who for who in listed if listed.count(who) > 1}:
        yield f"{min(twice)} is in two parts; keep it in one"
    if strangers := set(listed) - patients:
        yield f"{min(strangers)} is no patient with a label; fix the name"
