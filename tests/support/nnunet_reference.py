"""What dynamic-network-architectures' ResEnc U-Net answers, with nnU-Net's settings and weights made by a formula.

The package asks for an older timm than premed has, so its answers are kept in tests/golden/nnunet. To write them anew,
in an environment that has the package, torch and numpy (they were written with 0.4.4):

    python tests/support/nnunet_reference.py --write
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "nnunet"
NUM_VALUES = 40  # of each output, evenly spaced
NUM_CLASSES, CHANNELS = 3, 2


class Case(NamedTuple):
    roi: tuple[int, ...]
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


CASES = {
    "2d": Case((32, 48), (8, 16, 24, 24), (1, 3, 2, 2), ((2, 2),) * 3),
    "3d": Case((16, 24, 16), (8, 16, 24, 24), (1, 2, 2, 1), ((2, 2, 2),) * 3),
    "anisotropic": Case((16, 16, 12), (8, 16, 24), (1, 2, 1), ((2, 2, 1), (2, 2, 2))),
}


def wave(name: str, shape: Sequence[int]) -> Tensor:
    """Numbers between -1 and 1 that the name determines."""
    places = np.arange(np.prod(shape), dtype=np.float64)
    return torch.from_numpy(np.sin(places * (0.5 + crc32(name.encode()) % 997 / 997) + places**2 / 7)).view(*shape)


@torch.no_grad()
def fill(parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Sets weights to waves of such a size that outputs neither vanish nor grow; a norm's about 1."""
    for name, parameter in parameters:
        values = wave(name, parameter.shape)
        if parameter.ndim > 1:
            values = values * (4 / np.prod(parameter.shape[1:])) ** 0.5
        else:
            values = 1 + 0.3 * values if name.endswith("norm.weight") else 0.3 * values
        parameter.copy_(values)


def image(case: Case) -> Tensor:
    return wave("image", (2, CHANNELS, *case.roi)).float()


def some(output: Tensor) -> np.ndarray:
    values = output.detach().double().flatten().numpy()
    return values[np.linspace(0, len(values) - 1, NUM_VALUES).astype(int)]


def read(name: str) -> np.ndarray:
    """Values [outputs, NUM_VALUES]: of the encoder's stages, fine to coarse, then of the logits, fine to coarse."""
    return np.loadtxt(FOLDER / f"{name}.txt")


def theirs(case: Case) -> list[Tensor]:
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet  # type: ignore[import-not-found]

    dims = len(case.roi)
    settings: dict[str, Any] = {
        "n_stages": len(case.widths),
        "features_per_stage": case.widths,
        "conv_op": nn.Conv2d if dims == 2 else nn.Conv3d,
        "kernel_sizes": 3,
        "strides": [(1,) * dims, *case.strides],
        "n_blocks_per_stage": case.blocks,
        "n_conv_per_stage_decoder": 1,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }
    network = ResidualEncoderUNet(CHANNELS, num_classes=NUM_CLASSES, **settings)
    fill(network.named_parameters(remove_duplicate=True))  # `conv` and `norm` come before `all_modules`, their double
    return [*network.encoder(image(case)), *network(image(case))]


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        np.savetxt(FOLDER / f"{name}.txt", np.stack([some(output) for output in theirs(case)]), fmt="%.6f")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/support/nnunet_reference.py --write")
    write()
