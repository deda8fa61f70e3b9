"""Decide: when `seeds: auto` looks at what the seeds so far say, and when it stops adding seeds. docs/seeds-auto.md."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from premed.config.spec import Spec

FIRST_LOOK = 4
"""Seeds. At three, the test of `premed compare` errs too often at levels far below 5 %."""


class Decide(Spec):
    """When `seeds: auto` stops: strategies are compared with the baseline at planned numbers of seeds."""

    baseline: str = "none"
    """The strategy that the others are compared with; one of those under `pretext`."""
    margin: float | None = Field(default=None, gt=0)
    """The smallest difference that you care about, in the unit of the task's score: a difference that is known to be
    smaller needs no more seeds. None: seeds are added until there is a difference, or to the last."""
    max_seeds: int = Field(default=12, ge=FIRST_LOOK)
    """Seeds of each strategy at the most."""
    hours: float | None = Field(default=None, gt=0)
    """Device hours of all stages at the most; no seeds are begun that would probably exceed it. None: no limit."""
    looks: tuple[Annotated[int, Field(ge=FIRST_LOOK)], ...] | None = Field(default=None, min_length=1)
    """The numbers of seeds at which it is looked, the last of them max_seeds. None: 4, then a quarter more each time,
    at least two: 4, 6, 8, 10, 12, 15, …"""

    @field_validator("looks")
    @classmethod
    def _ascending(cls, looks: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if looks is not None and list(looks) != sorted({*looks}):
            raise ValueError(f"must be different numbers of seeds in ascending order, as in [4, 8] (it is {[*looks]})")
        return looks

    @model_validator(mode="after")
    def _ends_at_most(self) -> "Decide":
        if self.looks is not None and self.looks[-1] != self.max_seeds:
            raise ValueError(
                f"looks: the last is at {self.looks[-1]} seeds and max_seeds is {self.max_seeds}; make them one number"
            )
        return self

    @property
    def planned(self) -> tuple[int, ...]:
        """The numbers of seeds at which it is looked."""
        return self.looks or tuple(default_looks(self.max_seeds))


def default_looks(most: int) -> Sequence[int]:
    """4, 6, 8, 10, 12, 15, 18, 22, … and `most`, in place of a look at one seed less."""
    looks = [FIRST_LOOK]
    while (following := looks[-1] + max(2, looks[-1] // 4)) <= most:
        looks.append(following)
    if looks[-1] == most - 1:
        looks.pop()
    return looks if looks and looks[-1] == most else [*looks, most]
