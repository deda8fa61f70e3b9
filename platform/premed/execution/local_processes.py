"""A function in processes of their own on this machine: ranks of process groups, as Ray Train's workers are, without
Ray."""

import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from premed.data.processes import prepare
from premed.errors import UserError
from premed.execution.network_interface import choose_interface

REMEDY = "make smaller task.roi, the batch or the encoder; or raise train.accumulate"
_barrier: Any = None  # in one of these processes: where all of them wait


def run_processes(
    what: str, function: Callable[..., Any], *args: Any, ranks: int = 1, groups: int = 1, gpu: bool = False
) -> list[Any]:
    """The results of `function(*args, together)` in each rank of `groups` process groups of so many ranks.

    together: returns when all these processes have called it as often. gpu: each takes a GPU, in turn. Raises the
    first error of any of them, as a UserError which begins with `what` if there is not memory enough.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's advice, in these processes alone
    number, context = ranks * groups, multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(number, context, initializer=begin, initargs=(context.Barrier(number),)) as pool,
    ):
        futures = [
            pool.submit(as_rank, i % ranks, ranks, Path(folder) / f"{i // ranks}", i if gpu else None, function, args)
            for i in range(number)
        ]
        wait(futures, return_when=FIRST_EXCEPTION)
        if error := first_error(futures):
            for process in set(multiprocessing.active_children()) - before:
                process.kill()  # they wait for the one that failed
            raise in_one_line(what, error) from None
        return [future.result() for future in futures]


def begin(barrier: Any) -> None:
    """In a new process, before all else."""
    global _barrier
    _barrier = barrier
    warnings.simplefilter("ignore")  # what warns here warns each training
    prepare()


def as_rank(
    rank: int, ranks: int, meeting: Path, gpu: int | None, function: Callable[..., Any], args: Sequence[Any]
) -> Any:
    """In one of the processes: joins its group, and calls the function. meeting: a file, by which the ranks meet."""
    if gpu is not None:
        torch.cuda.set_device(gpu % torch.cuda.device_count())
    if ranks == 1:
        return function(*args, _barrier.wait)
    if gpu is None:
        choose_interface("127.0.0.1", several_nodes=False)
    backend = "gloo" if gpu is None else "nccl"
    dist.init_process_group(backend, init_method=meeting.as_uri(), rank=rank, world_size=ranks)
    result = function(*args, _barrier.wait)
    dist.destroy_process_group()
    return result


def first_error(futures: Sequence[Future]) -> BaseException | None:
    """Of those that have ended: a UserError if there is one, since others follow from it."""
    errors = [error for future in futures if future.done() and (error := future.exception())]
    return next((error for error in errors if isinstance(error, UserError)), errors[0] if errors else None)


def in_one_line(what: str, error: BaseException) -> BaseException:
    """The same error, or in one line that memory was not enough."""
    if isinstance(error, BrokenProcessPool):
        reason = "its process was killed, most likely because memory ran out"
        return UserError(f"{what}: does not fit: {reason}; {REMEDY}")
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(f"{what}: does not fit into the GPU's memory; {REMEDY}")
    return error
