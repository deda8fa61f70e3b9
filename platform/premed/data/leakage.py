"""Images that are both trained on and scored on: of a task and another data set, and within one data set.

A pre-training on another data set that shows what the task keeps for val or test is refused. The same image in two
parts of one data set is told and not refused: public data sets hold some, in the split that everybody uses.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from premed.contracts import Case, Task
from premed.data.cache import Cache, Mapper, Progress
from premed.data.splits import unlabelled_val
from premed.errors import UserError

MOST = 3  # pairs that a message names
HELD_FROM = {"train": ("val", "test"), "val": ("test",)}
"""By what a pre-training does with an image, the parts of the task that it may not be in. Val picks its weights."""

HashCases = Callable[[Sequence[Case]], Sequence[frozenset[str]]]


class Leak(NamedTuple):
    """An image of another data set, what the pre-training does with it, and the task's case that is the same image."""

    case: Case
    use: str
    held: Case
    part: str


def refuse_leaks(task: Task, other: Task, test: bool, cache: Cache, mapper: Mapper, progress: Progress) -> None:
    """Raises UserError if a pre-training on `other` would learn from images that `task` keeps for val or test.

    Compares the bytes of the files and, where these tell of nothing, the grey values (`content` says what counts as the
    same image). test: compares the test part, too. Opens no label file, and no image if `other` shows nothing that the
    task's fine-tuning does not show.
    """
    train = task.split("train")
    used = list(other_cases(task, other, train))
    if not used:
        return
    held = [(case, "val") for case in task.split("val")]
    held += [(case, "test") for case in task.split("test")] if test else []

    def by_bytes(cases: Sequence[Case]) -> list[frozenset[str]]:
        return cache.file_hashes(cases, mapper, progress)

    def by_values(cases: Sequence[Case]) -> list[frozenset[str]]:
        return cache.image_hashes(cases, task.dims, mapper, progress)

    for hash_cases in (by_bytes, by_values) if task.dims == other.dims else (by_bytes,):
        if leaks := find_leaks(used, held, train, hash_cases):
            named = ", ".join(
                f"{leak.case.name}{' (its val)' * (leak.use == 'val')} is {leak.held.name} ({leak.part})"
                for leak in leaks[:MOST]
            )
            more = f" and {len(leaks) - MOST} more" if len(leaks) > MOST else ""
            raise UserError(
                f"pretrain.sources: {other.name} ({other.root}) shows {len(leaks)} image{'s' * (len(leaks) > 1)} "
                f"which the task keeps for val or test: {named}{more}; leave them out of its list, "
                "or split both in the same way"
            )


def other_cases(task: Task, other: Task, train: Sequence[Case]) -> Iterator[tuple[Case, str]]:
    """The cases of a pre-training on `other`, each with its use, but for files that the task uses in the same way."""
    known = {case.image for case in train}
    yield from ((case, "train") for case in other.images() if case.image not in known)
    known |= {case.image for case in task.split("val")}
    yield from ((case, "val") for case in unlabelled_val(other) if case.image not in known)


def find_leaks(
    used: Sequence[tuple[Case, str]], held: Sequence[tuple[Case, str]], train: Sequence[Case], hash_cases: HashCases
) -> list[Leak]:
    """The cases of `used` that are the same image as one of `held`.

    An image that the task has in `train`, too, is none: the fine-tuning shows it anyway, which `repeated` tells.
    """
    hashes = hash_cases([case for case, _ in (*held, *used)])
    holders: dict[str, list[tuple[Case, str]]] = defaultdict(list)
    for each, channels in zip(held, hashes, strict=False):
        for channel in channels:
            holders[channel].append(each)
    matches: list[list[tuple[str, Leak]]] = []
    for (case, use), channels in zip(used, hashes[len(held) :], strict=True):
        same = ((channel, each) for channel in sorted(channels) for each in holders.get(channel, ()))
        matches.append([(channel, Leak(case, use, *each)) for channel, each in same if each[1] in HELD_FROM[use]])
    shown = {channel for channels in hash_cases(train) for channel in channels} if any(matches) else set()
    leaks = [[leak for channel, leak in some if channel not in shown] for some in matches]
    return [some[0] for some in leaks if some]


def repeated(parts: Mapping[str, Mapping[str, Iterable[str]]]) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Yields two parts and, of each image of the second that is in the first, both names.

    parts: by hash, the names of the cases of each part that have it.
    """
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        pairs = {
            name: (min(names[first]), name)
            for names in parts.values()
            if first in names and second in names
            for name in names[second]
        }
        if pairs:
            yield first, second, sorted(pairs.values())
