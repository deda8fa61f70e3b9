"""What the values of label maps mean: parses `labels` of a dataset.json, as the decathlon and nnU-Net write it.

Both {"0": "background", "1": "liver"} and {"background": 0, "liver": 1} are in use. nnU-Net has two additions: a list
of labels is a region that unites them, and `ignore` is the value of voxels about which nothing is known.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from premed.errors import UserError
from premed.safety.files import refuse_undecodable

IGNORE = "ignore"
MOST_DIGITS = 9  # of a label; Python refuses numbers of thousands


class Labels(NamedTuple):
    """Names and values of a data set's labels."""

    classes: tuple[str, ...]
    """One logit each: the labels in the order of their values, background first; or the regions, in the file's."""
    regions: dict[str, tuple[int, ...]] | None
    """The labels that each region unites; None if no region unites several."""
    ignore: int | None
    """The value of voxels that count in neither loss nor scores."""

    @property
    def values(self) -> tuple[int, ...]:
        """The values that label maps may hold, 0 to the highest."""
        labels = range(len(self.classes)) if self.regions is None else sorted({0}.union(*self.regions.values()))
        return (*labels, *(() if self.ignore is None else (self.ignore,)))


def parse_labels(listing: Path, labels: Any, with_regions: bool = False) -> Labels:
    """Returns what `labels` of the dataset.json `listing` says. with_regions: labels may unite several values.

    Raises UserError if the values are not 0 (background), 1, 2, … without a gap, `ignore` the highest of them.
    """
    pairs = list(labels.items()) if isinstance(labels, dict) else []
    pairs = [(str(name), number) for number, name in pairs] if "0" in dict(pairs) else pairs
    for name, _ in pairs:
        if name != IGNORE and name.lower() == IGNORE:
            raise UserError(f"{listing}: `labels` {name!r}: nnU-Net's word is `ignore`, in lower case; rename it")
    ignored = [number for name, number in pairs if name == IGNORE]
    named = [(name, numbers(number)) for name, number in pairs if name != IGNORE]
    several = any(len(united) > 1 for _, united in named)
    united = [number for _, each in named for number in each]
    highest = max(united, default=0)
    gap = min(united, default=0) < 0 or len({*united}) != highest + 1 or not all(each for _, each in named)
    if gap or len(named) < 2 or (several and not with_regions) or (not several and len(united) > highest + 1):
        more = "" if with_regions or not several else "; regions (lists of labels) are for task.name=nnunet"
        raise UserError(f"{listing}: `labels` must number 0 (background), 1, 2, … without a gap{more}")
    if ignored and [numbers(each) for each in ignored] != [(highest + 1,)]:
        what = f"`ignore` must be one number, the highest of `labels`: {highest + 1}, not {ignored[0]}"
        raise UserError(f"{listing}: {what}")
    if several:
        named = [(name, each) for name, each in named if {*each} != {0}]
        if mixed := [name for name, each in named if 0 in each]:
            raise UserError(f"{listing}: `labels` {mixed[0]!r} unites 0, which is background; leave it out")
    else:
        named.sort(key=lambda pair: pair[1])
    classes = unlike(listing, [name for name, _ in named])
    regions = {name: each for name, (_, each) in zip(classes, named, strict=True)} if several else None
    return Labels(classes, regions, highest + 1 if ignored else None)


def numbers(value: Any) -> tuple[int, ...]:
    """Returns the labels of an entry: a number, or a list of them; () if it is neither."""
    if isinstance(value, list):
        found = [numbers(each) if not isinstance(each, list) else () for each in value]
        return tuple(sorted({number for each in found for number in each})) if all(found) else ()
    is_number = isinstance(value, int) and not isinstance(value, bool)
    is_digits = isinstance(value, str) and value.isdecimal() and len(value) <= MOST_DIGITS
    return (int(value),) if is_number or is_digits else ()


def unlike(listing: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names as scores are called. Raises UserError if two become one."""
    by_name: dict[str, str] = {}
    for name in names:
        called = name.replace(" ", "_")
        refuse_undecodable(f"{listing}: `labels` {name}")
        if not called.strip("_"):  # `dice/` and nothing would be the mean over all classes
            raise UserError(f"{listing}: `labels` has {name!r}, which is no name; name what it is")
        if called in by_name:
            raise UserError(
                f"{listing}: `labels` {by_name[called]!r} and {name!r} are both scored as {called}; rename one"
            )
        by_name[called] = name
    return tuple(by_name)
