"""Rows equal and bf16: the losses of a training on the GPU beside those of the same training elsewhere."""

import torch

from premed.benchmarks.gpu.context import Context
from premed.benchmarks.gpu.trainings import STEPS, InMemory, Training, small, train

ROUNDING, LEAST = 10, 1e-5
"""A loss may be so many times as far from fp64's as that of fp32 on the CPU is; so little is always equal."""
BF16 = 0.03  # of the loss of fp32
CPU = torch.device("cpu")


def equal(context: Context) -> None:
    """The losses of 20 steps in fp32 on the CPU and on the GPU, from the same weights and images.

    Rounding grows from step to step. By how much, the CPU says: there the same steps are computed in fp64, too.
    """
    for training in small():
        of = f"{training.name}, fp32"
        with context.guarded(of):
            exact = losses(training, CPU, torch.float64)
            rounding = apart(losses(training, CPU, torch.float32), exact)
            found, allowed = losses(training, context.device, torch.float32), max(ROUNDING * rounding, LEAST)
            off = apart(found, exact)
            context.line(
                of,
                "passed" if off <= allowed else "failed",
                f"losses of {STEPS} steps ({found[0]:.5f} to {found[-1]:.5f}) apart from fp64's on the CPU by at most "
                f"{off:.1e}; fp32's on the CPU are by {rounding:.1e}, allowed are {allowed:.1e}",
                apart=off,
                rounding=rounding,
            )


def bf16(context: Context) -> None:
    """The losses of 20 steps in bf16 beside those in fp32, both on the GPU."""
    for training in small():
        of = f"{training.name}, bf16"
        with context.guarded(of):
            wide, narrow = (losses(training, context.device, each) for each in (torch.float32, torch.bfloat16))
            off = apart(narrow, wide)
            context.line(
                of,
                "passed" if off <= BF16 else "failed",
                f"losses of {STEPS} steps ({narrow[0]:.4f} to {narrow[-1]:.4f}) apart from fp32's ({wide[0]:.4f} to "
                f"{wide[-1]:.4f}) by at most {off:.1e}; allowed are {BF16:.0e}",
                apart=off,
            )


def losses(training: Training, device: torch.device, precision: torch.dtype) -> list[float]:
    """The losses of a training's first steps, which see each image more than once."""
    dtype = torch.float64 if precision == torch.float64 else torch.float32
    source = InMemory(training, 4 * training.batch, device, dtype)
    return train(training.build(device, dtype), source, training.batch, precision=precision)


def apart(losses: list[float], others: list[float]) -> float:
    """The largest difference of two curves' losses, as a share of the other loss; NaN counts as infinite."""
    pairs = zip(losses, others, strict=True)
    shares = [abs(loss - other) / abs(other) for loss, other in pairs]
    return max(share if share == share else float("inf") for share in shares)
