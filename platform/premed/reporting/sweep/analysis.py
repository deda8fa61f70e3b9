"""The analysis of a sweep's result: scores by field and as a grid, costs, what reusing stages saved, the ranking.

Only finished trials count in a mean: a trial that was stopped has trained fewer steps, and would make its setting look
worse than it is. Unknown numbers are NaN.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from premed.reporting.sweep.fields import (
    FieldAxis,
    Scale,
    as_finite,
    by_importance,
    field_axis,
    field_paths,
    field_scale,
    varied_fields,
)
from premed.reporting.sweep.result import StageResult, SweepResult, TrialResult

UNSCORED = ("waiting", "running", "failed")  # states in which a trial has no score to show
STAGE_ORDER = ("import", "pretrain", "trunk", "cooldown", "finetune")


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1) of `num` numbers; NaN if there are too few."""

    mean: float
    std: float
    num: int


class ScoreGrid(NamedTuple):
    """A metric over the values of two fields."""

    rows: FieldAxis
    columns: FieldAxis
    cells: Sequence[Sequence[Spread]]
    pooled: Sequence[str]
    """Paths of the other varied fields: a cell averages over their values."""
    num_seeds: int
    """The largest number of seeds of any trial."""

    def relative(self, mode: str) -> np.ndarray:
        """Each cell's mean from 0 (the worst cell) to 1 (the best), [rows, columns]; NaN in an empty cell."""
        means = np.array([[cell.mean for cell in row] for row in self.cells], float) * (1 if mode == "max" else -1)
        if not np.isfinite(means).any():
            return means
        low, high = np.nanmin(means), np.nanmax(means)
        return (means - low) / (high - low) if high > low else means * 0 + 1.0

    @property
    def is_balanced(self) -> bool:
        """True if all cells that are not empty average over equally many numbers."""
        return len({cell.num for row in self.cells for cell in row if cell.num}) < 2


class Point(NamedTuple):
    """A trial's score at its value of a field. x: the value, or the index of its category."""

    number: int
    x: float
    score: float
    is_stopped: bool


class SlicePlot(NamedTuple):
    """A metric against one field, as Optuna's slice plot."""

    field: str
    scale: Scale
    points: Sequence[Point]
    labels: Sequence[str]
    """Of the categories; empty on a scale of numbers."""
    means: Sequence[float]
    """By category, over finished trials."""


class TrialCost(NamedTuple):
    """What a trial's stages cost, whichever trial trained them."""

    number: int
    seconds: Mapping[str, float]
    """By kind of stage."""
    reused: frozenset[str]
    """Kinds of stages that existed already."""
    peak_memory_mb: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class ReuseSavings(NamedTuple):
    """Seconds and numbers of stages, by kind: each counted once, and counted for every trial that needed it."""

    shared: Mapping[str, float]
    unshared: Mapping[str, float]
    num_shared: Mapping[str, int]
    num_unshared: Mapping[str, int]

    @property
    def saved(self) -> float:
        return sum(self.unshared.values()) - sum(self.shared.values())

    @property
    def fraction(self) -> float:
        """Of the seconds without sharing; NaN if these are 0."""
        return self.saved / sum(self.unshared.values()) if sum(self.unshared.values()) > 0 else math.nan


# ---- scores


def spread(values: Iterable[float | None]) -> Spread:
    known = [value for value in map(as_finite, values) if math.isfinite(value)]
    std = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
    return Spread(float(np.mean(known)) if known else math.nan, std, len(known))


def seed_scores(trial: TrialResult, metric: int = 0) -> dict[str, float]:
    """A trial's values of a metric by seed; seeds without a value are left out."""
    scores = {seed: _value(values, metric) for seed, values in trial.by_seed.items()}
    return {seed: score for seed, score in scores.items() if math.isfinite(score)}


def trial_score(trial: TrialResult, metric: int = 0) -> Spread:
    """A trial's value of a metric, with the standard deviation over its seeds.

    That of a stopped trial is the mean over the seeds it had, or, of the first metric, its last validation's.
    """
    over_seeds = spread(seed_scores(trial, metric).values())
    mean = _value(trial.values, metric)
    if trial.state == "stopped" and not math.isfinite(mean):
        mean = over_seeds.mean
        if metric == 0 and not over_seeds.num and trial.curve:
            mean = learning_curve(trial)[-1][1]
    if trial.state in UNSCORED or not math.isfinite(mean):
        return Spread(math.nan, math.nan, over_seeds.num)
    return Spread(mean, over_seeds.std, max(over_seeds.num, 1))


def learning_curve(trial: TrialResult) -> list[tuple[int, float]]:
    """(validation, best score so far)."""
    return sorted((validation, as_finite(value)) for validation, value in trial.curve.items())


def finished(result: SweepResult, metric: int = 0) -> list[TrialResult]:
    """Trials that are done and have a value of the metric."""
    return [t for t in result.trials if t.state == "done" and math.isfinite(_value(t.values, metric))]


def ranking(result: SweepResult, metric: int = 0) -> list[TrialResult]:
    """Finished trials, the best first."""
    sign = -1 if result.modes[metric] == "max" else 1
    return sorted(finished(result, metric), key=lambda trial: sign * _value(trial.values, metric))


