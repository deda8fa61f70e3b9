"""What dynamic-network-architectures' Primus answers, with weights made by a formula.

The package asks for an older timm than premed has, so its answers are kept in tests/golden/primus. To write them anew,
in an environment that has the package, einops, timm 1.0.22, torch and numpy (they were written with 0.4.4):

    python tests/support/primus_reference.py --write
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))  # `support`, where this runs as a script

from support.nnunet_reference import some, wave

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "primus"
NUM_CLASSES, CHANNELS, WIDTH, DEPTH, HEADS = 3, 2, 48, 3, 4
VISIBLE = torch.tensor([[5, 0, 17, 23, 9], [1, 2, 20, 4, 11]])


class Case(NamedTuple):
    roi: tuple[int, ...] = (16, 24, 32)
    patch: tuple[int, ...] = (8, 8, 8)
    registers: int = 0
    stem: str = "patch"
    masked: bool = False  # whether it sees the patches VISIBLE alone


CASES = {
    "primus": Case(),
    "masked": Case(masked=True),
    "registers": Case(registers=2, masked=True),
    "anisotropic": Case((16, 24, 16), (8, 8, 4)),
    "residual": Case(stem="residual"),
}


@torch.no_grad()
def fill(parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Sets weights to waves of such a size that each part shows in the output."""
    for name, parameter in parameters:
        values = wave(name, parameter.shape)
        if name.endswith(("pos_embed", "register_tokens")):
            values = values * 0.7
        elif parameter.ndim > 1:
            values = values * (4 / np.prod(parameter.shape[1:])) ** 0.5
        elif "gamma" in name or name.endswith("weight"):
            values = 1 + 0.3 * values
        else:
            values = 0.3 * values
        parameter.copy_(values)


def image(case: Case) -> Tensor:
    return wave("image", (2, CHANNELS, *case.roi)).float()


def read(name: str) -> np.ndarray:
    """Values [2, NUM_VALUES] or [1, NUM_VALUES]: of the tokens, and of the logits unless it is masked."""
    return np.loadtxt(FOLDER / f"{name}.txt", ndmin=2)


def our_name(name: str) -> str:
    """What premed calls a parameter of theirs: the rules that `models/encoders/vit.py` states."""
    for theirs, ours in (("up_projection.", "head."), ("down_projection.", "patch_embed."), ("eva.", "")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


class Keep(nn.Module):
    """In place of their random patch dropout."""

    def __init__(self, registers: int, keep: Tensor):
        super().__init__()
        self.registers, self.keep = registers, keep

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches = x[:, self.registers :].gather(1, self.keep[..., None].expand(-1, -1, x.shape[2]))
        return torch.cat([x[:, : self.registers], patches], dim=1), self.keep


@torch.no_grad()
def theirs(case: Case) -> list[Tensor]:
    from dynamic_network_architectures.architectures.primus import (  # type: ignore[import-not-found]
        Primus,
        PrimusV2,
    )

    settings: dict[str, Any] = {"eva_depth": DEPTH, "eva_numheads": HEADS, "input_shape": case.roi}
    settings |= {"init_values": 0.1, "scale_attn_inner": True, "num_register_tokens": case.registers}
    kind = PrimusV2 if case.stem == "residual" else Primus
    network = kind(CHANNELS, WIDTH, case.patch, NUM_CLASSES, **settings).eval()
    fill((our_name(name), parameter) for name, parameter in network.named_parameters(remove_duplicate=True))
    if case.registers:  # premed's registers have no positions
        network.eva.pos_embed[:, : case.registers] = 0
        network.eva.pos_embed[:, case.registers :] = 0.7 * wave("pos_embed", (1, 24, WIDTH))
    tokens: list[Tensor] = []
    network.eva.register_forward_hook(lambda _module, _inputs, output: tokens.append(output[0][:, case.registers :]))
    if not case.masked:
        logits = network(image(case))
        return [*tokens, logits]
    for each, keep in zip(image(case).split(1), VISIBLE.split(1), strict=True):  # its rotary positions are one sample's
        network.eva.patch_drop = Keep(case.registers, keep)
        network(each)
    return [torch.cat(tokens)]


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        np.savetxt(FOLDER / f"{name}.txt", np.stack([some(output) for output in theirs(case)]), fmt="%.6f")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/support/primus_reference.py --write")
    write()
