"""How numbers, names and counts are written, in the terminal and on pages alike."""

import math
from collections.abc import Callable, Iterable, Sequence

NAMES = {"dice": "Dice", "hd95": "HD95, mm", "mauc": "mean AUC", "accuracy": "accuracy"}  # of scores
LOWER_IS_BETTER = {"hd95"}


def is_better(score: str, value: float, other: float) -> bool:
    """Whether a value of a score is better than another."""
    return value < other if score in LOWER_IS_BETTER else value > other


# ---- numbers


def number(value: float | None) -> str:
    """Three decimals, or `undefined`."""
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference: three decimals after its sign, or `undefined`."""
    return f"{value:+.3f}" if math.isfinite(value) else "undefined"


def span(interval: Sequence[float], word: Callable[[float], str] = number) -> str:
    """`[low, high]`, or `-` where the interval is undefined. word: how each end is written."""
    low, high = interval
    return f"[{word(low)}, {word(high)}]" if math.isfinite(low) else "-"


def mean_std(mean: float, std: float) -> str:
    """`mean ± std`; the mean alone where there is no standard deviation."""
    return number(mean) + (f" ± {std:.3f}" if math.isfinite(std) else "")


def p_value(p: float) -> str:
    """A p-value, or `-` where it is undefined."""
    return "-" if not math.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def percent(fraction: float) -> str:
    """`5 %`."""
    return f"{100 * fraction:.4g} %"


def duration(seconds: float, beside: float | None = None) -> str:
    """Seconds in a unit of their size (90 s, 2.5 min, 3.0 h), or in one of the size of `beside`."""
    most = seconds if beside is None else beside
    size, unit = (1, "s") if most < 120 else (60, "min") if most < 7200 else (3600, "h")
    return f"{seconds / size:.{int(size > 1)}f} {unit}"


# ---- names and counts


def score_name(score: str) -> str:
    """What a score or metric is called, without its unit: `mean AUC` for `mauc`; a name that is not known stays."""
    return NAMES.get(score, score).partition(",")[0]


def listed(names: Iterable[str], word: str = "and") -> str:
    """Sorted names as a person lists them: `a, b and c`."""
    names = sorted(names)
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
