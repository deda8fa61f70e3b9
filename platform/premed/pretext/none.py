"""No pre-training: fine-tuning starts from random weights."""

from typing import Literal

from premed.config.spec import Spec


class Config(Spec):
    """Nothing to set."""

    name: Literal["none"] = "none"


build = None
"""There is nothing to train: an experiment with this strategy has no pre-training stage."""
