"""The named parts of a network that one stage saves and the next one loads: strictly, or not at all."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from premed.config.experiment import Stage
from premed.contracts import Domain, Encoder
from premed.errors import UserError
from premed.rng import key
from premed.vault import Vault

DRAWING = threading.RLock()
"""torch's generator is one for all threads of a process."""


@contextmanager
def drawn(seed: int, name: str) -> Iterator[None]:
    """Initial weights from a seed and a name; torch's own generator is left as it was."""
    with DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, "init", name))
        yield


def load_encoder(encoder: Encoder, vault: Vault) -> dict[str, Any]:
    """Loads the encoder that `vault` holds, made to fit where the grid is another; says what was done."""
    about = vault.get_json("parts/card.json")
    assert about is not None, f"{vault.where} has no card"
    return adopt(encoder, weights_of(vault, "encoder"), tuple(about["grid"]))


def adopt(encoder: Encoder, saved: dict[str, torch.Tensor], grid: tuple[int, ...]) -> dict[str, Any]:
    """Loads weights that were made on a `grid`; says what was done, or names what does not fit."""
    state, resized = encoder.fit_state(saved, grid)
    dropped = sorted(saved.keys() - state.keys())
    return load_strictly(encoder, state, "encoder") | {"resized": resized, "dropped": dropped}


def weights_of(vault: Vault, part: str) -> dict[str, torch.Tensor]:
    """A saved part's weights."""
    weights = vault.get_weights(f"parts/{part}.safetensors")
    if weights is None:
        raise UserError(f"{vault.where}/parts/{part}.safetensors is missing: remove that folder and pre-train again")
    return weights


def load_strictly(module: nn.Module, state: dict[str, torch.Tensor], part: str) -> dict[str, Any]:
    """Loads all of `state` into all of `module`, or names what does not fit."""
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or extra or wrong:
        lists = {"missing": missing, "not wanted": extra, "of another shape": wrong}
        said = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in lists.items() if names)
        mend = "encoder and head must be those of the YAML that it was trained with"
        raise UserError(f"{part}: the saved weights do not fit the network ({said}); {mend}")
    module.load_state_dict(state)
    return {"loaded": len(own), "missing": []}


def card(
    stage: Stage, domains: Sequence[Domain], parts: Mapping[str, nn.Module], gate: dict[str, Any] | None
) -> dict[str, Any]:
    """What somebody needs to use the parts elsewhere, without the data they were trained on."""
    encoder, head = parts["encoder"], getattr(stage.training, "head", None)
    assert isinstance(encoder, Encoder)
    told = {"sources": [source(domain) for domain in domains]} if getattr(stage.training, "sources", None) else {}
    return (
        domains[0].task.describe()
        | told
        | {
            "digest": stage.digest(),
            "kind": stage.kind,
            "parts": sorted(parts),
            "encoder": stage.encoder.model_dump(mode="json"),
            "head": head.model_dump(mode="json") if head else None,
            "grid": encoder.grid,
            "patch": encoder.patch,
            "width": encoder.width,
            "gate": gate,
        }
    )


def source(domain: Domain) -> dict[str, Any]:
    """What the card says of a data set that a pre-training names."""
    task = domain.task
    about = {"task": task.name, "group": domain.group, "channels": task.channels, "roi": list(task.roi)}
    return about | {"preprocessing": task.recipe.model_dump(mode="json")}
