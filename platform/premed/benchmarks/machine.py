"""The machine that a benchmark ran on, without its name: CPU, instructions, versions, threads, load."""

import os
import platform
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from premed.benchmarks.settings import Settings
from premed.data.io.memory import memory, num_cpus

SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")
"""Instruction sets that matrix products use, as Linux calls them."""
PACKAGES = ("torch", "torchvision", "monai", "timm", "numpy", "scipy")


def describe(settings: Settings) -> dict[str, Any]:
    """What a page says of the machine; `load` is completed when the run ends."""
    facts: dict[str, Any] = {
        "cpu": field_of_cpuinfo("model name") or platform.machine(),
        "cores": num_cpus(),
        "instructions": [name for name in SETS if name in field_of_cpuinfo("flags", "Features").split()],
        "memory_gb": round(memory()[0]),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES if find_spec(name)},
        "threads": settings.threads,
        "clock": settings.clock,
        "load": [load()],
    }
    if settings.device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name(settings.device)
    return facts


def load() -> float:
    """How many processes wanted a core over the last minute, as the system counts them."""
    return round(os.getloadavg()[0], 1)


def field_of_cpuinfo(*names: str) -> str:
    """The first of the fields that /proc/cpuinfo has; empty without one."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return ""
