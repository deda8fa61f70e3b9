"""Images that are both trained on and scored on: of a task and another data set, and within one data set.

A pre-training on another data set, or on the task's own unlabelled images, that shows what the task keeps for val or
test is refused; of one that was finished before, the hashes that it recorded (`record`) stand for its images. One image
in two labelled parts of a data set is told and not refused: public data sets hold some, in the split that all use.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from premed.contracts import Case, Task
from premed.data.cache import VERSION, Cache, Mapper, Progress
from premed.data.splits import pretraining_cases
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

    other: may be `task` itself, whose unlabelled images are compared then.
    Compares the bytes of the files and, where these tell of nothing, the grey values (`content` says what counts as the
    same image). test: compares the test part, too. Opens no label file, and no image if `other` shows nothing that the
    task's fine-tuning does not show.
    """
    train = task.split("train")
    used = list(other_cases(task, other, train))
    if not used:
        return
    held = held_cases(task, test)
    cases = [case for case, _ in used]
    for hash_cases in hashings(task, task.dims == other.dims, cache, mapper, progress):
        if leaks := find_leaks(used, hash_cases(cases), held, train, hash_cases):
            words = leaks_words([some[0] for some in leaks])
            if other is task:
                what = f"task: {task.name} ({task.root}) has among the unlabelled images that pre-training learns from"
                raise UserError(f"{what} {words}; remove one of each two")
            raise UserError(
                f"pretrain.sources: {other.name} ({other.root}) shows {words}; leave them out of its "
                "list, or split both in the same way"
            )


def held_cases(task: Task, test: bool) -> list[tuple[Case, str]]:
    """The cases that a task keeps for val and, if `test`, for test."""
    held = [(case, "val") for case in task.split("val")]
    return held + ([(case, "test") for case in task.split("test")] if test else [])


def hashings(task: Task, values: bool, cache: Cache, mapper: Mapper, progress: Progress) -> list[HashCases]:
    """What cases are compared by: the bytes of their files, and, if `values`, their grey values."""
    by_bytes = partial(cache.file_hashes, mapper=mapper, progress=progress)
    by_values = partial(cache.image_hashes, dims=task.dims, mapper=mapper, progress=progress)
    return [by_bytes, by_values] if values else [by_bytes]


def leaks_words(leaks: Sequence[Leak]) -> str:
    """How many images leak, and which, at most MOST."""
    named = ", ".join(
        f"{leak.case.name}{' (its val)' * (leak.use == 'val')} is {leak.held.name} ({leak.part})"
        for leak in leaks[:MOST]
    )
    more = f" and {len(leaks) - MOST} more" if len(leaks) > MOST else ""
    return f"{len(leaks)} image{'s' * (len(leaks) > 1)} which the task keeps for val or test: {named}{more}"


def other_cases(task: Task, other: Task, train: Sequence[Case]) -> Iterator[tuple[Case, str]]:
    """The cases of a pre-training on `other`, each with its use, but for files that the task uses in the same way."""
    known = {case.image for case in train}
    learnt, validated = pretraining_cases(other)
    yield from ((case, "train") for case in learnt if case.image not in known)
    known |= {case.image for case in task.split("val")}
    yield from ((case, "val") for case in validated if case.image not in known)


def find_leaks(
    used: Sequence[tuple[Case, str]],
    hashes: Sequence[frozenset[str]],
    held: Sequence[tuple[Case, str]],
    train: Sequence[Case],
    hash_cases: HashCases,
) -> list[list[Leak]]:
    """For each case of `used`, which have these hashes, that is the same image as one of `held`: all such.

    An image that the task has in `train`, too, is none: the fine-tuning shows it anyway, which `repeated` tells.
    """
    holders: dict[str, list[tuple[Case, str]]] = defaultdict(list)
    for each, channels in zip(held, hash_cases([case for case, _ in held]), strict=True):
        for channel in channels:
            holders[channel].append(each)
    matches: list[list[tuple[str, Leak]]] = []
    for (case, use), channels in zip(used, hashes, strict=True):
        same = ((channel, each) for channel in sorted(channels) for each in holders.get(channel, ()))
        matches.append([(channel, Leak(case, use, *each)) for channel, each in same if each[1] in HELD_FROM[use]])
    shown = {channel for channels in hash_cases(train) for channel in channels} if any(matches) else set()
    leaks = [[leak for channel, leak in some if channel not in shown] for some in matches]
    return [some for some in leaks if some]


# ---- of a pre-training that is finished: by the hashes that it recorded


def record(task: Task, cache: Cache, mapper: Mapper, progress: Progress) -> dict[str, Any]:
    """What must be known of a data set of a pre-training to find its images elsewhere, as JSON. Reads each image."""
    used = [(case, use) for use, cases in zip(("train", "val"), pretraining_cases(task), strict=True) for case in cases]
    cases = [case for case, _ in used]
    by_bytes, by_values = (hash_cases(cases) for hash_cases in hashings(task, True, cache, mapper, progress))
    images = [
        {"name": case.name, "use": use, "files": sorted(files), "values": sorted(values)}
        for (case, use), files, values in zip(used, by_bytes, by_values, strict=True)
    ]
    return {"name": task.name, "dims": task.dims, "hashes": VERSION, "images": images}


def refuse_recorded_leaks(
    task: Task,
    recorded: Sequence[Mapping[str, Any]],
    test: bool,
    cache: Cache,
    mapper: Mapper,
    progress: Progress,
    where: str,
) -> None:
    """Raises UserError if a finished pre-training learnt from images that `task` keeps for val or test.

    recorded: what `record` returned for each of its data sets. where: the field and the pre-training, in messages.
    """
    hashing = partial(hashings, task, cache=cache, mapper=mapper, progress=progress)
    held = held_cases(task, test)
    for name, leaks in compare_recorded(recorded, task.dims, task.split("train"), held, hashing, where):
        if leaks:
            words = leaks_words([some[0] for some in leaks])
            raise UserError(
                f"{where} learnt from {name}, with {words}; pre-train without them, or "
                "leave them out of the task's val and test"
            )


def compare_recorded(
    recorded: Sequence[Mapping[str, Any]],
    dims: int,
    train: Sequence[Case],
    held: Sequence[tuple[Case, str]],
    hashing: Callable[[bool], Sequence[HashCases]],
    where: str,
) -> Iterator[tuple[str, list[list[Leak]]]]:
    """Yields the name of each recorded data set and what `find_leaks` finds in it, once by bytes, once by grey values.

    hashing: see `hashings`; it is asked whether grey values are compared, too. Raises UserError if they were recorded
    in another way.
    """
    for data_set in recorded:
        used = [(Case(image["name"], "", ()), image["use"]) for image in data_set["images"]]
        same_dims = data_set["dims"] == dims
        if same_dims and data_set["hashes"] != VERSION:
            raise UserError(
                f"{where} compares images in another way than this version of premed; run its pre-training's YAML "
                "again, without finetune: it trains nothing and records them anew"
            )
        for field, hash_cases in zip(("files", "values"), hashing(same_dims), strict=False):
            hashes = [frozenset(image[field]) for image in data_set["images"]]
            yield data_set["name"], find_leaks(used, hashes, held, train, hash_cases)


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
