"""A small MiT, and images for it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from premed.models.encoders import mit
from premed.models.encoders.mit import Config, MiT
from premed.training.storage import StageStorage

NUMBERS: dict[str, Any] = {"widths": (8, 16, 16, 32), "heads": (1, 2, 2, 4), "decoder_heads": (4, 4, 2)}
NUMBERS |= {"reductions": (3, 2, 2, 1), "stem_width": 8, "stem_stride": (1, 1, 1)}


SMALLER = Config.model_validate({"size": "tiny", **NUMBERS})
PICTURE, VOLUME = (1, (32, 48)), (1, (32, 48, 16))


def encoder(*inputs, config=SMALLER) -> MiT:
    torch.manual_seed(0)
    first, *more = inputs or (PICTURE,)
    return mit.build(config, *first, *more).eval()


def image(of, n: int = 2) -> Tensor:
    return torch.randn(n, of[0], *of[1], generator=torch.Generator().manual_seed(1))


def saved(model: MiT, folder: Path) -> StageStorage:
    vault = StageStorage(str(folder), "stage")
    vault.put_weights("parts/encoder.safetensors", model.state_dict())
    vault.put_json("parts/card.json", {"grid": model.grid})
    return vault
