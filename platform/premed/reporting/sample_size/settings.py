"""What a user of `premed plan` wants to show, and what they state in place of estimates."""

from dataclasses import dataclass

import numpy as np

from premed.errors import UserError
from premed.reporting.sample_size.components import Stated
from premed.reporting.sample_size.power import LEVEL


@dataclass(frozen=True)
class PlanSettings:
    """Raises UserError for a number that cannot be."""

    power: float = 0.8
    margin: float | None = None
    """The smallest difference that matters, in the score's unit; None: the measured difference."""
    stated: Stated = Stated()

    def __post_init__(self) -> None:
        if not LEVEL < self.power < 1:
            raise UserError(f"--power {self.power:g}: write a share between {LEVEL:g} and 1, as --power 0.8")
        refuse_unusable("--margin", self.margin)
        refuse_unusable("--sd-pretraining", self.stated.pretraining, may_be_zero=True)
        refuse_unusable("--sd-finetuning", self.stated.finetuning, may_be_zero=True)


def refuse_unusable(option: str, value: float | None, may_be_zero: bool = False) -> None:
    """Raises UserError unless an option's value is None or a finite number above zero (or zero)."""
    if value is not None and not (np.isfinite(value) and (value > 0 or may_be_zero and value == 0)):
        least = "0 or more" if may_be_zero else "above 0"
        raise UserError(
            f"{option} {value:g}: write a number {least}, in the unit of the score (0.01 is a point of Dice)"
        )
