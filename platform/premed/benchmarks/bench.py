"""Measures rows one after the other, and tells after each pair what there is so far."""

import gc
import time
import warnings
from collections.abc import Callable, Sequence

import torch

from premed.benchmarks import machine
from premed.benchmarks.floors import step_memory
from premed.benchmarks.pairs import interleaved
from premed.benchmarks.result import Report, Result, Times
from premed.benchmarks.rows import Row
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.errors import UserError, first_line
from premed.training.device import forget_peak_memory, keep_freed_memory


def settle(settings: Settings) -> None:
    """Gives this process the threads, and the settings of malloc that premed's workers have: to both sides of a row."""
    torch.set_num_threads(settings.threads)
    if settings.device == "cpu":
        keep_freed_memory()


def run(settings: Settings, rows: Sequence[Row], changed: Callable[[Report, bool], None]) -> Report:
    """Measures the rows. changed: called with the report so far, and whether a comparison is complete."""
    report = Report(machine.describe(settings), settings.short)
    report.machine["load"].append(machine.load())
    for row in rows:
        began = time.monotonic()
        with warnings.catch_warnings(action="ignore"):  # peers' own, of what they will no longer have
            measure(row, settings, report, changed)
        report.minutes[row.name] = (time.monotonic() - began) / 60
        report.machine["load"][-1] = machine.load()
        changed(report, False)
    return report


def measure(row: Row, settings: Settings, report: Report, changed: Callable[[Report, bool], None]) -> None:
    """Adds the results of a row to the report, pair by pair."""
    try:
        for comparison in row.comparisons(settings):
            if isinstance(comparison, NotMeasured):
                report.results.append(Result(row.name, comparison.peer, not_measured=comparison.why))
            else:
                report.results.append(result_of(row, comparison, settings))
                add_pairs(report.results[-1], comparison, settings, lambda: changed(report, False))
            changed(report, True)
            del comparison  # two networks with what their optimizers hold, before the next ones are built
            gc.collect()
            forget_peak_memory()
    except Exception as error:  # of a peer's code, or ours: the other rows are measured all the same
        differs = not isinstance(error, UserError)
        report.results.append(Result(row.name, row.peers, not_measured=why_not(error), differs=differs))
        changed(report, True)


def why_not(error: Exception) -> str:
    """Why a row could not be measured, in a line."""
    if isinstance(error, NotTheSame):
        return f"premed and the peer do not do the same work: {error}"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def result_of(row: Row, comparison: Comparison, settings: Settings) -> Result:
    """A result without times yet; its floor's rate is measured now."""
    return Result(
        row.name,
        comparison.peer,
        comparison.clock or settings.clock,
        unit=comparison.unit,
        sizes=comparison.sizes,
        same=comparison.same,
        floor=comparison.floor() if comparison.floor else None,
        target=comparison.target if not settings.short else None,
        samples=comparison.samples,
    )


def add_pairs(result: Result, comparison: Comparison, settings: Settings, changed: Callable[[], None]) -> None:
    def add(ours: Times, theirs: Times | None) -> None:
        result.ours.append(ours)
        if theirs is not None:
            result.theirs.append(theirs)
        changed()

    num = min(settings.pairs, comparison.most or settings.pairs)
    interleaved(comparison.ours, comparison.theirs, num, add, settings.finish)
    if settings.device != "cpu":
        works = (comparison.ours, comparison.theirs)
        result.memory = [step_memory(settings, work) for work in works if work is not None]
