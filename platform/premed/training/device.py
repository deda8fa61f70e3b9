"""The device and the precision of a training, and how it uses memory."""

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

import torch

from premed.config.settings import Train
from premed.errors import UserError


def device_of(train: Train) -> torch.device:
    if not train.gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("train.gpu: this machine has no usable GPU; set train.gpu=false")
    return torch.device("cuda", torch.cuda.current_device())


def precision_of(train: Train) -> torch.dtype:
    """The dtype of autocast; `auto` is bf16 where it is fast: on GPUs, and on CPUs with AMX tiles."""
    if train.precision == "auto":
        fast = train.gpu or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if train.precision == "bf16" else torch.float32


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Has this process keep the memory that it frees, for its next step, where it trains on CPUs.

    Otherwise glibc gives each large tensor back to the kernel and takes zeroed pages for the next: a quarter to a half
    of the time of a 3D step. On other systems than Linux with glibc it does nothing.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def forget_peak_memory() -> None:
    """Resets the peak memory: a process may run several stages."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what an earlier stage freed and kept
    with suppress(OSError):  # exists on Linux only
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb(device: torch.device) -> float:
    """The peak memory of this process since `forget_peak_memory`: the GPU's if `device` is one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
