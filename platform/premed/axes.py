"""The fields that a sweep varies and the values that its trials have: as words, as places in a table, as a scale."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from premed.errors import printable

Told = Mapping[str, Any]
Scale = Literal["words", "linear", "log"]
BINS = 4  # parts of a range, each as wide as the others on its scale
SINGLE = 6  # so many different values of a range, or fewer, stand each for themselves


class Axis(NamedTuple):
    """A field's values as places in a table: what each is called, and which one every trial belongs to."""

    field: str
    labels: Sequence[str]
    places: Mapping[int, int]
    """By the trial's number; a trial without the field is not in it."""


def fields(outcome: Told) -> list[str]:
    """Dotted paths: the space's, in its order, then what settings hold besides."""
    return list(dict.fromkeys([*outcome["space"], *(path for t in outcome["trials"] for path in t["setting"])]))


def varied(outcome: Told) -> list[str]:
    """Fields that have several values, in the space or among the trials; the most important first, if that is known."""
    several = [path for path in fields(outcome) if _range(outcome, path) or len(_labels(outcome, path)) > 1]
    known = outcome["importances"] or {}
    return sorted(several, key=lambda path: -finite(known.get(path, 0.0), 0.0))


def short(paths: Sequence[str]) -> dict[str, str]:
    """By path, its last part or parts: as many as tell it apart; a `name` alone says nothing."""

    def endings(path: str) -> list[str]:
        parts = path.split(".")
        return [".".join(parts[-i:]) for i in range(1, len(parts) + 1) if (i, parts[-1]) != (1, "name")] or [path]

    taken = [ending for path in dict.fromkeys(paths) for ending in endings(path)]
    return {path: printable(next((x for x in endings(path) if taken.count(x) == 1), path)) for path in paths}


def word(value: Any, digits: int = 12) -> str:
    """A value as a YAML has it, without the noise of binary fractions."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) else json.dumps(_quiet(value), ensure_ascii=False)


def called(outcome: Told, path: str, value: Any) -> str:
    """A trial's value of a field; of one that was drawn from a range, the digits that matter."""
    return printable(word(value, 3 if _range(outcome, path) else 12))


def axis(outcome: Told, path: str) -> Axis:
    """The places of a field: its values, or equal parts of its range where a range has many."""
    held = {trial["number"]: trial["setting"][path] for trial in outcome["trials"] if path in trial["setting"]}
    if _range(outcome, path):
        known = {number: float(value) for number, value in held.items() if math.isfinite(finite(value))}
        if len(set(known.values())) > SINGLE:
            edges = _edges(outcome, path, list(known.values()))
            whole = (_range(outcome, path) or ("",))[0] == "int"  # whose parts do not share their ends
            ends = zip(edges[:-1].tolist(), (edges[1:] - whole).tolist(), strict=True)
            names = [f"{word(low, 3)} … {word(high, 3)}" if low < high else word(low, 3) for low, high in ends]
            last = len(names) - 1
            places = {n: int(np.clip(np.searchsorted(edges, x, "right") - 1, 0, last)) for n, x in known.items()}
            return Axis(path, names, places)
    labels = _labels(outcome, path)
    return Axis(path, labels, {number: labels.index(called(outcome, path, value)) for number, value in held.items()})


def scale(outcome: Told, path: str) -> Scale:
    """How a field's values are laid out: as words, or as numbers of a range."""
    kind, ends = _range(outcome, path) or ("", ())
    if not kind or not all(math.isfinite(finite(end)) for end in ends):
        return "words"
    return "log" if kind == "loguniform" and min(ends) > 0 else "linear"


def _range(outcome: Told, path: str) -> tuple[str, Sequence[float]] | None:
    """The kind and the ends of a range that values are drawn from; None of a list of values."""
    said = outcome["space"].get(path)
    kind, ends = next(iter(said.items())) if isinstance(said, Mapping) and len(said) == 1 else ("", None)
    return (kind, ends) if kind in ("uniform", "loguniform", "int") and ends else None


def _edges(outcome: Told, path: str, values: Sequence[float]) -> np.ndarray:
    kind, ends = _range(outcome, path) or ("", values)
    low, high = min(*ends, *values), max(*ends, *values)
    if kind == "int":
        return np.unique(np.rint(np.linspace(low, high + 1, BINS + 1)))
    return (np.geomspace if kind == "loguniform" and low > 0 else np.linspace)(low, high, BINS + 1)


def _labels(outcome: Told, path: str) -> list[str]:
    """A field's different values, numbers in their order, others as the space or the trials name them first."""
    said = outcome["space"].get(path)
    listed = said.get("choice", []) if isinstance(said, Mapping) else said or []
    values = [*listed, *(trial["setting"][path] for trial in outcome["trials"] if path in trial["setting"])]
    if all(math.isfinite(finite(value)) for value in values):
        values.sort()
    return list(dict.fromkeys(called(outcome, path, value) for value in values))


def finite(value: Any, otherwise: float = math.nan) -> float:
    """A finite number as it is; anything else (a word, a truth value, None, infinity) is `otherwise`."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else otherwise


def _quiet(value: Any) -> Any:
    """Numbers without noise, however deep."""
    if isinstance(value, float):
        return float(word(value))
    if isinstance(value, Mapping):
        return {str(name): _quiet(each) for name, each in value.items()}
    return [_quiet(each) for each in value] if isinstance(value, (list, tuple)) else value
