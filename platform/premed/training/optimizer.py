"""AdamW with layer-wise learning rate decay; the learning rate, weight decay and gradient clipping of each step."""

import inspect
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from premed.contracts import Objective
from premed.models.network import Network

UNDECAYED = ("pos_embed", "cls_token", "reg_token", "register_tokens", "rope.freqs", "bias_table", ".bias")
"""Ends of the names of arrays without weight decay, as in timm."""


class EagerAdamW(AdamW):
    """PyTorch's AdamW, whose methods do not import torch._dynamo to keep themselves out of `torch.compile`.

    The import takes a process 4 s of a slow CPU and 150 MB, and nothing here compiles an optimizer. A PyTorch that does
    this in another way imports it as before.
    """

    step = torch.no_grad()(inspect.unwrap(AdamW.step))

    def __init__(self, *arguments: Any, **settings: Any):
        for method in vars(Optimizer).values():
            if plain := getattr(method, "__wrapped__", None):
                setattr(plain, "__dynamo_disable", plain)  # noqa: B010 - torch._compile calls what stands there
        super().__init__(*arguments, **settings)


def make_optimizer(objective: Objective, betas: tuple[float, float]) -> AdamW:
    """Returns AdamW for the objective's groups; `set_lr` applies their `lr_scale` (layer decay) at every step."""
    return EagerAdamW(objective.param_groups(), lr=0.0, betas=betas, fused=True)


def layer_decay_groups(network: Network, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Groups the trained parameters of `network` by layer and by whether weight decay applies, as in MAE's fine-tuning.

    The learning rate of layer n (0: embeddings, i + 1: block i, depth + 1: the rest) is multiplied by
    layer_decay^(depth + 1 - n). Weight decay applies to matrices, not to biases, norms, positions, class and
    register tokens.
    """
    last = network.encoder.depth + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        in_encoder = name.startswith("encoder.")
        layer = network.encoder.layer(name.removeprefix("encoder.")) if in_encoder else last
        decays = parameter.ndim > 1 and not name.endswith(UNDECAYED)
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": layer_decay ** (last - layer),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def set_lr(optimizer: AdamW, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


def set_decay(optimizer: AdamW, progress: float) -> None:
    """Sets the weight decay of groups with `decay` (first, last): from first to last along half a cosine."""
    for group in optimizer.param_groups:
        if "decay" in group:
            first, last = group["decay"]
            group["weight_decay"] = last + (first - last) * 0.5 * (1 + cos(pi * progress))


def gradient_norm(module: nn.Module, limit: float | None) -> dict[str, Tensor]:
    """Returns the gradients' global norm, to log; clips them to `limit` if it is set."""
    norm = nn.utils.get_total_norm([each.grad for each in module.parameters() if each.grad is not None])
    if limit is not None:
        nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)
    return {"gradient_norm": norm}
