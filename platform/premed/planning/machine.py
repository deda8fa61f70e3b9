"""What the machine has: cores, memory, GPUs."""

from dataclasses import dataclass

from premed.data.io.memory import load, memory, num_cpus

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """Cores and GiB of memory that this process may use, the GiB of each GPU, and how busy it is."""

    cores: int
    memory: float
    gpus: tuple[float, ...] = ()
    load: float = 0.0
    """Of other processes, before this one began to compute."""

    def __str__(self) -> str:
        cores = f"{self.cores} CPU core{'s' * (self.cores > 1)}, {self.memory:.0f} GiB of memory"
        gpus = (
            f"{len(self.gpus)} GPU{'s' * (len(self.gpus) > 1)} of {min(self.gpus):.0f} GiB" if self.gpus else "no GPU"
        )
        return f"{cores}, {gpus}"


def this_machine() -> Machine:
    """Returns what this process may use, within a container's limits."""
    import torch

    gpus = [torch.cuda.get_device_properties(i).total_memory / GIB for i in range(torch.cuda.device_count())]
    found = tuple(gpus) if torch.cuda.is_available() else ()
    return Machine(max(1, int(num_cpus())), memory()[0] * 1e9 / GIB, found, load())
