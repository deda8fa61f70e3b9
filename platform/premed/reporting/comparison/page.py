"""A comparison as one HTML page, templates/comparison.html.jinja: the answer and the design in a sentence
each, then tables and charts, then what it cost, then cases and pictures, runs, and where all of it comes from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from premed.paths import writing
from premed.reporting import charts
from premed.reporting.comparison import artifacts
from premed.reporting.comparison.artifacts import CaseScores, LossCurve, Picture
from premed.reporting.comparison.cases import CaseList, CaseRow, case_lists, extremes
from premed.reporting.comparison.design import (
    Records,
    design_sentence,
    pretrained_on,
    pretrainings,
    provenance,
    stage_records,
    trained_on,
)
from premed.reporting.comparison.methods import methods
from premed.reporting.comparison.result import ComparisonResult, TaskResult
from premed.reporting.comparison.scores import joined
from premed.reporting.comparison.sentences import evidence
from premed.reporting.comparison.tables import (
    CalibrationView,
    ClassTable,
    ScoresView,
    Section,
    calibration_table,
    class_tables,
    reliability_chart,
    score_table,
)
from premed.reporting.comparison.terminal import cost_columns, cost_row, count_notes
from premed.reporting.formatting import NAMES, listed
from premed.reporting.html import render
from premed.tracking.run_store import RunStore

SMALL = 2.4  # inches: the height of a chart beside that of the loss
MEASURED = {
    "rankme": (
        "RankMe during pre-training",
        "RankMe",
        "The effective rank of the encoder's features of val (Garrido 2023): near 1 they have collapsed.",
    )
}
"""Title, axis and caption of what validations measure without labels."""


def write(result: ComparisonResult, store: RunStore, path: Path, ui: str | None) -> None:
    """Writes the page of a comparison of `store`. ui: MLflow's UI; None: the server that the store is on, if any."""
    if ui is None and store.uri.startswith("http"):
        parts = urlsplit(store.uri)
        ui = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # nobody's password goes into a page
    text = page(result, store, ui)
    with writing(f"--html {path}"):
        path.write_text(text, encoding="utf-8")


def page(result: ComparisonResult, store: RunStore, ui: str | None = None, written: datetime | None = None) -> str:
    """The page. written: the time that stands on it; None: now."""
    names = listed([task.task for task in result.tasks])
    records = stage_records(store, (arm for task in result.tasks for block in task.blocks for arm in block.rows))
    return render(
        "comparison.html.jinja",
        title=f"premed compare: {names}",
        names=names,
        notes=result.notes,
        tasks=[task_view(task, store, records, ui) for task in result.tasks],
        provenance=provenance(result.tasks, records, written or datetime.now(UTC), version("premed")),
    )


@dataclass(frozen=True)
class BlockView:
    """What is shown of one head's arms on one task, in this order; a part without content is empty."""

    section: Section
    records: Records
    evidence: Sequence[str]
    design: str
    sizes: Mapping[float, str]
    """Of the training sets, by label fraction, where they are known."""
    scores: Sequence[ScoresView]
    fractions: charts.Chart | None
    strips: charts.Chart | None
    classes: Sequence[ClassTable]
    cost_columns: Sequence[str]
    cost_rows: Sequence[Sequence[str]]
    count_notes: Sequence[str]
    case_quantity: str
    are_cases: bool
    """Whether that number is a case's own."""
    extremes: Sequence[CaseRow]
    cases: Sequence[CaseList]
    calibration: CalibrationView | None
    reliability: charts.Chart | None
    pretraining: Sequence[charts.Chart]
    pictures: Sequence[tuple[str, Sequence[Picture]]]
    methods: str


class TaskView(NamedTuple):
    name: str
    notes: Sequence[str]
    blocks: Sequence[BlockView]


def task_view(task: TaskResult, store: RunStore, records: Records, ui: str | None) -> TaskView:
    return TaskView(
        task.task, task.notes, [block_view(Section(task, block, ui), store, records) for block in task.blocks]
    )


def block_view(section: Section, store: RunStore, records: Records) -> BlockView:
    task, block, arms, part, largest = section.task, section.block, section.arms, section.task.part, section.largest
    tables = artifacts.case_tables(store, part, largest)
    scores, counts = artifacts.case_scores(tables), artifacts.class_counts(joined(tables[largest[0].label][0]))
    exclusive = artifacts.case_scores(tables, exclusive=True) if "accuracy" in arms[0].scores else scores
    of_pretraining, of_answers = artifacts.pictures(store, part, largest)
    names = sorted(arms[0].scores, key=lambda name: name != section.score)  # the task's own first
    sizes = {fraction: trained_on(section.at(fraction), records) for fraction in section.fractions}
    return BlockView(
        section=section,
        records=records,
        evidence=evidence(task, block, pretrainings(arms, records)),
        design=design_sentence(task, block, records),
        sizes={fraction: size for fraction, size in sizes.items() if size},
        scores=[score_table(section, name) for name in names],
        fractions=fractions(section, sizes),
        strips=strips(section, scores),
        classes=class_tables(section, counts),
        cost_columns=[*cost_columns(arms), "pre-trained on"],
        count_notes=count_notes(arms),
        cost_rows=[[*cost_row(arm), pretrained_on(arm, records) or "–"] for arm in arms],
        case_quantity=exclusive.quantity,
        are_cases=scores.are_cases,
        extremes=extremes(section, exclusive, of_answers),
        cases=case_lists(section, exclusive, of_answers),
        calibration=calibration_table(section),
        reliability=reliability_chart(section),
        pretraining=pretraining(section, artifacts.loss_curves(store, arms)),
        pictures=[("What pre-training sees", of_pretraining), ("Predictions", of_answers)],
        methods=methods(task, block, records, store),
    )


