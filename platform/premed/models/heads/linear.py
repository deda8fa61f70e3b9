"""A linear classification head on the class token (as in MAE's paper) or on the mean of the patch tokens."""

from typing import Literal

from torch import Tensor, nn

from premed.config.spec import Spec, added_field
from premed.contracts import Encoder, Features, Head, Task
from premed.errors import UserError
from premed.models.layers import in_float32

PER_VOXEL = False
"""Labels must be of whole images."""


class Config(Spec):
    """`pool: cls` is timm's and SelfMedMAE's head; `mean` suits short pre-trainings, which barely train the token."""

    name: Literal["linear"] = "linear"
    pool: Literal["cls", "mean"] = "cls"
    init: Literal["mae", "xavier"] = added_field("mae")
    """Initial weights. mae: almost zero, for equal first predictions (MAE's fine-tuning); xavier: SelfMedMAE's."""


def build(config: Config, encoder: Encoder, task: Task) -> "Linear":
    """Builds the head for `task`'s classes."""
    return Linear(config, encoder.width, len(task.classes))


class Linear(Head):
    """Logits [B, classes]."""

    def __init__(self, config: Config, width: int, num_classes: int):
        super().__init__()
        self.pool = config.pool
        self.fc = nn.Linear(width, num_classes)
        if config.init == "xavier":
            nn.init.xavier_uniform_(self.fc.weight)
        else:
            nn.init.trunc_normal_(self.fc.weight, std=2e-5)
        nn.init.zeros_(self.fc.bias)

    def forward(self, image: Tensor, features: Features) -> Tensor:
        if self.pool == "mean":
            return in_float32(lambda tokens: self.fc(tokens.mean(dim=1)), features.tokens)
        if features.summary is None:
            raise UserError("finetune.head.pool: this encoder has no class token; use pool: mean")
        return in_float32(self.fc, features.summary)
