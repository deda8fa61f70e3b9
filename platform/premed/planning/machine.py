"""What the machine has: cores, memory, GPUs."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """Cores and GiB of memory that this process may use, and the GiB of each GPU."""

    cores: int
    memory: float
    gpus: tuple[float, ...] = ()

    def __str__(self) -> str:
        cores = f"{self.cores} CPU core{'s' * (self.cores > 1)}, {self.memory:.0f} GiB of memory"
        gpus = (
            f"{len(self.gpus)} GPU{'s' * (len(self.gpus) > 1)} of {min(self.gpus):.0f} GiB" if self.gpus else "no GPU"
        )
        return f"{cores}, {gpus}"


def this_machine() -> Machine:
    """Returns what this process may use, within a container's limits."""
    import torch

    process = psutil.Process()
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
    with suppress(OSError, ValueError):  # "max 100000" without a limit
        quota, period = map(int, (CGROUP / "cpu.max").read_text().split())
        cores = min(cores, max(1, quota // period))
    memory = psutil.virtual_memory().total
    with suppress(OSError, ValueError):
        memory = min(memory, int((CGROUP / "memory.max").read_text()))
    gpus = [torch.cuda.get_device_properties(i).total_memory / GIB for i in range(torch.cuda.device_count())]
    return Machine(cores, memory / GIB, tuple(gpus) if torch.cuda.is_available() else ())
