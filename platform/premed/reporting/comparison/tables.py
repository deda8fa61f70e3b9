"""The contents of the tables of a comparison's page, and the colours of its arms in tables and charts."""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from markupsafe import Markup

from premed.data.figures import COLOURS, FAINT, LINES
from premed.reporting import charts
from premed.reporting.comparison.artifacts import CaseScores, Picture
from premed.reporting.comparison.result import ArmResult, BlockResult, ClassEstimate, RunResult, TaskResult
from premed.reporting.formatting import NAMES, mean_std, percent, span

NUM_EXTREMES = 3  # largest gains and losses that are shown


class Section:
    """The arms with one head on one task. ui: the address of MLflow's UI, for links; None where it is not known."""

    def __init__(self, task: TaskResult, block: BlockResult, ui: str | None):
        self.task, self.block, self.ui = task, block, ui and ui.rstrip("/")
        self.arms = block.rows
        self.score = task.score
        self.title = NAMES.get(self.score, self.score)
        self.largest = block.largest_fraction
        self.baseline = next((arm.label for arm in self.largest if arm.is_baseline), None)
        self.num_runs = sum(len(arm.runs) for arm in self.arms)

    @cached_property
    def colours(self) -> dict[str, str]:
        """By label; the baseline is grey."""
        bases = [arm.label for arm in self.arms if arm.is_baseline]
        others = dict.fromkeys(arm.label for arm in self.arms if arm.label not in bases)
        return {label: COLOURS[LINES[i % len(LINES)]] for i, label in enumerate(others)} | dict.fromkeys(bases, FAINT)

    @cached_property
    def fractions(self) -> list[float]:
        """The label fractions, the largest first."""
        return sorted({arm.label_fraction for arm in self.arms}, reverse=True)

    def at(self, fraction: float) -> list[ArmResult]:
        return [arm for arm in self.arms if arm.label_fraction == fraction]

    def is_first(self, arm: ArmResult) -> bool:
        """Whether it is the first arm of its label fraction."""
        return arm is self.at(arm.label_fraction)[0]

    def address(self, run: RunResult, run_id: str) -> str | None:
        """The page in MLflow's UI of a run, or of one of its stages; None where the UI's address is not known."""
        return self.ui and f"{self.ui}/#/experiments/{run.experiment_id}/runs/{run_id}"


# ---- scores


class ScoreRow(NamedTuple):
    """An arm, and the bars of its interval and of its difference's."""

    arm: ArmResult
    bar: Markup
    difference_bar: Markup


class ScoresView(NamedTuple):
    """One score of all arms."""

    name: str
    title: str
    note: str
    """After the title: which way is better, if that is not up."""
    is_main: bool
    """The task's own score, which has p-values and verdicts."""
    axis: Markup
    """Of the intervals' bars; empty if nothing is known."""
    has_differences: bool
    difference_axis: Markup
    """Of the differences' bars."""
    rows: Sequence[ScoreRow]
    has_constant: bool
    """Whether the score of a constant answer is in the bars."""


def score_table(section: Section, name: str) -> ScoresView:
    is_main, arms = name == section.score, section.arms
    scores = [arm.scores[name] for arm in arms]
    constants = [arm.constant for arm in arms] if is_main else []
    scale = charts.bar_span([x for score in scores for x in (score.mean, *score.interval)], constants)
    differences = [score.difference for score in scores if score.difference]
    reach = charts.bar_span(
        [x for each in differences for x in (each.value, *each.interval)], [0.0] if differences else []
    )
    rows = []
    for arm, score in zip(arms, scores, strict=True):
        colour, bar, difference_bar = section.colours[arm.label], Markup(), Markup()
        if scale:
            bar = charts.interval_bar(score.mean, score.interval, scale, colour, [arm.constant] if is_main else [])
        if reach and (difference := score.difference):
            difference_bar = charts.interval_bar(difference.value, difference.interval, reach, colour, [0.0])
        rows.append(ScoreRow(arm, bar, difference_bar))
    return ScoresView(
        name=name,
        title=NAMES.get(name, name),
        note="" if scores[0].higher_is_better else ": lower is better",
        is_main=is_main,
        axis=charts.bar_axis(scale) if scale else Markup(),
        has_differences=bool(differences),
        difference_axis=charts.bar_axis(reach, signed=True) if reach else Markup(),
        rows=rows,
        has_constant=any(map(math.isfinite, constants)),
    )


# ---- classes


class ClassCell(NamedTuple):
    """A class's mean, deviation and interval, and whether its difference to the baseline is clear."""

    text: str
    interval: str
    mark: str
    """▲ or ▼, above or below the baseline; "" where the difference is not clear."""
    direction: str
    """up: better than the baseline; down: worse."""


class ClassTable(NamedTuple):
    """The classes' means at one label fraction."""

    title: str
    is_open: bool
    arms: Sequence[ArmResult]
    rows: Sequence[tuple[str, tuple[int, int], Sequence[ClassCell]]]
    """A class, its numbers of cases and of positive ones, and a cell for each arm."""


def class_tables(section: Section, counts: Mapping[str, tuple[int, int]]) -> list[ClassTable]:
    """A table for each label fraction; that of the largest is open. None where there is one class.

    counts: for each class, how many cases there are of which it is known, and how many have it.
    """
    names = list(section.largest[0].scores[section.score].classes)
    if len(names) < 2:
        return []
    tables = []
    for fraction in section.fractions:
        arms = section.at(fraction)
        scores = [arm.scores[section.score] for arm in arms]
        rows = [
            (name, counts[name], [class_cell(each.classes[name], each.higher_is_better) for each in scores])
            for name in names
        ]
        tables.append(ClassTable(f"{percent(fraction)} of the labels", arms[0] in section.largest, arms, rows))
    return tables


def class_cell(estimate: ClassEstimate, higher_is_better: bool) -> ClassCell:
    text, interval = mean_std(estimate.mean, estimate.std), span(estimate.interval)
    if not (estimate.difference and estimate.is_clear):
        return ClassCell(text, interval, "", "")
    is_above = estimate.difference.value > 0
    return ClassCell(text, interval, "▲" if is_above else "▼", "up" if is_above == higher_is_better else "down")


# ---- cases


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


def extremes(section: Section, scores: CaseScores, pictures: Sequence[Picture]) -> list[CaseRow]:
    """The cases with the largest gains and losses against the baseline. pictures: of the arms' predictions."""
    if not section.baseline:
        return []
    shown: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
    for picture in pictures:
        shown.setdefault(picture.label, []).append((picture.seed, picture.cases()))

    def of_case(label: str, name: str) -> list[tuple[str, str, bytes]]:
        some = [(label, seed, cases) for seed, cases in shown.get(label, ())]
        return [(label, seed, cases[case]) for label, seed, cases in some if (case := case_of(name, cases))]

    rows = []
    for arm in section.largest:
        differences = scores.differences(arm.label, section.baseline)
        gains = [each for each in differences[:NUM_EXTREMES] if each[2] > each[1]]
        losses = [each for each in differences[-NUM_EXTREMES:] if each[2] < each[1]]
        for i, each in enumerate(gains + losses):
            pair = [of_case(label, each[0])[:1] for label in (section.baseline, arm.label)]
            rows.append(CaseRow(arm, i == 0, *each, pictures=sum(pair, []) if all(pair) else []))
    return rows


def case_of(name: str, cases: Collection[str]) -> str | None:
    """The case, among those, that a row is called after: `case`, or `case, finding`."""
    named = [case for case in cases if name == case or name.startswith(f"{case}, ")]
    return max(named, key=len, default=None)
