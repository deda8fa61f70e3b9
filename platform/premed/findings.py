"""What a sweep found, in numbers: its grid, scores against each field, costs, what reuse saved, and who leads.

Everything is told from the outcome, the dictionary that `premed sweep --json` prints. Only trials that are done count
for a mean: one that was stopped has had fewer steps, and would make its setting look worse than it is. What is not
known is NaN.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from premed.axes import Axis, Scale, Told, axis, fields, finite, scale, varied

NEVER = ("waiting", "running", "failed")  # states in which a trial has no score to show


class Spread(NamedTuple):
    """A mean and a standard deviation (n - 1) over `num` numbers; NaN over too few."""

    mean: float
    std: float
    num: int


class Grid(NamedTuple):
    rows: Axis
    columns: Axis
    cells: Sequence[Sequence[Spread]]
    over: Sequence[str]
    """The other fields with several values: a cell's numbers are of these too."""
    num_seeds: int
    """The most seeds of any trial."""

    def shares(self, mode: str) -> np.ndarray:
        """How good each cell is among all, [rows, columns] from 0 to 1 (the best); NaN where nothing is known."""
        means = np.array([[cell.mean for cell in row] for row in self.cells], float) * (1 if mode == "max" else -1)
        if not np.isfinite(means).any():
            return means
        low, high = np.nanmin(means), np.nanmax(means)
        return (means - low) / (high - low) if high > low else means * 0 + 1.0


class Point(NamedTuple):
    """One trial's score at its value of a field. x: the value, or its place where values are words."""

    number: int
    x: float
    score: float
    stopped: bool


class Against(NamedTuple):
    """One metric against one field. labels: what the places are called; empty on a scale of numbers."""

    field: str
    scale: Scale
    points: Sequence[Point]
    labels: Sequence[str]
    means: Sequence[float]
    """By place."""


class Cost(NamedTuple):
    """What a trial needed, whoever trained it. seconds: by kind of stage. reused: kinds that others had trained."""

    number: int
    seconds: Mapping[str, float]
    reused: frozenset[str]
    peak_memory_mb: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Reuse(NamedTuple):
    """Seconds: each stage counted once, and counted for every trial that needed it. By kind of stage."""

    spent: Mapping[str, float]
    alone: Mapping[str, float]
    num_spent: Mapping[str, int]
    num_alone: Mapping[str, int]

    @property
    def saved(self) -> float:
        return sum(self.alone.values()) - sum(self.spent.values())

    @property
    def share(self) -> float:
        """Of what it would have cost."""
        return self.saved / sum(self.alone.values()) if sum(self.alone.values()) > 0 else math.nan


# ---- scores


def spread(values: Iterable[float | None]) -> Spread:
    known = [value for value in map(finite, values) if math.isfinite(value)]
    std = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
    return Spread(float(np.mean(known)) if known else math.nan, std, len(known))


def seeds(trial: Told, metric: int = 0) -> dict[str, float]:
    """A trial's numbers by seed; a seed that has none is left out."""
    held = {seed: _at(values, metric) for seed, values in trial["by_seed"].items()}
    return {seed: value for seed, value in held.items() if math.isfinite(value)}


def scored(trial: Told, metric: int = 0) -> Spread:
    """A trial's number of a metric: the mean over seeds as the sweep has it, and the deviation between them.

    Of one that was stopped, how far it had come, for the first metric.
    """
    of_seeds = spread(seeds(trial, metric).values())
    mean = _at(trial["values"], metric)
    if trial["state"] == "stopped" and metric == 0 and not math.isfinite(mean) and trial["curve"]:
        mean = curve(trial)[-1][1]
    if trial["state"] in NEVER or not math.isfinite(mean):
        return Spread(math.nan, math.nan, of_seeds.num)
    return Spread(mean, of_seeds.std, max(of_seeds.num, 1))


def curve(trial: Told) -> list[tuple[int, float]]:
    """Validation and the best so far."""
    return sorted((int(at), finite(value)) for at, value in trial["curve"].items())


def done(outcome: Told, metric: int = 0) -> list[Told]:
    """Trials that are done and have a number."""
    return [t for t in outcome["trials"] if t["state"] == "done" and math.isfinite(_at(t["values"], metric))]


def ranking(outcome: Told, metric: int = 0) -> list[Told]:
    """Trials that are done, the best first."""
    sign = -1 if outcome["modes"][metric] == "max" else 1
    return sorted(done(outcome, metric), key=lambda trial: sign * _at(trial["values"], metric))


