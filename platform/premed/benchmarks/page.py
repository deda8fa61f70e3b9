"""A report as a Markdown page and as lines of a terminal."""

import math
import os
import uuid
from pathlib import Path
from typing import Any

from premed.benchmarks.result import Report, Result, Spread
from premed.benchmarks.rows import ROWS
from premed.errors import UserError
from premed.paths import writing

COLUMNS = ("row", "beside", "premed", "peer", "times as fast", "share of the floor", "at least / wanted")
METHOD = """\
Written by `premed bench`; `premed bench --list` says what each row does. Before a row is timed it is asserted that
premed and the peer do the same work, from the same weights and images. Then both run in turn, a b, b a, a b; "times as
fast" is the median of the pairs' own ratios [quartiles], of {clock}; rows of whole commands beside a script are by the
clock on the wall. The floor is the least time in which this machine
could do the work: its FLOP at the rate of matrix products, or its bytes at that of a copy, measured in the same run;
its share of premed's time says how much there is left to win. Both sides of a row have the settings of malloc that
premed's workers have, but in the row that is about them. Peers' optimizer is `torch.optim.AdamW` as their scripts call
it.
"""


def refuse(path: Path) -> None:
    """Raises UserError if the page cannot be written, before anything is measured."""
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"--to {path}: cannot be written; give a file in a folder that is there")


def write(report: Report, path: Path) -> None:
    """Writes the page: completely, or not at all."""
    write_text(markdown(report), path)


def write_text(text: str, path: Path) -> None:
    """Writes a file: completely, or not at all. Raises UserError if that fails."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with writing(f"--to {path}", "make room, or write it elsewhere"):
            partial.write_text(text)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def markdown(report: Report) -> str:
    """The page."""
    clock = "CPU seconds of the process" if report.machine["clock"] == "cpu" else "seconds on a clock"
    short = "\n**Small sizes (`--short`): they say whether something broke, not how fast premed is.**\n" * report.short
    lines = "".join(table_line(result) for result in report.results)
    rows = dict.fromkeys(result.row for result in report.results)
    texts = "".join(about(name, report) for name in rows)
    head = f"# Speed beside the peers\n\n{METHOD.format(clock=clock)}{short}\n{of_machine(report.machine)}\n"
    return f"{head}\n{table_row(*COLUMNS)}{table_row(*['---'] * len(COLUMNS))}{lines}\n## What each row is\n{texts}"


def of_machine(facts: dict[str, Any]) -> str:
    """The machine in a few sentences."""
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    gpu = f" GPU: {facts['gpu']}." if "gpu" in facts else ""
    first, last = facts["load"][0], facts["load"][-1]
    return (
        f"{facts['cpu']}, {facts['cores']:g} cores, {', '.join(facts['instructions']) or 'no instruction sets known'}, "
        f"{facts['memory_gb']} GB.{gpu} Python {facts['python']}, {packages}. Threads: {facts['threads']}. "
        f"Processes that wanted a core (load average): {first} at the start, {last} at the end.\n"
    )


def table_line(result: Result) -> str:
    if result.not_measured:
        return table_row(result.row, result.peer, "not measured", "", "", "", "")
    share = result.share_of_floor()
    cells = (
        *(result.row, result.peer, seconds(result.seconds()), seconds(result.seconds("theirs"))),
        *(ratio(result.ratio()), "" if share is None else percent(share), target(result)),
    )
    return table_row(*cells)


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def about(name: str, report: Report) -> str:
    """What a row did: sizes, what was asserted, the floor."""
    what = next((row.what for row in ROWS if row.name == name), "")
    minutes = f" ({report.minutes[name]:.1f} minutes)" if name in report.minutes else ""
    lines = [f"\n**{name}**: {what}{minutes}.\n"]
    for result in (each for each in report.results if each.row == name):
        if result.not_measured:
            lines.append(f"- {result.peer}: not measured: {result.not_measured}.\n")
            continue
        other = result.ratio("wall" if result.clock == "cpu" else "cpu")
        by_other = ""
        if other is not None and math.isfinite(other.median):
            by_other = f" By {'the clock' if result.clock == 'cpu' else 'CPU time'}: {ratio(other)}."
        floor = f" Floor: {result.floor.what}, {seconds(result.floor.seconds)}." if result.floor else ""
        num = len(result.ours)
        pairs = f"{num} {'pair' if result.theirs else 'time'}{'s' * (num != 1)}"
        lines.append(
            f"- {result.peer}: {result.unit}; {result.sizes}. Asserted: {result.same}. {pairs}.{by_other}{floor}\n"
        )
    return "".join(lines)


def line(result: Result) -> str:
    """A comparison on one line of the terminal."""
    if result.not_measured:
        return f"{result.row}, {result.peer}: not measured: {result.not_measured}"
    took = f"{seconds(result.seconds())} for {result.unit}"
    share = result.share_of_floor()
    floor = "" if share is None else f"; the floor is {percent(share)} of it"
    if result.theirs:
        took = f"{ratio(result.ratio())} ({took}, {seconds(result.seconds('theirs'))} there)"
    return f"{result.row}, {result.peer}: {took}{floor}"


def ratio(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.2f} × [{spread.low:.2f}, {spread.high:.2f}]"


def percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def target(result: Result) -> str:
    """What the row should reach."""
    wanted = result.target
    return "" if wanted is None else f"{wanted.least:g} / {wanted.wanted:g} {wanted.unit}"
