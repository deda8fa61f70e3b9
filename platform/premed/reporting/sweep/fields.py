"""The fields that a sweep varies: their names, their values as text, and as categories or bins of tables and charts."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from premed.errors import printable
from premed.reporting.sweep.result import SweepResult

Scale = Literal["categorical", "linear", "log"]
NUM_BINS = 4  # of equal width on the range's scale
MAX_DISTINCT = 6  # a range of which trials have no more distinct values than this is not binned


class SearchRange(NamedTuple):
    """A range that a field's values are drawn from, both ends included."""

    kind: str
    """uniform, loguniform or int."""
    low: float
    high: float


class FieldAxis(NamedTuple):
    """The values of a field as the rows or the columns of a table."""

    field: str
    labels: Sequence[str]
    positions: Mapping[int, int]
    """Index into `labels` by the trial's number; a trial without the field is left out."""


def field_paths(result: SweepResult) -> list[str]:
    """Dotted paths: the space's, in its order, then those that only trials have."""
    return list(dict.fromkeys([*result.space, *(path for trial in result.trials for path in trial.setting)]))


def varied_fields(result: SweepResult) -> list[str]:
    """Paths of the fields with more than one value, in the space or among the trials, in the space's order."""
    return [path for path in field_paths(result) if search_range(result, path) or len(_labels(result, path)) > 1]


def by_importance(result: SweepResult) -> list[str]:
    """`varied_fields`, the most important first, if importances are known."""
    importances = result.importances or {}
    return sorted(varied_fields(result), key=lambda path: -as_finite(importances.get(path), 0.0))


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """By path, as few of its last parts as distinguish it from the others; `name` alone is never used."""

    def endings(path: str) -> list[str]:
        parts = path.split(".")
        return [".".join(parts[-i:]) for i in range(1, len(parts) + 1) if (i, parts[-1]) != (1, "name")] or [path]

    taken = [ending for path in dict.fromkeys(paths) for ending in endings(path)]
    return {path: printable(next((x for x in endings(path) if taken.count(x) == 1), path)) for path in paths}


def format_value(value: Any, digits: int = 12) -> str:
    """A value as a YAML file writes it; few enough digits that binary fractions show no rounding error."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) else json.dumps(_rounded(value), ensure_ascii=False)


def format_field(result: SweepResult, path: str, value: Any) -> str:
    """A trial's value of a field; three digits of one that was drawn from a range."""
    return printable(format_value(value, 3 if search_range(result, path) else 12))


def field_axis(result: SweepResult, path: str) -> FieldAxis:
    """A field's distinct values, or bins of equal width where trials have many values of a range."""
    values = {trial.number: trial.setting[path] for trial in result.trials if path in trial.setting}
    if drawn := search_range(result, path):
        numbers = {number: float(value) for number, value in values.items() if math.isfinite(as_finite(value))}
        if len(set(numbers.values())) > MAX_DISTINCT:
            edges = _bin_edges(drawn, list(numbers.values()))
            lows, highs = (
                edges[:-1].tolist(),
                (edges[1:] - (drawn.kind == "int")).tolist(),
            )  # bins of integers are closed
            labels = [
                f"{format_value(low, 3)} … {format_value(high, 3)}" if low < high else format_value(low, 3)
                for low, high in zip(lows, highs, strict=True)
            ]
            last = len(labels) - 1
            bins = {n: int(np.clip(np.searchsorted(edges, x, "right") - 1, 0, last)) for n, x in numbers.items()}
            return FieldAxis(path, labels, bins)
    labels = _labels(result, path)
    positions = {number: labels.index(format_field(result, path, value)) for number, value in values.items()}
    return FieldAxis(path, labels, positions)


def field_scale(result: SweepResult, path: str) -> Scale:
    """The scale of a chart's axis: numbers if the field has a range, else categories."""
    drawn = search_range(result, path)
    if drawn is None or not all(math.isfinite(as_finite(end)) for end in (drawn.low, drawn.high)):
        return "categorical"
    return "log" if drawn.kind == "loguniform" and drawn.low > 0 else "linear"


def search_range(result: SweepResult, path: str) -> SearchRange | None:
    """None if the field's values are chosen from a list."""
    values = result.space.get(path)
    if not isinstance(values, Mapping):
        return None
    ((kind, (low, high)),) = values.items()
    return SearchRange(kind, low, high)


def as_finite(value: Any, default: float = math.nan) -> float:
    """A finite number as a float; `default` for anything else (a string, a bool, None, infinity)."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else default


def _bin_edges(drawn: SearchRange, values: Sequence[float]) -> np.ndarray:
    """Of NUM_BINS bins, or fewer of a short range of integers, that hold the range and all values."""
    low, high = min(drawn.low, *values), max(drawn.high, *values)
    if drawn.kind == "int":
        return np.unique(np.rint(np.linspace(low, high + 1, NUM_BINS + 1)))
    return (np.geomspace if drawn.kind == "loguniform" and low > 0 else np.linspace)(low, high, NUM_BINS + 1)


def _labels(result: SweepResult, path: str) -> list[str]:
    """A field's distinct values: numbers sorted, others in the order of the space, then of the trials."""
    choices = result.space.get(path, ()) if search_range(result, path) is None else ()
    values = [*choices, *(trial.setting[path] for trial in result.trials if path in trial.setting)]
    if all(math.isfinite(as_finite(value)) for value in values):
        values.sort()
    return list(dict.fromkeys(format_field(result, path, value) for value in values))


def _rounded(value: Any) -> Any:
    """`value` with its floats rounded as `format_value` rounds them, however deep."""
    if isinstance(value, float):
        return float(format_value(value))
    if isinstance(value, Mapping):
        return {str(name): _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value
