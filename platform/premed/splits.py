"""Who is in which part: never a patient in two."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from premed.rng import permutation

PARTS = ("train", "val", "test")


def deal_patients(patients: Iterable[str], shares: Sequence[float], key: int) -> dict[str, str]:
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


def in_two_parts(patients: Iterable[str], parts: Iterable[str]) -> Iterator[str]:
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
