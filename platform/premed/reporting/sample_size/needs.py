"""How many pre-trainings, fine-tunings and test patients show a difference, and what they cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from premed.reporting.comparison.result import Looks
from premed.reporting.sample_size.components import Components
from premed.reporting.sample_size.levels import level_at
from premed.reporting.sample_size.power import (
    Design,
    fewest,
    layout,
    power,
)
from premed.reporting.sample_size.result import Need
from premed.reporting.statistics import SEEDS

MOST_TRAININGS = 100
MOST_PATIENTS = 10_000
PRETRAININGS = "pre-trainings, a fine-tuning each"
FINETUNINGS = "fine-tunings of each pre-training"
SEEDS_ALONE = "fine-tuning seeds"
PATIENTS = "test patients"
TOGETHER = "pre-trainings, with more test patients"
ONE_PRETRAINING = "for this pre-training alone"
CONFOUNDED = "confounded with pre-trainings"
ONE_EACH = "seeds: auto has one of each"
AT_LOOKS = "at a planned look"
ANEW = "begun anew with the same looks"
DEALT = "labelled, all folds anew"


@dataclass(frozen=True)
class Prices:
    """What one arm's stages took on average, in device hours, and how many there are. NaN: not known."""

    pretraining: float
    finetuning: float
    test: float
    """Of one fine-tuning, on all test patients."""
    device: str
    trained: Sequence[int]
    """Its fine-tunings by pre-training; where it has none, all of them."""
    is_pretrained: bool
    num_folds: int = 1
    """Of a cross-validation: a training is one in each."""

    def more(self, num: int, each: int, patients: int, patients_now: int) -> float:
        """What `num` pre-trainings with `each` fine-tunings, tested on `patients`, cost beyond what there is."""
        if self.is_pretrained:
            kept = sorted(self.trained, reverse=True)[:num]
            pretraining, reused = num - len(kept), sum(min(each, count) for count in kept)
        else:
            pretraining, reused = 0, min(num * each, sum(self.trained))
        new = num * each - reused
        tests = new * patients + reused * max(patients - patients_now, 0)
        cost = new * self.finetuning + tests * self.test / patients_now
        return float(cost + (pretraining * self.pretraining if pretraining else 0.0))


UNKNOWN = Prices(np.nan, np.nan, np.nan, "", (), True)


@dataclass(frozen=True)
class Question:
    """A difference that is planned for, and from where."""

    planned: float
    wanted: float
    """The power."""
    now: Design
    components: Components
    cautious: Components
    is_one_pretraining: bool
    are_identified: bool
    """Whether pre-trainings and fine-tunings can be estimated each, or are stated."""
    prices: tuple[Prices, Prices]
    """Of the arm and the baseline."""
    looks: Looks | None = None
    """Where seeds are added until it is decided: seeds are then the numbers of the planned looks."""

    def shows(self, design: Design, cautious: bool) -> bool:
        components = self.cautious if cautious else self.components
        return power(self.planned, layout(components, design), level_at(self.looks, design.pretrainings)) >= self.wanted

    def hours(self, design: Design) -> float:
        """What a design costs beyond what there is; a baseline has as many fine-tunings as the arm."""
        num, each, patients = design.pretrainings, design.finetunings, design.patients
        return sum(price.more(num, each, patients, self.now.patients) for price in self.prices)

    @property
    def device(self) -> str:
        return " and ".join(sorted({price.device for price in self.prices} - {""}))


def needs(question: Question) -> list[Need]:
    """One row for each thing that may be more of; then both trainings and patients, where neither alone is enough."""
    now, start = question.now, max(question.now.pretrainings, SEEDS)
    each = 1 if question.is_one_pretraining else now.finetunings
    pretrained = question.components.difference.is_pretrained

    def trainings(num: int) -> Design:
        return Design(num, each, now.patients)

    name = PRETRAININGS if each == 1 else f"pre-trainings, {each} fine-tunings each"
    found = [of_seeds(question, name if pretrained else SEEDS_ALONE, trainings)]
    if question.is_one_pretraining:
        found += [unable(FINETUNINGS, now.finetunings, ONE_PRETRAINING)]
        found += [unable(PATIENTS, now.patients, ONE_PRETRAINING)]
    else:
        if pretrained:
            found.append(of_finetunings(question, start))
        patients = row(question, PATIENTS, now.patients, now.patients, MOST_PATIENTS,
                       lambda num: Design(start, now.finetunings, num))  # fmt: skip
        found.append(anew(question, patients))
    if found[0].needed is None and found[-1].needed is None:
        found += together(question, each)
    return found


