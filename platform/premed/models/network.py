"""Encoder and head as one network; seeded initial weights; strict loading of weights."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from premed.contracts import Encoder, Head
from premed.errors import UserError
from premed.rng import key

INIT_LOCK = threading.RLock()
"""torch has one default generator for all threads of a process."""


class Network(nn.Module):
    """Encoder and head, as fine-tuning trains them: maps images [B, C, *roi] to logits."""

    def __init__(self, encoder: Encoder, head: Head):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, image: Tensor, keys: Tensor | None = None) -> Tensor:
        return self.head(image, self.encoder(image, taps=self.head.taps, keys=keys))

    def answers(self, image: Tensor, keys: Tensor | None = None) -> tuple[tuple[float, Tensor], ...]:
        """What training's loss is computed on; see `Head.answers`."""
        return self.head.answers(image, self.encoder(image, taps=self.head.taps, keys=keys))


class Tokens(nn.Module):
    """An encoder alone: maps images [B, C, *roi] to its tokens [B, L, D]."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(image).tokens


def finite(logits: Tensor, remedy: str) -> Tensor:
    """Returns logits; raises UserError for NaN or infinity: of these a label map looks like any other."""
    if not logits.sum().isfinite():  # no second tensor as large as they are
        raise UserError(f"the network's answer is NaN or infinite; {remedy}")
    return logits


@contextmanager
def seeded_init(seed: int, name: str) -> Iterator[None]:
    """Modules built in this context draw their initial weights from `seed` and `name`.

    torch's default generator is restored afterwards.
    """
    with INIT_LOCK, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, "init", name))
        yield


def load_resized(encoder: Encoder, saved: dict[str, Tensor], grid: tuple[int, ...]) -> dict[str, Any]:
    """Loads weights made on another `grid`, resized to the encoder's own.

    Returns how many tensors were loaded and which were resized and dropped. Raises UserError if the rest does not fit.
    """
    state, resized = encoder.fit_state(saved, grid)
    dropped = sorted(saved.keys() - state.keys())
    return load_strictly(encoder, state, "encoder") | {"resized": resized, "dropped": dropped}


def load_strictly(module: nn.Module, state: dict[str, Tensor], part: str) -> dict[str, Any]:
    """Loads all of `state` into all of `module`, and returns how many tensors that is.

    Raises UserError, which names the first missing, unexpected and misshapen tensors, if they do not match. part: the
    module's name in the message.
    """
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or extra or wrong:
        lists = {"missing": missing, "unexpected": extra, "of another shape": wrong}
        misfits = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in lists.items() if names)
        remedy = "encoder and head must be those of the YAML with which it was trained"
        raise UserError(f"{part}: the saved weights do not fit the network ({misfits}); {remedy}")
    module.load_state_dict(state)
    return {"loaded": len(own), "missing": []}
