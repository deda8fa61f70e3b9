"""Which case is in which part: as `task.split` lists it, dealt by patient, or val carved out of train by patient.

No patient is in two parts.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from premed.contracts import Case, Part, Task
from premed.errors import Finding, UserError
from premed.rng import permutation

PARTS: tuple[Part, ...] = get_args(Part)
Split = dict[Part, tuple[str, ...]]
"""Case names per part."""


def listed_cases(
    split: Split, part: Part, labelled: Mapping[str, Case], root: Path, lenient: bool = False
) -> list[Case]:
    """The cases of a part, in the order they are listed. Raises UserError for the first fault, unless `lenient`."""
    raise_first_error(() if lenient else split_faults(split, labelled, root, [part]))
    if not split.get(part):
        raise UserError(f"task.split.{part} is empty: name at least one case")
    return [labelled[name] for name in split[part] if name in labelled]


def split_faults(
    split: Split, labelled: Collection[str], root: Path, parts: Sequence[Part] = PARTS
) -> Iterator[Finding]:
    """Names that stand in two parts (of all), then names of `parts` that no labelled case has."""
    names = [name for listed_cases in split.values() for name in listed_cases]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Finding("error", "task.split", f"{name} stands in two parts; keep it in one")
    for part in parts:
        for name in sorted(set(split.get(part, ())) - set(labelled)):
            yield Finding("error", f"task.split.{part}", f"{name} is not a labelled case of {root}")


def raise_first_error(findings: Iterable[Finding]) -> None:
    """Raises the first error among `findings` as a UserError."""
    for finding in findings:
        if finding.severity == "error":
            raise UserError(f"{finding.where}: {finding.what}")


def carve_val(names: Sequence[str], there: Collection[str], share: float, of: int) -> tuple[list[str], list[str]]:
    """(train, val) of those of `names` that are `there`, both in the order of `names`.

    `of` is a draw key: it puts all of `names` in an order, and val is the first of them, so that what is not there
    changes little. Val gets at least one, if there are two.
    """
    order = [names[i] for i in permutation(of, len(names)) if names[i] in there]
    val = set(order[: min(max(1, round(share * len(order))), len(order) - 1)] if order else [])
    some = [name for name in names if name in there]
    return [name for name in some if name not in val], [name for name in some if name in val]


def unlabelled_val(task: Task) -> list[Case]:
    """What a pre-training on a data set is validated on: val without labels; nothing, where no image has a label."""
    try:
        return [Case(case.name, case.patient, case.image) for case in task.split("val")]
    except UserError as refusal:
        try:
            task.split("train")
        except UserError as other:
            if str(other) == str(refusal) and task.images():  # they cannot be split, and can be pre-trained on
                return []
        raise


def missing_files(cases: Iterable[Case]) -> Iterator[Finding]:
    """The files of `cases` that are not there."""
    for case in cases:
        for path in case.files:
            if not path.exists():  # a folder may be one volume
                yield Finding("error", str(path), "is listed and missing; put it there, or take it off the list")


def assign_patients(patients: Iterable[str], shares: Sequence[float], key: int) -> dict[str, str]:
    """Patients to parts, by shares of their number, in an order drawn by `key`; train and val get at least one."""
    order = shuffled_patients(patients, key)
    num_train, num_val = (max(1, round(share * len(order))) for share in shares[:2])
    return {who: PARTS[(i >= num_train) + (i >= num_train + num_val)] for i, who in enumerate(order)}


def carve_patients(patients: Iterable[str], share: float, key: int) -> set[str]:
    """So large a share of the patients, at least one."""
    order = shuffled_patients(patients, key)
    return set(order[: max(1, round(share * len(order)))])


def shuffled_patients(patients: Iterable[str], key: int) -> list[str]:
    """Each once, in an order that depends on their names and `key` alone."""
    names = sorted(set(patients))
    return [names[i] for i in permutation(key, len(names))]


def shared_patients(patients: Iterable[str], parts: Iterable[str]) -> Iterator[str]:
    """Says which patients have images in more than one part; an empty part is none."""
    found: dict[str, set[str]] = {}
    for who, part in zip(patients, parts, strict=True):
        found.setdefault(who, set()).add(part)
    for who, some in found.items():
        if len(some - {""}) > 1:
            yield f"patient {who} is in {' and '.join(sorted(some - {''}))}; keep each patient in one part"


def listing_faults(split: Mapping[Any, Sequence[str]], patients: set[str]) -> Iterator[str]:
    """What a listed split says of patients that cannot be: twice, or not there."""
    listed = [who for some in split.values() for who in some]
    if twice := {who for who in listed if listed.count(who) > 1}:
        yield f"{min(twice)} stands in two parts; keep it in one"
    if strangers := set(listed) - patients:
        yield f"{min(strangers)} is no patient with a label; mend the name"
