"""No pre-training: fine-tuning starts from random weights."""

from typing import Literal

from premed.config.spec import Spec


class Config(Spec):
    """No settings."""

    name: Literal["none"] = "none"


build = None
"""An experiment with this strategy has no pre-training stage."""
