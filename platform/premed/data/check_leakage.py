"""What `premed data check` says of images that a pre-training learns from and the task keeps for val or test.

The comparisons are those by which `premed run` refuses them (`leakage`); here each image is a finding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from premed.contracts import Case
from premed.data.cache import Cache, Mapper
from premed.data.check import Check
from premed.data.leakage import HashCases, compare_recorded, find_leaks
from premed.data.splits import pretraining_cases
from premed.errors import Finding, UserError


def leaks(task: Check, other: Check, cache: Cache, mapper: Mapper) -> Iterator[Finding]:
    """Errors for the images of another data set of the pre-training that the task keeps for val or test."""
    validated: set[str] = set()
    with suppress(UserError):  # what its listings lack is found already
        validated = {case.name for case in pretraining_cases(other.task)[1]} if other.facts else set()
    read = read_cases(other)
    used = [(case, "val" if part == "val" or case.name in validated else "train") for case, part in read]
    train, held = split_up(task)
    part_of, reported = dict(read), set[Case]()
    for hash_cases in hashings((task, other), task.task.dims == other.task.dims, cache, mapper) if used else ():
        for leak, *_ in find_leaks(used, hash_cases([case for case, _ in used]), held, train, hash_cases):
            if leak.case not in reported:
                reported.add(leak.case)
                what = f"({part_of[leak.case]}) is the same image as {leak.held.image[0]}, which the task keeps for "
                what += f"{leak.part}; leave it out of this list, or split both in the same way"
                yield Finding("error", str(leak.case.image[0]), what)


def recorded_leaks(
    task: Check, recorded: Sequence[Mapping[str, Any]], cache: Cache, mapper: Mapper, where: str
) -> Iterator[Finding]:
    """Errors for the images of a finished pre-training, as it recorded them, that the task keeps for val or test."""
    train, held = split_up(task)
    reported = set[Case]()
    try:
        hashing = partial(hashings, (task,), cache=cache, mapper=mapper)
        for name, found in compare_recorded(recorded, task.task.dims, train, held, hashing, where):
            for leak in (leak for some in found for leak in some):
                if leak.held not in reported:
                    reported.add(leak.held)
                    what = f"({leak.part}) is the same image as {leak.case.name} of {name}, which {where} learnt from"
                    yield Finding("error", str(leak.held.image[0]), f"{what}; take it out of {leak.part}")
    except UserError as error:  # another version of premed recorded it
        yield Finding.of(error)


def read_cases(checked: Check) -> list[tuple[Case, str]]:
    """The cases whose images could be read, each with its part; another cause of failure is a finding already."""
    return [(case, part) for part, case in (checked.cases[facts.number] for facts in checked.facts if facts.shape)]


def split_up(task: Check) -> tuple[list[Case], list[tuple[Case, str]]]:
    """The cases of train, and those of val and test with their part."""
    read = read_cases(task)
    return [case for case, part in read if part == "train"], [each for each in read if each[1] in ("val", "test")]


def hashings(checks: Sequence[Check], values: bool, cache: Cache, mapper: Mapper) -> list[HashCases]:
    """See `leakage.hashings`; the hashes of grey values are those of the inspection."""
    content: dict[Case, frozenset[str]] = {}
    for checked in checks:
        content |= {checked.cases[facts.number][1]: frozenset(facts.content) for facts in checked.facts}
    by_bytes: Callable = lambda cases: cache.file_hashes(cases, mapper)  # noqa: E731
    by_values: Callable = lambda cases: [content[case] for case in cases]  # noqa: E731
    return [by_bytes, by_values] if values else [by_bytes]
