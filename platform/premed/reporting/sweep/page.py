"""A sweep's result as one HTML page, templates/sweep.html.jinja; this module makes its tables and charts."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from premed.data.figures import FAINT
from premed.paths import writing
from premed.reporting import charts, html
from premed.reporting.sweep import charts as sweep_charts
from premed.reporting.sweep import summary
from premed.reporting.sweep.analysis import (
    ScoreGrid,
    field_pairs,
    finished,
    learning_curve,
    reuse_savings,
    score_grid,
    slice_plot,
    stage_kinds,
    trial_cost,
    trial_score,
)
from premed.reporting.sweep.charts import BEST, DONE, LearningCurve, ParetoPlot
from premed.reporting.sweep.fields import by_importance, field_paths, short_names, varied_fields
from premed.reporting.sweep.result import SweepResult, TrialResult

MOST_PANELS = 9  # slice plots of a metric
MOST_COSTS = 24  # trials; the costs of more are collapsed


class TrialRow(NamedTuple):
    trial: TrialResult
    is_best: bool
    colour: str
    setting: Sequence[str]
    scores: Sequence[tuple[str, Markup]]
    """By metric: mean ± std, and its bar."""
    seconds: float


class TrialTable(NamedTuple):
    fields: Sequence[str]
    metrics: Sequence[tuple[str, Sequence[str]]]
    """A label, and what the two ends of its column of bars stand for."""
    rows: Sequence[TrialRow]
    with_seconds: bool
    constant: str
    """The fields that are the same in all trials, and their values."""


class HeatCell(NamedTuple):
    mean: str
    note: str
    """The standard deviation, and of how many numbers where that varies."""
    background: str
    ink: str
    is_best: bool


class HeatMap(NamedTuple):
    """A table of colours. across: the field of the columns, empty if there is one field alone."""

    down: str
    across: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[HeatCell | None]]]
    """A label, and a cell for each column; None where no trial is finished."""


class CostRow(NamedTuple):
    number: int
    setting: str
    stages: Sequence[tuple[str, bool]]
    """By kind of stage: seconds, and whether it was there already."""
    total: float
    memory: str


class CostTable(NamedTuple):
    title: str
    remarks: Sequence[str]
    kinds: Sequence[str]
    rows: Sequence[CostRow]
    with_reused: bool
    is_open: bool


def write(result: SweepResult, file: Path) -> None:
    """Writes the page. Raises UserError if the file cannot be written."""
    text = render(result)
    with writing(file):
        Path(file).write_text(text, encoding="utf-8")


def render(result: SweepResult) -> str:
    """The page as HTML."""
    metrics = range(len(result.metrics))
    maps = [(summary.metric_label(result, i), result.modes[i], heat_maps(result, i)) for i in metrics]
    slices = [slice_chart(result, i) for i in metrics]
    return html.render(
        "sweep.html.jinja",
        title=f"premed sweep: {result.name}",
        result=result,
        headline=summary.headline(result),
        conclusion=summary.conclusion(result),
        command=summary.best_command(result) if result.best is not None else "",
        remarks=[*summary.front_lines(result), *summary.caveats(result)],
        pareto=pareto_chart(result),
        trials=trial_table(result),
        colours={"best": BEST, "done": DONE, "other": FAINT},
        maps_by_metric=[each for each in maps if each[-1]],
        charts=[chart for chart in [*slices, importance_chart(result), curve_chart(result)] if chart],
        costs=cost_table(result),
        failures=[f"Trial {number}: {reason}" for number, reason in summary.failures(result)],
        stage_label=summary.stage_label,
    )


# ---- tables


def trial_table(result: SweepResult) -> TrialTable:
    """All trials, the best first."""
    metrics, names = range(len(result.metrics)), short_names(field_paths(result))
    scores = [[trial_score(trial, i) for trial in result.trials] for i in metrics]
    scales = [
        charts.bar_span([x for s in column for x in (s.mean, s.mean - s.std, s.mean + s.std)]) for column in scores
    ]
    return TrialTable(
        fields=[names[path] for path in varied_fields(result)],
        metrics=[
            (summary.metric_label(result, i), [summary.format_number(result, end, i) for end in scales[i] or ()])
            for i in metrics
        ],
        rows=[
            trial_row(result, trial, [scale or (0, 1) for scale in scales]) for trial in summary.sorted_trials(result)
        ],
        with_seconds="seconds" not in result.metrics,
        constant=summary.constant_setting(result),
    )


def trial_row(result: SweepResult, trial: TrialResult, scales: Sequence[tuple[float, float]]) -> TrialRow:
    """scales: by metric, the ends of its column of bars."""
    is_best = trial.number in result.front
    colour = BEST if is_best else DONE if trial.state == "done" else FAINT
    scores = []
    for i, scale in enumerate(scales):
        score = trial_score(trial, i)
        bar = charts.interval_bar(score.mean, (score.mean - score.std, score.mean + score.std), scale, colour)
        scores.append((summary.format_score(result, score, i), bar))
    setting = [summary.field_text(result, trial, path) for path in varied_fields(result)]
    return TrialRow(trial, is_best, colour, setting, scores, trial_cost(trial).total)


def heat_maps(result: SweepResult, metric: int) -> list[HeatMap]:
    """A score over each pair of the most important fields; none of a cost."""
    if summary.is_cost(result, metric) or not finished(result, metric):
        return []
    return [heat_map(result, score_grid(result, *pair, metric), metric) for pair in field_pairs(result)]


def heat_map(result: SweepResult, grid: ScoreGrid, metric: int) -> HeatMap:
    names, relative = short_names(field_paths(result)), grid.relative(result.modes[metric]).tolist()
    rows = []
    for label, cells, goodnesses in zip(grid.rows.labels, grid.cells, relative, strict=True):
        row: list[HeatCell | None] = []
        for cell, goodness in zip(cells, goodnesses, strict=True):
            if not math.isfinite(goodness):
                row.append(None)
                continue
            mean, _, std = summary.format_score(result, cell, metric).partition(" ")
            note = ", ".join(filter(None, [std, "" if grid.is_balanced else f"n = {cell.num}"]))
            row.append(HeatCell(mean, note, *summary.heat_colours(goodness), goodness == 1))
        rows.append((label, row))
    across = names[grid.columns.field] if grid.columns.field else ""
    return HeatMap(names[grid.rows.field], across, summary.averaged_over(result, grid), grid.columns.labels, rows)


def cost_table(result: SweepResult) -> CostTable | None:
    """What each trial needed, and what reuse saved; None if no stage is finished."""
    rows = [cost_row(result, trial) for trial in summary.sorted_trials(result) if trial.stages]
    if not rows:
        return None
    return CostTable(
        title="What it cost, and what reuse saved" if reuse_savings(result).saved else "What it cost",
        remarks=summary.reuse_lines(result),
        kinds=[summary.stage_label(kind) for kind in stage_kinds(result)],
        rows=rows,
        with_reused=any(is_reused for row in rows for _, is_reused in row.stages),
        is_open=len(rows) <= MOST_COSTS,
    )


def cost_row(result: SweepResult, trial: TrialResult) -> CostRow:
    cost = trial_cost(trial)
    stages = [
        (f"{cost.seconds[kind]:.0f}" if kind in cost.seconds else "–", kind in cost.reused)
        for kind in stage_kinds(result)
    ]
    memory = f"{cost.peak_memory_mb / 1024:.1f} GB" if math.isfinite(cost.peak_memory_mb) else "–"
    return CostRow(trial.number, summary.format_setting(result, trial), stages, cost.total, memory)


# ---- charts


def slice_chart(result: SweepResult, metric: int) -> charts.Chart | None:
    """A metric against each varied field."""
    plots = [slice_plot(result, path, metric) for path in by_importance(result)[:MOST_PANELS]]
    plots = [plot for plot in plots if plot.points]
    if not plots:
        return None
    caption = "A point per trial" + "; the most important field comes first" * bool(result.importances)
    caption += ". Grey: stopped early." if any(point.is_stopped for plot in plots for point in plot.points) else "."
    caption += " Lines go through the means of those that are done." * any(p.scale == "categorical" for p in plots)
    svg = sweep_charts.slice_plots(
        plots, short_names(field_paths(result)), summary.metric_label(result, metric), result.front
    )
    return charts.Chart(f"{summary.metric_label(result, metric)} against each field", caption, svg)


def importance_chart(result: SweepResult) -> charts.Chart | None:
    if not result.importances:
        return None
    trials = f"{len(finished(result))} finished trials"
    caption = f"Optuna's parameter importances, in shares of 1, from {trials}. Few trials make them rough."
    svg = sweep_charts.importances(summary.importance_shares(result))
    return charts.Chart(f"What {summary.metric_label(result)} depends on most", caption, svg)


def curve_chart(result: SweepResult) -> charts.Chart | None:
    """The best score so far over validations."""
    curves = []
    for trial in result.trials:
        if known := [(x, y) for x, y in learning_curve(trial) if math.isfinite(y)]:
            x, values = zip(*known, strict=True)
            curves.append(LearningCurve(trial.number, trial.state, x, values))
    if not curves:
        return None
    states = {curve.state for curve in curves}
    caption = "The best so far of each trial's first seed."
    caption += " Grey: stopped or failed." * bool(states & {"stopped", "failed"})
    caption += " Dashed: still running." * ("running" in states)
    svg = sweep_charts.learning_curves(curves, result.front, summary.metric_label(result))
    return charts.Chart("Learning curves", caption, svg)


def pareto_chart(result: SweepResult) -> charts.Chart | None:
    """The first metric over each of the others."""
    plots = list(_pareto_plots(result))
    if not plots:
        return None
    caption = (
        "Red, with their numbers: the Pareto front. No other trial is better in one metric and no worse in the others."
    )
    svg = sweep_charts.pareto_plots(plots, summary.metric_label(result), result.front)
    return charts.Chart(
        f"{summary.metric_label(result)} against {', '.join(plot.name for plot in plots)}", caption, svg
    )


def _pareto_plots(result: SweepResult) -> Iterator[ParetoPlot]:
    for i in range(1, len(result.metrics)):
        points = [(trial.number, trial_score(trial, i).mean, trial_score(trial).mean) for trial in finished(result)]
        if known := [point for point in points if math.isfinite(point[1])]:
            numbers, x, y = zip(*known, strict=True)
            yield ParetoPlot(summary.metric_label(result, i), result.modes[i], x, y, numbers)
