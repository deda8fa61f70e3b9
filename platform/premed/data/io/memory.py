"""CPUs and memory that this process may use, how busy they are, and whether an image fits: asked before anything is
allocated.

A gzip of 2 MB may hold 2 GB of zeros, and a header may ask for a grid of any spacing. The system would grant it, then
swap, or kill this process or another.
"""

import os
from contextlib import suppress
from pathlib import Path

import psutil

from premed.errors import UserError

GROUPS = Path("/sys/fs/cgroup")


def num_cpus() -> float:
    """CPUs that this process may use: of its affinity, and of its container's quota."""
    number = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    quota, period = limit("cpu.max", "cpu/cpu.cfs_quota_us"), limit("cpu/cpu.cfs_period_us") or 100_000.0
    with suppress(OSError, ValueError, IndexError):
        period = float((GROUPS / "cpu.max").read_text().split()[1])
    return min(number, quota / period) if quota else number


def load() -> float:
    """Processes that ran or waited for a CPU, on average over the last minute; 0.0 where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return 0.0


BUSY = 0.5
"""The load of each CPU from which on a machine is called busy: all takes half as long again, or more."""


def busy_words(load: float, cpus: float) -> str:
    """Says that others keep the machine busy; empty where it is idle enough."""
    if load < BUSY * cpus:
        return ""
    return f"others keep it busy now (load {load:.1f} on {cpus:g} CPU{'s' * (cpus != 1)})"


def memory() -> tuple[float, float]:
    """(GB in all, GB free), of the machine or of the container, whichever is less."""
    machine = psutil.virtual_memory()
    total, free = float(machine.total), float(machine.available)
    most = limit("memory.max", "memory/memory.limit_in_bytes")
    used = limit("memory.current", "memory/memory.usage_in_bytes")
    if most and used and most < total:
        total, free = most, min(free, most - used + cached())
    return total / 1e9, free / 1e9


def cached() -> float:
    """Bytes of files, read or noted, that count as used by the container, and that the system gives up when asked."""
    for file in ("memory.stat", "memory/memory.stat"):
        with suppress(OSError, ValueError):
            lines = dict(line.split() for line in (GROUPS / file).read_text().splitlines())
            return sum(float(lines.get(name, 0)) for name in ("inactive_file", "active_file", "slab_reclaimable"))
    return 0.0


def limit(*files: str) -> float | None:
    """The first number in the first of the files of the control group that there is (version 2, version 1)."""
    for file in files:
        with suppress(OSError, ValueError, IndexError):
            number = float((GROUPS / file).read_text().split()[0])  # `max`: none
            return number if number > 0 else None
    return None


LITTLE = 2**28  # bytes that nobody has to ask for


def refuse_beyond_memory(where: object, shape: tuple[int, ...], num_bytes: int) -> None:
    """Raises UserError if an image needs more memory than is free. where: the file or the setting that asks for it."""
    if num_bytes > LITTLE and num_bytes / 1e9 > (free := memory()[1]):
        size = " × ".join(map(str, shape))
        what = f"its {size} values need {num_bytes / 1e9:.1f} GB of memory, and {free:.1f} GB are free"
        raise UserError(f"{where}: {what}; make it smaller, or take a larger machine")
