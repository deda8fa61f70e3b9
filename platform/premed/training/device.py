"""The device and the precision of a training, and how it uses memory."""

import ctypes
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from premed.config.settings import Train
from premed.data.io.memory import memory
from premed.errors import UserError


def device_of(train: Train) -> torch.device:
    if not train.gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("train.gpu: this machine has no usable GPU; set train.gpu=false")
    return torch.device("cuda", torch.cuda.current_device())


def precision_of(train: Train) -> torch.dtype:
    """The dtype of autocast; `auto` is bf16 where it is fast: on GPUs, and on CPUs that multiply in it."""
    if train.precision == "auto":
        return torch.bfloat16 if train.gpu or has_bf16_products() else torch.float32
    return torch.bfloat16 if train.precision == "bf16" else torch.float32


def has_bf16_products() -> bool:
    """Whether this CPU multiplies bf16: by AMX tiles (Intel since 2023) or AVX512_BF16 (AMD since Zen 4).

    With the second a step of MAE 2-D took two fifths of fp32's time, of UNETR and of a ResEnc three fifths.
    """
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MADV_HUGEPAGE, HUGE_PAGE = 14, 2**21  # of Linux' mman.h; bytes


def keep_freed_memory() -> None:
    """Has this process keep the memory that it frees, in huge pages, for its next step, where it trains on CPUs.

    Otherwise glibc gives each large tensor back to the kernel and takes zeroed pages for the next: a quarter to a half
    of the time of a 3D step. On other systems than Linux with glibc it does nothing. Before a process starts,
    `execution.connection.MALLOC` does the same, for threads, too.
    """
    with suppress(OSError, AttributeError, ValueError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, -1)  # the largest: everything is of the heap, which is never trimmed
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        if addresses_are_free():
            reserve_huge_pages(libc, round(memory()[0] * 1e9 / 2))


def addresses_are_free() -> bool:
    """Whether addresses that are not used count against no limit: else one worker's would be missed by the others."""
    unlimited = resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    return unlimited and Path("/proc/sys/vm/overcommit_memory").read_text().strip() != "2"


def reserve_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Lets the heap grow by addresses of which the kernel makes huge pages once they are used, without using them."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if block := libc.malloc(size):
        start = -(-block // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(start, (block + size - start) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
        libc.free(block)


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


@contextmanager
def explain_out_of_memory(device: torch.device, sizes: Sequence[int], couples_batch: bool) -> Iterator[None]:
    """A context that raises UserError, with the mend, where memory does not suffice for a step.

    sizes: images of each micro-batch of the step. couples_batch: see `Objective.couples_batch`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise UserError(out_of_memory(device, sizes, couples_batch)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, or whether the error tells that; on CPUs torch has no exception of its own."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def out_of_memory(device: torch.device, sizes: Sequence[int], couples_batch: bool) -> str:
    """What to do where a step does not fit in memory, and how much there is."""
    where = "this machine's memory"
    if device.type == "cuda":
        free, total = (each / 2**30 for each in torch.cuda.mem_get_info(device))
        others = max(total - free - torch.cuda.memory_reserved(device) / 2**30, 0.0)
        where = f"the GPU's memory ({total:.3g} GiB, of which {others:.2g} GiB are not this training's)"
    num = max(sizes)
    what = f"train.accumulate: {where} does not hold a step of {num} image{'s' * (num > 1)} at a time"
    if couples_batch:
        return f"{what}, and the loss couples them; set a smaller batch or roi"
    if num == 1:
        return f"{what}; set a smaller roi or a smaller network"
    return f"{what}; set train.accumulate={2 * len(sizes)}, which trains the same in smaller parts"
