"""Which weights fine-tuning trains (`finetune.policy`): freezing by depth, and LoRA.

LoRA (Hu 2022, arXiv:2106.09685) is a parametrization of torch's: where a module reads its weight W, it gets
W + alpha / rank · B A. So it suits every module that has a `weight`, and what validation scores is the network that is
saved, to the last bit: `plain_state` and `merge` leave nothing of it but the sum. The price: the gradient of the whole
weight is computed on the way to those of A and B. What is saved is the memory of the optimizer.
"""

from contextlib import nullcontext
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from premed.config.policy import Full, HeadOnly, LastN, LoRA, WarmupThenFull
from premed.config.spec import Spec
from premed.errors import UserError
from premed.models.network import Network

MATRICES = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
INSIDE = ".parametrizations.weight."
"""In the names of a weight's arrays while it is parametrized: `original`, and `0.a`, `0.b`, `0.scale` of its update."""


def choose_trained(policy: Spec, network: Network) -> None:
    """Sets `requires_grad` of what is ever trained, and adds LoRA's matrices. Raises UserError if it has no effect."""
    encoder = network.encoder
    encoder.requires_grad_(True)  # fine-tuning trains the positions, too, as in SelfMedMAE
    if isinstance(policy, Full):
        return
    if network.head.num_solutions:
        raise UserError(
            "finetune.policy: this head is solved on a frozen encoder, without gradients; leave policy out, or take "
            "another head"
        )
    if not list(encoder.parameters()):
        raise UserError("finetune.policy: this encoder has no weights; leave policy out")
    if isinstance(policy, HeadOnly):
        encoder.requires_grad_(False)
    elif isinstance(policy, LastN):
        if policy.blocks > encoder.depth:
            raise UserError(
                f"finetune.policy.blocks: is {policy.blocks}, and this encoder has {encoder.depth}; choose fewer"
            )
        encoder.frozen = encoder.depth - policy.blocks
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(encoder.layer(name) > encoder.frozen)
    elif isinstance(policy, LoRA):
        encoder.requires_grad_(False)
        add_lora(network, policy)


def trained_words(policy: Spec, network: Network, num_steps: int) -> str:
    """How many parameters are trained, those of LoRA among them, and from which step on the encoder's are."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    num_trained, num = sum(n for n, is_trained in counts if is_trained), sum(n for n, _ in counts)
    words = f"{'all' if num_trained == num else f'{num_trained:,} of'} {num:,} parameters trained"
    if not isinstance(policy, WarmupThenFull):
        return words
    first = next(step for step in range(num_steps + 1) if step / num_steps >= policy.share)
    return f"{words}, the encoder's from step {first} on"


def keep_frozen_in_eval(network: nn.Module) -> None:
    """Has modules of which no weight is trained compute as in prediction: without dropout and drop path, and with a
    batch norm's stored statistics, which would else change without any training of its weights."""
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


# ---- LoRA


class LowRankUpdate(nn.Module):
    """Maps a weight [out, …] to itself plus scale · b a. b is 0 at first, so that training starts from the weight."""

    scale: Tensor

    def __init__(self, weight: Tensor, rank: int, alpha: float):
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, weight[0].numel()))
        self.b = nn.Parameter(torch.zeros(len(weight), rank))
        self.register_buffer("scale", torch.tensor(alpha / rank))
        nn.init.kaiming_uniform_(self.a, a=sqrt(5))  # as in the authors' code

    def forward(self, weight: Tensor) -> Tensor:
        return updated(weight, self.a, self.b, self.scale)


def updated(weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """The weight [out, …] plus scale · b [out, rank] a [rank, …], in float32 within autocast, too."""
    with nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
        return weight + (scale * (b @ a)).view_as(weight)


def add_lora(network: Network, policy: LoRA) -> None:
    """Adds an update to each matrix (linear layers, convolutions) of the encoder's blocks that has a higher rank.

    Raises UserError if there is none. Draws from torch's generator.
    """
    encoder, added = network.encoder, 0
    for name, module in list(encoder.named_modules()):
        if not isinstance(module, MATRICES) or not 0 < encoder.layer(f"{name}.weight") <= encoder.depth:
            continue
        if min(len(module.weight), module.weight[0].numel()) > policy.rank:
            parametrize.register_parametrization(
                module, "weight", LowRankUpdate(module.weight, policy.rank, policy.alpha)
            )
            added += 1
    if not added:
        raise UserError(
            f"finetune.policy.rank: {policy.rank} is no lower rank for any matrix of this encoder; choose a smaller one"
        )


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module as it is without LoRA: each weight is its sum."""
    state = module.state_dict()
    for name in [name for name in state if name.endswith(f"{INSIDE}original")]:
        stem = name.removesuffix(f"{INSIDE}original")
        a, b, scale = (state.pop(f"{stem}{INSIDE}0.{part}") for part in ("a", "b", "scale"))
        with torch.no_grad():
            state[f"{stem}.weight"] = updated(state.pop(name), a, b, scale)
    return state


def merge(module: nn.Module) -> None:
    """Makes each weight its sum, in place, and takes LoRA out: the module has its plain structure again."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