# ---- charts


def fractions(section: Section, sizes: Mapping[float, str]) -> charts.Chart | None:
    """The score against the label fraction, if there are several. sizes: of the training sets."""
    if len(section.fractions) < 2:
        return None
    lines = []
    for label, colour in section.colours.items():
        arms = [arm for arm in section.arms if arm.label == label]
        scores = [arm.scores[section.score] for arm in arms]
        low, high = ([score.interval[i] for score in scores] for i in (0, 1))
        x, values = [arm.label_fraction for arm in arms], [score.mean for score in scores]
        lines.append(charts.Line(label, colour, x, values, low, high))
    if not any(math.isfinite(value) for line in lines for value in line.values):
        return None
    caption = "Means over seeds; the bands are the intervals of the table above."
    return charts.Chart(
        f"{section.title} against the share of labels", caption, charts.label_fractions(lines, section.title, sizes)
    )


def strips(section: Section, scores: CaseScores) -> charts.Chart | None:
    """Every arm's numbers by case or, where a case has no score of its own, by class; paired with the baseline."""
    names, values, unit, quantity = scores.names, scores.values, "case", "Dice"
    if not scores.are_cases:
        classes = {arm.label: arm.scores["mauc"].classes for arm in section.largest}
        names, unit, quantity = list(next(iter(classes.values()))), "class", "AUC"
        values = {label: [each[name].mean for name in names] for label, each in classes.items()}
    first = section.baseline or section.largest[0].label
    places = [i for i in range(len(names)) if any(math.isfinite(each[i]) for each in values.values())]
    places.sort(key=lambda i: (math.isnan(values[first][i]), values[first][i]))
    if len(places) < 2:
        return None
    rows = [charts.Strip(label, section.colours[label], [each[i] for i in places]) for label, each in values.items()]
    baseline = next((row for row in rows if row.name == section.baseline and len(rows) > 1), None)
    caption = f"Each {unit} has its place from left to right, in the order of {first}; means over seeds."
    if baseline:
        many = len(places) > charts.MANY
        caption += f" The dark line is {first}." if many else f" Grey is {first}, and a stem leads from there."
    others = [row for row in rows if row is not baseline]
    svg = charts.strip_plots(others, baseline, [names[i] for i in places], f"each {unit}, ordered by {first}", quantity)
    title = f"{quantity} by {unit}" + (f", paired with {first}" if baseline else "")
    return charts.Chart(title, caption, svg)


def pretraining(section: Section, curves: Sequence[LossCurve]) -> list[charts.Chart]:
    """Validation losses: as shares of the gate if there is one, else as they are, a chart for each strategy."""
    shown, lines = [], []
    for each in curves:
        if each.gate:
            shares = [loss / each.gate for loss in each.losses]
            name = f"{each.label}: {100 * shares[-1]:.0f} %"
            lines.append(charts.Line(name, section.colours[each.label], each.steps, shares))
    if lines:
        gates = listed({f"{curve.gate:.3g}" for curve in curves if curve.gate})
        caption = f"Validation loss, as a share of what predicting the mean patch of each place loses ({gates}), which "
        caption += "takes no network: the gate, 1.0 on the axis. An encoder that is not clearly below it has little to "
        caption += "transfer; "
        caption += "one that is below may still bring no gain."
        svg = charts.pretraining_curves(lines, "validation loss / gate", 1.0)
        shown.append(charts.Chart("Pre-training and its gate", caption, svg))
    for label in dict.fromkeys(curve.label for curve in curves if not curve.gate):
        colour = section.colours[label]
        lines = [charts.Line(label, colour, each.steps, each.losses) for each in curves if each.label == label]
        shown.append(
            charts.Chart(
                f"Pre-training of {label}", "Validation loss.", charts.pretraining_curves(lines, "validation loss")
            )
        )
    return [*shown, *measured(section, curves)]


def measured(section: Section, curves: Sequence[LossCurve]) -> Iterator[charts.Chart]:
    """A small chart for each score of the online probe, and one of RankMe, over the steps of the pre-trainings."""
    for name in sorted({name for curve in curves for name in curve.measures}):
        lines, ends = [], []
        for curve in (curve for curve in curves if name in curve.measures):
            steps, values = curve.measures[name]
            lines.append(charts.Line(f"{curve.label}: {values[-1]:.3g}", section.colours[curve.label], steps, values))
            if curve.ended:
                ends.append(f"{curve.label} ended at step {curve.ended[0]:,} of {curve.ended[1]:,}, by the probe.")
        title, ylabel, caption = MEASURED[name] if name in MEASURED else probe_words(name.removeprefix("probe_"))
        svg = charts.pretraining_curves(lines, ylabel, None, SMALL)
        yield charts.Chart(title, " ".join([caption, *dict.fromkeys(ends)]), svg)


def probe_words(score: str) -> tuple[str, str, str]:
    """Title, axis and caption of the chart of the probe's score."""
    name = NAMES.get(score, score)
    caption = (
        "At each validation: a linear model on the frozen encoder's features of few labelled images, scored on val. "
    )
    caption += "It says whether pre-training still helps; what fine-tuning reaches is in the tables above."
    return f"{name[:1].upper()}{name[1:]} of the probe during pre-training", f"probe, {name}", caption
