"""Measures the rows one after the other until the time is up; what fails is a line, and the next row is measured."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from premed.benchmarks import bench, machine
from premed.benchmarks.gpu.context import Context, tf32
from premed.benchmarks.gpu.result import GpuReport, Line
from premed.benchmarks.gpu.rows import GpuRow
from premed.benchmarks.settings import Settings
from premed.errors import UserError

GRACE = 15.0  # seconds after the deadline in which what is under way may end by itself
WORKSPACES = ":4096:8"
"""What cuBLAS needs for deterministic products; on Hopper it is as large as torch's own choice."""


class TimeUp(BaseException):
    """The deadline has come. A BaseException, so that no `except Exception` takes it for a row's failure."""


def settle(settings: Settings) -> None:
    """Prepares this process, before anything is computed. Raises UserError if there is no GPU to measure."""
    if settings.device != "cpu" and not torch.cuda.is_available():
        raise UserError("--gpu: torch sees no GPU here; `premed doctor` says why")
    if settings.device != "cpu":
        torch.cuda.set_device(torch.device(settings.device).index or 0)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACES)
    bench.settle(settings)


def run(settings: Settings, rows: Sequence[GpuRow], minutes: float, changed: Callable[[GpuReport], None]) -> GpuReport:
    """Measures the rows. changed: called with the report so far, after each line. Products of fp32 are not TF32's."""
    report = GpuReport(describe(settings), settings.short, minutes)
    context, ends = Context(settings, report, changed), time.monotonic() + 60 * minutes
    waiting = list(rows)
    try:
        with deadline(60 * minutes), tf32(False):
            while waiting:
                row = waiting[0]
                left = ends - time.monotonic()
                if left < row.least and not settings.short:
                    leave_out(row, context, f"it needs about {row.least:.0f} s, and {left:.0f} s are left")
                else:
                    measure(row, context)
                waiting.pop(0)
    except TimeUp:
        for number, row in enumerate(waiting):
            leave_out(row, context, "the time was up while it was measured" if number == 0 else "the time was up")
    report.running = ""
    changed(report)
    return report


def describe(settings: Settings) -> dict[str, Any]:
    """The machine; of the GPU also its memory, and the versions that its speed depends on."""
    facts = machine.describe(settings)
    if settings.device != "cpu":
        properties = torch.cuda.get_device_properties(settings.device)
        facts |= {
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def measure(row: GpuRow, context: Context) -> None:
    """Tells the row's lines, and one more if it fails."""
    report, began = context.report, time.monotonic()
    report.running = row.name
    context.changed(report)
    context.check = row.check
    try:
        with warnings.catch_warnings(), context.guarded():
            warnings.simplefilter("ignore")  # peers' own, of what they will no longer have
            row.measure(context)
    finally:
        report.seconds[row.name] = time.monotonic() - began


def leave_out(row: GpuRow, context: Context, why: str) -> None:
    """A check that was not made has failed to say that premed works; a speed that was not measured is just missing."""
    context.tell(Line(row.name, "", "failed" if row.check else "not measured", why))


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """A context that raises TimeUp in the main thread after so many seconds.

    What does not end then, a call into a library that hangs, say, ends with the process GRACE seconds later: what was
    measured is on disk.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = threading.Timer(seconds + GRACE, end_process)
    last.daemon = True

    def time_up(number: int, frame: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, time_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    last.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        last.cancel()


def end_process() -> None:
    print("premed: the time is up, and a row does not end; what was measured is written", flush=True)
    os._exit(1)