def of_finetunings(question: Question, start: int) -> Need:
    now = question.now
    if question.looks:
        return unable(FINETUNINGS, now.finetunings, ONE_EACH)
    if not question.are_identified:
        return unable(FINETUNINGS, now.finetunings, CONFOUNDED)
    return row(question, FINETUNINGS, now.finetunings, now.finetunings, MOST_TRAININGS,
               lambda num: Design(start, num, now.patients))  # fmt: skip


def of_seeds(question: Question, what: str, design: Callable[[int], Design]) -> Need:
    """How many seeds. Where they are added until it is decided, it is the first planned look whose test shows it."""
    now = question.now.pretrainings
    if question.looks is None:
        return row(question, what, now, SEEDS, MOST_TRAININGS, design)
    planned = question.looks.planned
    needed, cautious = (
        next((num for num in planned if question.shows(design(num), care)), None) for care in (False, True)
    )
    hours = np.nan if needed is None else question.hours(design(needed))
    return Need(what, now, needed, cautious, planned[-1], None, hours, question.device, AT_LOOKS)


def anew(question: Question, need: Need) -> Need:
    """A need of more patients: where looks were planned, another look at the same seeds is none of them; of a
    cross-validation all patients are dealt and all networks trained anew."""
    if not need.needed or (need.patients or need.needed) <= question.now.patients:
        return need
    notes = [ANEW] * (question.looks is not None) + [DEALT] * any(price.num_folds > 1 for price in question.prices)
    return replace(need, hours=np.nan, note="; ".join(notes)) if notes else need


def unable(what: str, now: int, note: str) -> Need:
    return Need(what, now, None, None, 0, None, np.nan, "", note)


def row(question: Question, what: str, now: int, first: int, most: int, design: Callable[[int], Design]) -> Need:
    """How many of one thing, from `first` to `most`. design: what a number of it is."""
    needed = fewest(lambda num: question.shows(design(num), False), first, most)
    cautious = fewest(lambda num: question.shows(design(num), True), first, most)
    hours = np.nan if needed is None else question.hours(design(needed))
    return Need(what, now, needed, cautious, most, None, hours, question.device, "")


def together(question: Question, each: int) -> list[Need]:
    """Pre-trainings with twice, three times, … the patients: of those that are enough, the least growth of both."""
    rows = []
    for times in (2, 3, 4, 6, 8, 12, 16, 32):
        patients = times * question.now.patients
        found = of_seeds(question, TOGETHER, lambda num, patients=patients: Design(num, each, patients))
        if found.needed is not None:
            rows.append((found.needed * times, anew(question, replace(found, patients=patients))))
    return [min(rows, key=lambda each: each[0])[1]] if rows else []


# ---- labels

LABELS = "labels, times those used"
MOST_LABELS = 10


def of_labels(
    smallest: float, difference: Callable[[float], float], sign: float, finetuning: float, device: str
) -> Need:
    """How many times the labels make the difference, as forecast, one that this design shows.

    smallest: that it shows; difference: the forecast at a multiple of the labels; sign: of the measured one;
    finetuning: the hours that all fine-tunings of both arms took, which grow with the labels.
    """
    multiples = range(1, MOST_LABELS + 1)
    needed = next((times for times in multiples if sign * difference(float(times)) >= smallest), None)
    hours = np.nan if needed is None else finetuning * needed * (needed > 1)
    return Need(LABELS, 1, needed, None, MOST_LABELS, None, float(hours), device, "by the forecast")
