"""The cases of a comparison, by how much an arm's number for them differs from the baseline's."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from premed.reporting.comparison.artifacts import CaseScores, Picture, seed_order
from premed.reporting.comparison.result import ArmResult, RunResult
from premed.reporting.comparison.tables import Section
from premed.reporting.formatting import number

NUM_EXTREMES = 3  # largest gains and losses that are shown
NUM_LISTED = 20  # of each end that can be opened

Shown = Mapping[str, Sequence[tuple[str, Mapping[str, bytes]]]]
"""By the arm's label: (seed, PNGs by case) of each of its pictures."""


class CaseRow(NamedTuple):
    """A case of which an arm's number is far from the baseline's."""

    arm: ArmResult
    is_first: bool
    """Whether it is the arm's first row."""
    case: str
    baseline: float
    value: float
    pictures: Sequence[tuple[str, str, bytes]]
    """(label, seed, PNG) of the case, by the baseline and by the arm, where both have one."""


class ListedCase(NamedTuple):
    """A case that can be opened."""

    case: str
    baseline: float
    value: float
    by_run: Sequence[tuple[str, str]]
    """(label, the numbers of its runs in words) of the baseline and of the arm."""
    pictures: Sequence[tuple[str, str, bytes]]
    """(label, seed, PNG) by those of the two that have one."""


class CaseList(NamedTuple):
    """The cases at both ends of an arm's differences to the baseline, the largest gain first."""

    arm: ArmResult
    num_cases: int
    num_undefined: int
    """Cases without a number by one of the two."""
    gains: Sequence[ListedCase]
    """The upper end, then those between the ends that have a picture; or all cases where they are few."""
    num_between: int
    """Cases that are left out."""
    losses: Sequence[ListedCase]


def extremes(section: Section, scores: CaseScores, pictures: Sequence[Picture]) -> list[CaseRow]:
    """The cases with the largest gains and losses against the baseline. pictures: of the arms' predictions."""
    if not section.baseline:
        return []
    shown, rows = shown_cases(pictures), []
    for arm in section.largest:
        differences = scores.differences(arm.label, section.baseline)
        gains = [each for each in differences[:NUM_EXTREMES] if each[2] > each[1]]
        losses = [each for each in differences[-NUM_EXTREMES:] if each[2] < each[1]]
        for i, each in enumerate(gains + losses):
            pair = [of_case(shown, label, each[0])[:1] for label in (section.baseline, arm.label)]
            rows.append(CaseRow(arm, i == 0, *each, pictures=sum(pair, []) if all(pair) else []))
    return rows


def case_lists(section: Section, scores: CaseScores, pictures: Sequence[Picture]) -> list[CaseList]:
    """A list for each arm that has a baseline, at the largest share of the labels."""
    base = next((arm for arm in section.largest if arm.is_baseline), None)
    if base is None:
        return []
    shown, places, lists = shown_cases(pictures), {name: i for i, name in enumerate(scores.names)}, []

    def listed_case(arm: ArmResult, case: str, theirs: float, ours: float) -> ListedCase:
        by_run = [(each.label, runs_in_words(each, scores.by_run[each.label][:, places[case]])) for each in (base, arm)]
        found = [of_case(shown, each.label, case)[:1] for each in (base, arm)]
        return ListedCase(case, theirs, ours, by_run, sum(found, []))

    for arm in section.largest:
        if arm is base:
            continue
        every = scores.differences(arm.label, base.label)
        are_few = len(every) <= 2 * NUM_LISTED
        upper, lower = (every, []) if are_few else (every[:NUM_LISTED], every[-NUM_LISTED:])
        between = [] if are_few else every[NUM_LISTED:-NUM_LISTED]
        pictured = [
            each for each in between if any(of_case(shown, label, each[0]) for label in (base.label, arm.label))
        ]
        gains, losses = ([listed_case(arm, *each) for each in end] for end in ([*upper, *pictured], lower))
        undefined, left_out = len(scores.names) - len(every), len(between) - len(pictured)
        lists.append(CaseList(arm, len(every), undefined, gains, left_out, losses))
    return [each for each in lists if each.num_cases]


def runs_in_words(arm: ArmResult, values: np.ndarray) -> str:
    """`seed 0: 0.417, seed 1: 0.390`, or `pre-training 0, seed 0: …` where both vary."""
    pairs = sorted(zip(arm.runs, values, strict=True), key=lambda pair: seed_order(pair[0]))
    return "; ".join(f"{seed_words(run)}: {number(float(value))}" for run, value in pairs)


def seed_words(run: RunResult) -> str:
    before = "" if run.pretrain_seed is None else f"pre-training {run.pretrain_seed}, "
    return f"{before}seed {run.seed}"


# ---- pictures of cases


def shown_cases(pictures: Sequence[Picture]) -> Shown:
    shown: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
    for picture in pictures:
        shown.setdefault(picture.label, []).append((picture.seed, picture.cases()))
    return shown


def of_case(shown: Shown, label: str, name: str) -> list[tuple[str, str, bytes]]:
    """(label, seed, PNG) of a row's case by an arm."""
    some = shown.get(label, ())
    return [(label, seed, cases[case]) for seed, cases in some if (case := case_of(name, cases))]


def case_of(name: str, cases: Collection[str]) -> str | None:
    """The case, among those, that a row is called after: `case`, or `case, finding`."""
    named = [case for case in cases if name == case or name.startswith(f"{case}, ")]
    return max(named, key=len, default=None)