def score_grid(result: SweepResult, rows: str, columns: str | None, metric: int = 0) -> ScoreGrid:
    """A metric over two fields, or one: mean and deviation over the seeds of all trials in a cell."""
    down = field_axis(result, rows)
    if columns is not None:
        across = field_axis(result, columns)
    else:
        across = FieldAxis("", [""], {trial.number: 0 for trial in result.trials})
    scores: dict[tuple[int, int], list[float]] = {}
    for trial in finished(result, metric):
        if trial.number in down.positions and trial.number in across.positions:
            cell = down.positions[trial.number], across.positions[trial.number]
            scores.setdefault(cell, []).extend(seed_scores(trial, metric).values() or [trial_score(trial, metric).mean])
    cells = [[spread(scores.get((i, j), [])) for j in range(len(across.labels))] for i in range(len(down.labels))]
    pooled = [path for path in varied_fields(result) if path not in (rows, columns)]
    num_seeds = max((len(seed_scores(trial, metric)) for trial in finished(result, metric)), default=0)
    return ScoreGrid(down, across, cells, pooled, max(num_seeds, 1))


def field_pairs(result: SweepResult) -> list[tuple[str, str | None]]:
    """(rows, columns) of the grids: each two of the three most important fields, the two most important first.

    Within a pair the fields keep the space's order, unless that makes a grid wider than it is tall. A single varied
    field is paired with None.
    """
    most, order = by_importance(result)[:3], field_paths(result)
    pairs: list[tuple[str, str | None]] = [(path, None) for path in most if len(most) == 1]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        if second < len(most):
            rows, columns = sorted((most[first], most[second]), key=order.index)
            width, height = (len(field_axis(result, path).labels) for path in (columns, rows))
            pairs.append((columns, rows) if width > max(height, 4) else (rows, columns))
    return pairs


def slice_plot(result: SweepResult, path: str, metric: int = 0) -> SlicePlot:
    """The score of every trial, stopped ones too, at its value of a field."""
    scale, points = field_scale(result, path), []
    is_categorical = scale == "categorical"
    axis = field_axis(result, path) if is_categorical else FieldAxis(path, (), {})
    by_category: list[list[float]] = [[] for _ in axis.labels]
    for trial in result.trials:
        score = trial_score(trial, metric).mean
        x = axis.positions.get(trial.number, math.nan) if is_categorical else as_finite(trial.setting.get(path))
        if math.isfinite(score) and math.isfinite(x) and not (scale == "log" and x <= 0):
            points.append(Point(trial.number, float(x), score, trial.state == "stopped"))
            if is_categorical and trial.state == "done":
                by_category[int(x)].append(score)
    return SlicePlot(path, scale, points, axis.labels, [spread(scores).mean for scores in by_category])


# ---- costs


def trial_cost(trial: TrialResult) -> TrialCost:
    """Seconds by kind of stage, a stage that several seeds share counted once; the largest peak memory."""
    seconds: dict[str, float] = {}
    for stage in _distinct_stages(trial):
        seconds[stage.kind] = seconds.get(stage.kind, 0.0) + as_finite(stage.seconds, 0.0)
    memory = [as_finite(stage.peak_memory_mb) for stage in trial.stages]
    trained = {stage.digest for stage in trial.stages if not stage.reused}
    reused = frozenset(stage.kind for stage in trial.stages if stage.digest not in trained)
    return TrialCost(trial.number, seconds, reused, max((x for x in memory if math.isfinite(x)), default=math.nan))


def stage_kinds(result: SweepResult) -> list[str]:
    """Kinds of the trials' stages, in the order in which they run."""
    kinds = dict.fromkeys(stage.kind for trial in result.trials for stage in trial.stages)
    return sorted(kinds, key=lambda kind: STAGE_ORDER.index(kind) if kind in STAGE_ORDER else len(STAGE_ORDER))


def reuse_savings(result: SweepResult) -> ReuseSavings:
    """What all stages cost, and what they would have cost if every trial had trained its own."""
    needed = [stage for trial in result.trials for stage in _distinct_stages(trial)]
    distinct: dict[str, StageResult] = {}
    for stage in needed:
        known = distinct.get(stage.digest)
        if known is None or as_finite(known.seconds, 0.0) < as_finite(stage.seconds, 0.0):
            distinct[stage.digest] = stage

    def summed(stages: Sequence[StageResult]) -> tuple[dict[str, float], dict[str, int]]:
        seconds, counts = {}, {}
        for kind in stage_kinds(result):
            of_kind = [as_finite(distinct[stage.digest].seconds, 0.0) for stage in stages if stage.kind == kind]
            seconds[kind], counts[kind] = sum(of_kind), len(of_kind)
        return seconds, counts

    (shared, num_shared), (unshared, num_unshared) = summed(list(distinct.values())), summed(needed)
    return ReuseSavings(shared, unshared, num_shared, num_unshared)


def _distinct_stages(trial: TrialResult) -> list[StageResult]:
    """A trial's stages, each once, however many of its seeds need it."""
    return list({stage.digest: stage for stage in trial.stages}.values())


def _value(values: Sequence[float] | None, metric: int) -> float:
    return as_finite(values[metric]) if values is not None and metric < len(values) else math.nan
