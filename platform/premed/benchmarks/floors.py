"""What this machine can do at most, measured in the same run: matrix products, copies; and a work's FLOPs."""

from typing import Any

import torch
from torch import Tensor

from premed.benchmarks.pairs import timed
from premed.benchmarks.result import Floor
from premed.benchmarks.settings import Settings, Work

EDGE, TRIALS = 1024, 12
COPIED = 2**26  # bytes, more than the caches of most CPUs hold


def edge_of(settings: Settings) -> int:
    """Rows and columns of the matrices whose product gives the rate."""
    return EDGE if settings.device == "cpu" else 8 * EDGE


def matmul_rate(settings: Settings, dtype: torch.dtype) -> float:
    """FLOP a second of square matrix products: the best of some trials."""
    edge = edge_of(settings)
    a, b = (torch.randn(edge, edge, device=settings.device).to(dtype) for _ in range(2))
    return 2 * edge**3 / best(settings, lambda: a @ b)


def copy_rate(settings: Settings) -> float:
    """Bytes a second, read and written, of copies: the best of some trials."""
    num = COPIED if settings.device == "cpu" else 16 * COPIED
    source = torch.ones(num, dtype=torch.uint8, device=settings.device)
    target = torch.zeros_like(source)
    return 2 * num / best(settings, lambda: target.copy_(source))


def best(settings: Settings, work: Work) -> float:
    work()
    return min(getattr(timed(work, settings.finish), settings.clock) for _ in range(TRIALS))


def flops_of(work: Work) -> int:
    """FLOP of matrix products, convolutions and attention in `work`; two for each multiplication and addition."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def compute_floor(settings: Settings, flops: float, dtype: torch.dtype) -> Floor:
    """The floor of a work that computes."""
    rate, name = matmul_rate(settings, dtype), str(dtype).removeprefix("torch.")
    return Floor(
        f"{flops / 1e9:.3g} GFLOP at {rate / 1e9:.0f} GFLOP/s ({name} products of {edge_of(settings)}²)",
        flops / rate,
        flops,
    )


def copy_floor(settings: Settings, num_bytes: float, what: str) -> Floor:
    """The floor of a work that moves bytes. what: which bytes they are."""
    rate = copy_rate(settings)
    return Floor(f"{num_bytes / 1e6:.3g} MB ({what}) at {rate / 1e9:.1f} GB/s of a copy", num_bytes / rate)


def step_memory(settings: Settings, work: Work) -> float:
    """GiB that an execution takes on a GPU at most, beyond what is held before: weights, their optimizer's states."""
    settings.finish()
    torch.cuda.reset_peak_memory_stats(settings.device)
    before = torch.cuda.memory_allocated(settings.device)
    work()
    settings.finish()
    return (torch.cuda.max_memory_allocated(settings.device) - before) / 2**30


def relative_error(a: Tensor, b: Tensor) -> float:
    """|a - b| / |a|, of the norms over all numbers."""
    return float((a.double() - b.double()).norm() / a.double().norm().clamp(min=1e-300))


def apart_by(error: float) -> str:
    """How a page says in brackets by how much numbers differ that are equal but for the order of sums."""
    return f"(apart by {error:.0e})" if error else "(bit for bit)"


def joined(tensors: Any) -> Tensor:
    """All numbers of some tensors, in their order."""
    return torch.cat([each.detach().flatten().float().cpu() for each in tensors])