def grid(outcome: Told, rows: str, columns: str | None, metric: int = 0) -> Grid:
    """A metric over two fields, or one: mean and deviation over seeds and over the trials that share a cell."""
    down, everywhere = axis(outcome, rows), {trial["number"]: 0 for trial in outcome["trials"]}
    across = axis(outcome, columns) if columns is not None else Axis("", [""], everywhere)
    held: dict[tuple[int, int], list[float]] = {}
    for trial in done(outcome, metric):
        if trial["number"] in down.places and trial["number"] in across.places:
            place = down.places[trial["number"]], across.places[trial["number"]]
            held.setdefault(place, []).extend(seeds(trial, metric).values() or [scored(trial, metric).mean])
    cells = [[spread(held.get((i, j), [])) for j in range(len(across.labels))] for i in range(len(down.labels))]
    others = [path for path in fields(outcome) if path in varied(outcome) and path not in (rows, columns)]
    most = max((len(seeds(trial, metric)) for trial in done(outcome, metric)), default=0)
    return Grid(down, across, cells, others, max(most, 1))


def pairs(outcome: Told) -> list[tuple[str, str | None]]:
    """Rows and columns of tables: two fields at a time of the three most important, the two most important first.

    Within a pair the fields stand as in the space, unless that made a table wider than it is tall. Of one, it alone.
    """
    most, order = varied(outcome)[:3], fields(outcome)
    found: list[tuple[str, str | None]] = [(path, None) for path in most if len(most) == 1]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        if other < len(most):
            rows, columns = sorted((most[one], most[other]), key=order.index)
            wide, tall = (len(axis(outcome, path).labels) for path in (columns, rows))
            found.append((columns, rows) if wide > max(tall, 4) else (rows, columns))
    return found


def against(outcome: Told, path: str, metric: int = 0) -> Against:
    """Every trial's score at its value of a field, stopped ones too; the means are of those that are done."""
    kind, points = scale(outcome, path), []
    places = axis(outcome, path) if kind == "words" else Axis(path, (), {})
    by_place: list[list[float]] = [[] for _ in places.labels]
    for trial in outcome["trials"]:
        score = scored(trial, metric).mean
        x = places.places.get(trial["number"], math.nan) if kind == "words" else finite(trial["setting"].get(path))
        if math.isfinite(score) and math.isfinite(x) and not (kind == "log" and x <= 0):
            points.append(Point(trial["number"], float(x), score, trial["state"] == "stopped"))
            if kind == "words" and trial["state"] == "done":
                by_place[int(x)].append(score)
    return Against(path, kind, points, places.labels, [spread(values).mean for values in by_place])


# ---- costs


def cost(trial: Told) -> Cost:
    """Seconds by kind of stage, a stage that several seeds share counted once; the most memory of any."""
    held: dict[str, float] = {}
    for stage in _stages(trial):
        held[stage["kind"]] = held.get(stage["kind"], 0.0) + finite(stage["seconds"], 0.0)
    memory = [finite(stage["peak_memory_mb"]) for stage in trial["stages"]]
    trained = {stage["digest"] for stage in trial["stages"] if not stage["reused"]}
    reused = frozenset(stage["kind"] for stage in trial["stages"] if stage["digest"] not in trained)
    return Cost(trial["number"], held, reused, max((x for x in memory if math.isfinite(x)), default=math.nan))


def kinds(outcome: Told) -> list[str]:
    """Kinds of stages that the trials had, in their order."""
    order = ("import", "pretrain", "trunk", "cooldown", "finetune")
    there = dict.fromkeys(stage["kind"] for trial in outcome["trials"] for stage in trial["stages"])
    return sorted(there, key=lambda kind: order.index(kind) if kind in order else len(order))


def reuse(outcome: Told) -> Reuse:
    """What all stages took, and what they would have taken had every trial trained its own."""
    needed = [stage for trial in outcome["trials"] for stage in _stages(trial)]
    once: dict[str, Told] = {}
    for stage in needed:
        known = once.get(stage["digest"])
        if known is None or finite(known["seconds"], 0.0) < finite(stage["seconds"], 0.0):
            once[stage["digest"]] = stage

    def summed(stages: Iterable[Told]) -> tuple[dict[str, float], dict[str, int]]:
        stages, seconds, counts = list(stages), {}, {}
        for kind in kinds(outcome):
            some = [finite(once[stage["digest"]]["seconds"], 0.0) for stage in stages if stage["kind"] == kind]
            seconds[kind], counts[kind] = sum(some), len(some)
        return seconds, counts

    (spent, num_spent), (alone, num_alone) = summed(once.values()), summed(needed)
    return Reuse(spent, alone, num_spent, num_alone)


def _stages(trial: Told) -> list[Told]:
    """A trial's stages, each once, however many of its seeds need it."""
    return list({stage["digest"]: stage for stage in trial["stages"]}.values())


# ---- numbers


def _at(values: Sequence[Any] | None, metric: int) -> float:
    return finite(values[metric]) if values is not None and metric < len(values) else math.nan
