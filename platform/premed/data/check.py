"""`premed data check`: finds the faults of an experiment's data before any training.

It checks the listings (`listings`: cheap; `premed run` checks them, too), then every image and label by itself
(`inspection.inspect`, in parallel, one case at a time in each process), then the data set as a whole:

- duplicates (`content` says what the same image is): in two parts (an error: test images leak into training), or twice
  in one, or among images that are trained on (a note);
- images of a pre-training's other data sets that the task keeps for val or test (`check_leakage`: an error);
- classes that occur in no label map of a part;
- images smaller than the roi, on the prepared grid: they are padded with background;
- an orientation that differs from that of at least 80 % of the set;
- an outlying spacing: of at least 5 images, those whose spacing along an axis is more than 5 robust deviations
  (1.4826 × the median absolute deviation, of logarithms) and more than a factor of 1.5 from the median.

An error stops a run or makes its scores wrong; a note is information.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from premed.config.plugins import plugin
from premed.config.spec import Spec
from premed.contracts import Case, Part, Task
from premed.data.inspection import Facts, Inspection, image_facts, inspect
from premed.data.splits import pretraining_cases
from premed.errors import Finding, UserError, shortened

FEW = 5  # a class with fewer images in a part gets a note: its score there is unreliable
UNLABELLED = "unlabelled"  # the part that holds images for pre-training only


def refuse(task: Task, test: bool, unlabelled: bool = False) -> None:
    """Raises UserError if a task's listings hold errors. `premed run` calls it before it starts anything.

    unlabelled: the task is for pre-training only and needs no labels.
    """
    errors = [finding for finding in listings(task, test) if finding.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more: premed data check lists them)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0].where}: {errors[0].what}{more}")
    if unlabelled:
        pretraining_cases(task)
        return
    for part in parts_of(test):
        task.split(part)  # raises if the images have no labels: they serve pre-training only


def parts_of(test: bool) -> tuple[Part, ...]:
    return ("train", "val", "test") if test else ("train", "val")


def listings(task: Task, test: bool) -> list[Finding]:
    """The faults of a task's listings, found without opening an image. test: checks the test part, too."""
    findings: list[Finding] = []
    try:
        for finding in task.check(test):
            findings.append(finding)
    except UserError as error:
        findings.append(Finding.of(error))
    parts, refusals = split_cases(task, test)
    refusal = None
    if UNLABELLED in parts and len(parts) == 1 and len({str(error) for error in refusals.values()}) == 1:
        refusal = Finding.of(next(iter(refusals.values())))._replace(severity="note")  # pre-training on them works
        findings.append(refusal)
    elif not any(finding.severity == "error" for finding in findings):  # else the refusals repeat these errors
        findings += dict.fromkeys(map(Finding.of, refusals.values()))
    owners = {part: {case.patient for case in cases} for part, cases in parts.items() if part != UNLABELLED}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        for patient in sorted(owners.get(first, set()) & owners.get(second, set())):
            what = f"has images in {first} and in {second}; keep each patient in one part"
            findings.append(Finding("error", f"{task.root}, patient {patient}", what))
    for part, cases in parts.items():
        findings += rare_classes(task, part, [case.label for case in cases if isinstance(case.label, tuple)])
    return findings


