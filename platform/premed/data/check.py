"""What is wrong with an experiment's data, found before any training: `premed data check`.

First its listings (`listings`: cheap, and what `premed run` looks at too), then every image and label by itself
(`inspection.inspect`, in parallel, one case at a time in each process), then the set as a whole:

- the same values in two parts (an error: what is tested was trained on), or twice in one (a note);
- classes that no label map of a part holds;
- images smaller than the roi, on the prepared grid: they are padded with air;
- an orientation that is not the one of at least 80 % of the set;
- a spacing far from the set's: of at least 5 images, those whose spacing along an axis is more than 5 robust deviations
  (1.4826 × the median absolute deviation, of logarithms) and more than a factor of 1.5 from the median.

An error is what a run refuses, or what makes its numbers false; a note is what one should know.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from premed.config.plugins import plugin
from premed.config.spec import Spec
from premed.contracts import Case, Part, Task
from premed.data.inspection import Facts, Inspection, inspect
from premed.data.splits import unlabelled_val
from premed.errors import Finding, UserError

FEW = 5  # images with a class: with fewer in a part, its score there says little
UNLABELLED = "unlabelled"  # the part of images that serve pre-training only


def refuse(task: Task, test: bool, unlabelled: bool = False) -> None:
    """Raises UserError where a task's listings hold errors: what `premed run` does before it starts anything.

    unlabelled: it is pre-trained on alone, and may do without labels.
    """
    errors = [finding for finding in listings(task, test) if finding.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more: premed data check lists them)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0].where}: {errors[0].what}{more}")
    if unlabelled:
        unlabelled_val(task)
        return
    for part in parts_of(test):
        task.split(part)  # what serves pre-training only cannot be run to its end


def parts_of(test: bool) -> tuple[Part, ...]:
    return ("train", "val", "test") if test else ("train", "val")


def listings(task: Task, test: bool) -> list[Finding]:
    """What a task's listings give away, without opening an image; `test`: the test part's too."""
    found: list[Finding] = []
    try:
        for finding in task.check(test):
            found.append(finding)
    except UserError as error:
        found.append(Finding.of(error))
    parts, refusals = split_cases(task, test)
    refusal = None
    if UNLABELLED in parts and len(parts) == 1 and len({str(error) for error in refusals.values()}) == 1:
        refusal = Finding.of(next(iter(refusals.values())))._replace(severity="note")  # to be pre-trained on
        found.append(refusal)
    elif not any(finding.severity == "error" for finding in found):  # else they are what is refused
        found += dict.fromkeys(map(Finding.of, refusals.values()))
    owners = {part: {case.patient for case in cases} for part, cases in parts.items() if part != UNLABELLED}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        for patient in sorted(owners.get(first, set()) & owners.get(second, set())):
            what = f"has images in {first} and in {second}; keep each patient in one part"
            found.append(Finding("error", f"{task.root}, patient {patient}", what))
    for part, cases in parts.items():
        found += rare_classes(task, part, [case.label for case in cases if isinstance(case.label, tuple)])
    return found


def split_cases(task: Task, test: bool) -> tuple[dict[str, list[Case]], dict[str, UserError]]:
    """Cases by part (and what is only pre-trained on), where they can be had, and the refusals where not."""
    parts: dict[str, list[Case]] = {}
    refusals: dict[str, UserError] = {}
    for part in parts_of(test):
        try:
            parts[part] = task.split(part)
        except UserError as error:
            refusals[part] = error
    try:
        known = {case.name for cases in parts.values() for case in cases}
        if unlabelled := [case for case in task.images() if case.name not in known]:
            parts[UNLABELLED] = unlabelled
    except UserError as error:
        refusals[UNLABELLED] = error
    return parts, refusals


def rare_classes(task: Task, part: str, labels: Sequence[Any]) -> Iterator[Finding]:
    """Classes of which a part has too few images, or no others, to learn or to score them."""
    if not labels:
        return
    table = np.array(labels, float)
    use = "nothing can be learnt of it" if part == "train" else "its score is undefined and left out"
    for name, column in zip(task.classes, table.T, strict=True):
        known = column[~np.isnan(column)]
        number, where = int((known > 0).sum()), f"class {name}, part {part}"
        if number == 0:
            yield Finding("note", where, f"no image has it: {use}")
        elif number == len(known):
            yield Finding("note", where, f"every image has it: {use}")
        elif number < FEW:
            yield Finding("note", where, f"only in {number} of {len(known)} images: a score of it says little")


class Check:
    """A task's data under check. `findings` grow with what is opened: not the test part where `test: false`."""

    def __init__(self, config: Spec, test: bool):
        self.test = test
        self.findings: list[Finding] = []
        self.parts: dict[str, list[Case]] = {}
        self.facts: list[Facts] = []
        self.jobs: list[Inspection] = []
        self.cases: list[tuple[str, Case]] = []
        self.name, self.root = str(config.name), ""  # type: ignore[attr-defined]
        build = plugin("tasks", config).build
        try:
            self.task: Task = build(config)
            self.name, self.root = self.task.name, str(self.task.root)
            self.findings += listings(self.task, self.test)
        except UserError as error:
            self.findings.append(Finding.of(error))
            return
        self.parts, refusals = split_cases(self.task, self.test)
        if refusals:  # to open what is there all the same
            partial = {"partial": True} if "partial" in type(config).model_fields else {}
            self.task = build(config.model_copy(update=partial))
            self.task.lenient = True
            self.parts, refusals = split_cases(self.task, self.test)
        if self.parts.keys() != {UNLABELLED}:
            what = "its images were not opened, for it is refused:"
            self.findings += [Finding("note", f"part {part}", f"{what} {error}") for part, error in refusals.items()]
        self.cases = [(part, case) for part, cases in self.parts.items() for case in cases]
        self.jobs = [self.job(number, case) for number, (_, case) in enumerate(self.cases)]

    def job(self, number: int, case: Case) -> Inspection:
        label = case.label.absolute() if isinstance(case.label, Path) else None
        images = tuple(path.absolute() for path in case.image)
        return Inspection(number, images, label, self.task.preprocessing, self.task.labels)

    def open_images(self, mapper: Callable | None, progress: Callable[[int, int], None]) -> None:
        """Inspects every case, then the set; mapper and progress as `Cache.prepare` has them."""
        if not self.jobs:
            return
        for facts in (mapper or map)(inspect, self.jobs):
            self.facts.append(facts)
            progress(len(self.facts), len(self.jobs))
        self.facts.sort(key=lambda facts: facts.number)
        reported = {each.where for each in self.findings if not Path(each.where).exists()}  # missing: is said once
        self.findings += [each for facts in self.facts for each in facts.findings if each.where not in reported]
        for rule in (self.duplicates, self.empty_classes, self.small, self.orientations, self.spacings):
            self.findings += rule()

    def image(self, facts: Facts) -> str:
        return str(self.cases[facts.number][1].image[0])

    def duplicates(self) -> Iterator[Finding]:
        alike: dict[str, dict[str, Facts]] = defaultdict(dict)
        for facts in self.facts:
            if facts.content:  # one file listed in two parts is the listings' business
                alike[facts.content].setdefault(self.image(facts), facts)
        for same in alike.values():
            group = list(same.values())
            parts = [self.cases[facts.number][0] for facts in group]
            if len(group) > 1:
                others = [f"{self.image(f)} ({part})" for f, part in zip(group, parts, strict=True)][:-1]
                reported = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
                what = f"({parts[-1]}) holds the same values as {reported}; keep one of them"
                yield Finding("error" if len({*parts}) > 1 else "note", self.image(group[-1]), what)

    def empty_classes(self) -> Iterator[Finding]:
        for part, numbers in self.class_counts().items():
            use = "nothing can be learnt of it" if part == "train" else "nothing of it can be missed, only invented"
            for name, number in numbers.items():
                if number == 0 and any(isinstance(case.label, Path) for case in self.parts[part]):
                    yield Finding("note", f"class {name}, part {part}", f"no label map holds it: {use}")

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Part to class to the number of images that have it."""
        counts: dict[str, dict[str, int]] = {}
        for part, cases in self.parts.items():
            labels = np.array([case.label for case in cases if isinstance(case.label, tuple)], float)
            if len(labels):
                counts[part] = dict(zip(self.task.classes, (labels > 0).sum(axis=0).tolist(), strict=True))
            elif any(isinstance(case.label, Path) for case in cases):
                held = [facts.counts.keys() for facts in self.facts if self.cases[facts.number][0] == part]
                for name, united in self.task.regions.items():
                    counts.setdefault(part, {})[name] = sum(not found.isdisjoint(united) for found in held)
        return counts

    def small(self) -> Iterator[Finding]:
        roi = self.task.roi
        small = [f for f in self.facts if f.prepared and any(np.less(f.prepared, roi))]
        if small:
            least = min(small, key=lambda facts: np.prod(facts.prepared))
            size = " × ".join(map(str, least.prepared))
            what = f"{len(small)} of {len(self.facts)} images are smaller than {list(roi)} and padded with air: "
            yield Finding("note", "task.roi", what + f"the smallest, {self.image(least)}, has {size} voxels prepared")

    def orientations(self) -> Iterator[Finding]:
        ways = Counter(facts.orientation for facts in self.facts if facts.orientation)
        if len(ways) < 2:
            return
        (usual, number), total = ways.most_common(1)[0], sum(ways.values())
        if number < 0.8 * total:
            said = ", ".join(f"{count} {way}" for way, count in ways.most_common())
            yield Finding("note", self.root, f"orientations are mixed ({said}): all are turned to the recipe's")
            return
        for facts in self.facts:
            if facts.orientation and facts.orientation != usual:
                what = f"is stored as {facts.orientation}, {number} of {total} as {usual}: see that its header is right"
                yield Finding("note", self.image(facts), what)

    def spacings(self) -> Iterator[Finding]:
        some = [facts for facts in self.facts if facts.spacing]
        if len(some) < 5:
            return
        sizes = np.log([facts.spacing for facts in some])
        usual = np.median(sizes, axis=0)
        limit = np.maximum(5 * 1.4826 * np.median(np.abs(sizes - usual), axis=0), np.log(1.5))
        for facts, off in zip(some, np.abs(sizes - usual) > limit + 1e-9, strict=True):
            if off.any():
                own, set_ = (" × ".join(f"{size:.3g}" for size in each) for each in (facts.spacing, np.exp(usual)))
                what = f"its spacing {own} mm is far from the set's {set_} mm: see that its header is right"
                yield Finding("note", self.image(facts), what)

    def outcome(self) -> dict[str, Any]:
        """What `--json` says."""
        self.findings.sort(key=lambda finding: finding.severity)  # errors first, else as they came
        return {
            "task": self.name,
            "root": self.root,
            "parts": {part: len(cases) for part, cases in self.parts.items()},
            "num_images": len(self.facts),
            "num_errors": sum(finding.severity == "error" for finding in self.findings),
            "num_notes": sum(finding.severity == "note" for finding in self.findings),
            "classes": self.class_counts(),
            "findings": [finding._asdict() for finding in self.findings],
        }
