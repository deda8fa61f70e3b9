"""A choice of a setting with its reason."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A field's value, and why it is what it is."""

    value: Any
    why: str = ""


Choices = dict[str, Choice]
"""By the field's dotted path, in the order in which they are written."""


def times(numbers: Iterable[float]) -> str:
    """Returns `1.5 × 1.5 × 3`."""
    return " × ".join(f"{number:.4g}" for number in numbers)