def split_cases(task: Task, test: bool) -> tuple[dict[str, list[Case]], dict[str, UserError]]:
    """The cases of each part (UNLABELLED included) that the task can list, and the errors of the parts it cannot."""
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
    """Notes on classes that no image, every image or fewer than FEW images of a part show."""
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
    """Checks a task's data and collects `findings`. With `test: false` it leaves the test part alone."""

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
        if refusals:  # list the cases that are there, so that they are opened all the same
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
        return Inspection(number, images, label, self.task.preprocessing, self.task.labels, self.task.ignore)

    def open_images(self, mapper: Callable | None, progress: Callable[[int, int], None]) -> None:
        """Inspects every case, then the data set as a whole. mapper, progress: see `Cache.prepare`."""
        if not self.jobs:
            return
        for facts in (mapper or map)(inspect, self.jobs):
            self.facts.append(facts)
            progress(len(self.facts), len(self.jobs))
        self.facts.sort(key=lambda facts: facts.number)
        # missing files are reported once
        reported = {each.where for each in self.findings if not Path(each.where).exists()}
        self.findings += [each for facts in self.facts for each in facts.findings if each.where not in reported]
        for rule in (self.duplicates, self.empty_classes, self.small_images, self.orientations, self.spacings):
            self.findings += rule()

    def image(self, facts: Facts) -> str:
        """The first image file of a case."""
        return str(self.cases[facts.number][1].image[0])

    def duplicates(self) -> Iterator[Finding]:
        """The same image twice: an error where it is trained on and scored on, else a note."""
        alike: dict[str, dict[str, int]] = defaultdict(dict)
        for facts in self.facts:
            for channel in facts.content:  # one file listed in two parts: `listings` reports it
                alike[channel].setdefault(self.image(facts), facts.number)
        for numbers in dict.fromkeys(tuple(same.values()) for same in alike.values() if len(same) > 1):
            parts = [self.cases[number][0] for number in numbers]
            images = [str(self.cases[number][1].image[0]) for number in numbers]
            others = [f"{image} ({part})" for image, part in zip(images, parts, strict=True)][:-1]
            listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            what = f"({parts[-1]}) holds the same image as {listed}; keep one of them"
            uses = {"train" if part == UNLABELLED else part for part in parts}
            yield Finding("error" if len(uses) > 1 else "note", images[-1], what)

    def empty_classes(self) -> Iterator[Finding]:
        """Classes that no label map of a part holds."""
        for part, numbers in self.class_counts().items():
            use = "nothing can be learnt of it" if part == "train" else "its score counts false positives only"
            for name, number in numbers.items():
                if number == 0 and any(isinstance(case.label, Path) for case in self.parts[part]):
                    yield Finding("note", f"class {name}, part {part}", f"no label map holds it: {use}")

    def class_counts(self) -> dict[str, dict[str, int]]:
        """By part and class, the number of images that have the class."""
        counts: dict[str, dict[str, int]] = {}
        for part, cases in self.parts.items():
            labels = np.array([case.label for case in cases if isinstance(case.label, tuple)], float)
            if len(labels):
                counts[part] = dict(zip(self.task.classes, (labels > 0).sum(axis=0).tolist(), strict=True))
            elif any(isinstance(case.label, Path) for case in cases):
                held = [facts.counts.keys() for facts in self.facts if self.cases[facts.number][0] == part]
                for name, united in self.task.regions.items():
                    counts.setdefault(part, {})[name] = sum(not values.isdisjoint(united) for values in held)
        return counts

    def small_images(self) -> Iterator[Finding]:
        """A note if prepared images are smaller than the roi."""
        roi = self.task.roi
        small = [f for f in self.facts if f.prepared and any(np.less(f.prepared, roi))]
        if small:
            least = min(small, key=lambda facts: np.prod(facts.prepared))
            size = " × ".join(map(str, least.prepared))
            what = f"{len(small)} of {len(self.facts)} images are smaller than {list(roi)} and padded with background: "
            yield Finding("note", "task.roi", what + f"the smallest, {self.image(least)}, has {size} voxels prepared")

    def orientations(self) -> Iterator[Finding]:
        """Mixed orientations, or images that differ from the usual one."""
        counts = Counter(facts.orientation for facts in self.facts if facts.orientation)
        if len(counts) < 2:
            return
        (usual, number), total = counts.most_common(1)[0], sum(counts.values())
        if number < 0.8 * total:
            listed = ", ".join(f"{count} {orientation}" for orientation, count in counts.most_common())
            what = f"orientations are mixed ({listed}): all are reoriented by the preprocessing"
            yield Finding("note", self.root, what)
            return
        for facts in self.facts:
            if facts.orientation and facts.orientation != usual:
                what = f"is stored as {facts.orientation}, {number} of {total} as {usual}: check its header"
                yield Finding("note", self.image(facts), what)

    def spacings(self) -> Iterator[Finding]:
        """Images whose spacing is far from the median of the data set."""
        some = [facts for facts in self.facts if facts.spacing]
        if len(some) < 5:
            return
        sizes = np.log([facts.spacing for facts in some])
        usual = np.median(sizes, axis=0)
        limit = np.maximum(5 * 1.4826 * np.median(np.abs(sizes - usual), axis=0), np.log(1.5))
        for facts, off in zip(some, np.abs(sizes - usual) > limit + 1e-9, strict=True):
            if off.any():
                own, set_ = (" × ".join(f"{size:.3g}" for size in each) for each in (facts.spacing, np.exp(usual)))
                what = f"its spacing {own} mm is far from the set's {set_} mm: check its header"
                yield Finding("note", self.image(facts), what)

    def outcome(self) -> dict[str, Any]:
        """The result as a JSON object, for `--json`."""
        self.findings.sort(key=lambda finding: finding.severity)  # errors first, otherwise in the order of discovery
        return {
            "task": self.name,
            "root": self.root,
            "parts": {part: len(cases) for part, cases in self.parts.items()},
            "num_images": len(self.facts),
            "num_errors": sum(finding.severity == "error" for finding in self.findings),
            "num_notes": sum(finding.severity == "note" for finding in self.findings),
            "classes": self.class_counts(),
            "images": image_facts(self.facts),
            "findings": [finding._replace(what=shortened(finding.what))._asdict() for finding in self.findings],
        }
