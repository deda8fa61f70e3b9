"""Processes on this machine that open or draw images: they need no network, no Ray and no MLflow."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from premed.data.io.memory import num_cpus
from premed.errors import UserError

MOMENT = 0.5  # seconds in which a signal reaches all processes of a terminal


@contextmanager
def process_map() -> Iterator[Callable[..., Iterable]]:
    """Yields a `map` over as many processes as there are CPUs. Raises UserError if one of them is killed."""
    pool = ProcessPoolExecutor(max(int(num_cpus()), 1), multiprocessing.get_context("spawn"), initializer=prepare)
    try:
        yield pool.map
    except BrokenProcessPool:
        raise_interrupt()
        what = "a process that opened images was killed, most likely because memory ran out"
        raise UserError(f"{what}; end other programs, or take a machine with more memory") from None
    finally:
        pool.shutdown(cancel_futures=True)


def raise_interrupt() -> None:
    """Raises KeyboardInterrupt if that is why the processes ended: on a busy machine they may hear of Ctrl-C first."""
    try:
        time.sleep(MOMENT)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None


def prepare() -> None:
    """In a new process: Ctrl-C, which reaches all processes of a terminal, ends it without a traceback; and it ends
    with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
