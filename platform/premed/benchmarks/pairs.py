"""Times of two works in turn, so that what else the machine does meets both."""

import time
from collections.abc import Callable

from premed.benchmarks.result import Times
from premed.benchmarks.settings import Work


def timed(work: Work, finish: Callable[[], None] = lambda: None) -> Times:
    """Executes `work` once. finish: waits for what a device still computes."""
    finish()
    wall, cpu = time.perf_counter(), time.process_time()
    own = work()
    finish()
    times = Times(time.process_time() - cpu, time.perf_counter() - wall)
    return own if isinstance(own, Times) else times


def interleaved(
    ours: Work,
    theirs: Work | None,
    num: int,
    on_pair: Callable[[Times, Times | None], None],
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Executes `num` pairs, a b, b a, a b, …, and calls `on_pair` after each. theirs: None: `ours` alone."""
    for i in range(num):
        if theirs is None:
            on_pair(timed(ours, finish), None)
        elif i % 2:
            second = timed(theirs, finish)
            on_pair(timed(ours, finish), second)
        else:
            on_pair(timed(ours, finish), timed(theirs, finish))
