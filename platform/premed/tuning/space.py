"""The values that a sweep's space has for a field: a list of them, or a range."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, StrictInt, model_validator

from premed.config.expand import check_list
from premed.config.spec import Spec

MAX_CHECKED = 1000  # combinations, or integers of a range, that are checked one by one


Setting = dict[str, Any]
"""A trial's values by dotted path."""


class Choice(Spec):
    """One of several values, of any kind a YAML may hold."""

    choice: Annotated[tuple[Any, ...], BeforeValidator(lambda value: check_list("[0.5, 0.75]", value))]

    @property
    def grid_values(self) -> Sequence[Any]:
        """All of the values."""
        return self.choice

    @property
    def words(self) -> bool:
        """Whether one is no number, so that it may decide which other fields are read: a strategy, null, a mapping."""
        return any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in self.choice)


class Range(Spec):
    """A range, both ends included; exactly one of the fields is set."""

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    int: tuple[StrictInt, StrictInt] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Range":
        names = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(names) != 1:
            raise ValueError("must be a list of values, or one of {uniform: [low, high]}, {loguniform: …}, {int: …}")
        if self.low >= self.high:
            raise ValueError(f"{names[0]}: {self.low} is not below {self.high}")
        if self.loguniform and self.low <= 0:
            raise ValueError(f"loguniform: {self.low} has no logarithm; start above 0")
        return self

    @property
    def bounds(self) -> tuple[Any, Any]:
        return next(bounds for bounds in (self.uniform, self.loguniform, self.int) if bounds is not None)

    @property
    def low(self) -> Any:
        return self.bounds[0]

    @property
    def high(self) -> Any:
        return self.bounds[1]

    @property
    def grid_values(self) -> Sequence[Any]:
        """The integers of a range, else its bounds: fields are limited by intervals, so these are checked for all."""
        if self.int and self.high - self.low <= MAX_CHECKED:
            return range(self.low, self.high + 1)
        return self.bounds

    @property
    def inner(self) -> float | None:
        """A number within a range that is drawn from as numbers with fractions; None for one of integers."""
        return None if self.int else self.low + (self.high - self.low) / 3.7


def _parse_values(value: Any) -> Any:
    if isinstance(value, Spec):
        return value
    if isinstance(value, dict) and "choice" not in value:
        return Range.model_validate(value)
    return Choice.model_validate(value if isinstance(value, dict) else {"choice": value})


Values = Annotated[Choice | Range, BeforeValidator(_parse_values)]


def encode(value: Any) -> Any:
    """A value as Optuna stores it: a list or a mapping as JSON."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)


def decode(values: Choice | Range, stored: Any) -> Any:
    """The value of a field that `encode` turned into `stored`."""
    if isinstance(values, Choice):
        return next((value for value in values.choice if encode(value) == stored), stored)
    return stored
