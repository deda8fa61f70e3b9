"""A report as a Markdown page, as JSON and as lines of a terminal."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from premed.benchmarks import page
from premed.benchmarks.gpu.result import GpuReport, Line
from premed.benchmarks.gpu.rows import ROWS

CHECKS = ("row", "of", "state", "found")
SPEEDS = (
    *("row", "of", "samples a second", "ms a step", "MFU", "of products", "data wait", "memory, GiB"),
    *("times as fast", "state"),
)
METHOD = """\
Written by `premed bench --gpu` after each line. A check says whether premed does on the GPU what it does on a CPU.
Speeds are medians [quartiles] by the clock, after the GPU has finished. MFU is the FLOP a second of matrix products,
convolutions and attention as a share of what the GPU's data sheet states for dense bf16; "of products" is the share of
what a matrix product in the same precision reached in this run. Data wait is the share of the time in which the loop
waited for a batch. Memory is the most that tensors took; beside a peer it is that of a step beyond weights and the
optimizer's states, premed's / the peer's. fp32 is not rounded to TF32 here, on either side.
"""


def write(report: GpuReport, path: Path) -> None:
    """Writes the page, and its JSON beside it: each completely, or not at all."""
    page.write_text(markdown(report), path)
    page.write_text(json.dumps(as_json(report), allow_nan=False, indent=1) + "\n", json_path(path))


def json_path(path: Path) -> Path:
    return path.with_suffix(".json")


def as_json(report: GpuReport) -> dict[str, Any]:
    """The report as JSON holds it: numbers that are not finite are null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return finite(asdict(report) | {"failed": report.failed})


def markdown(report: GpuReport) -> str:
    """The page."""
    checks = {row.name for row in ROWS if row.check}
    short = "\n**Small sizes (`--short`): they say whether it works, not how fast.**\n" * report.short
    running = f"\nUnder way: {report.running}.\n" if report.running else ""
    tables = ""
    for title, columns, cells, wanted in (
        ("Does it work?", CHECKS, check_cells, [line for line in report.lines if line.row in checks]),
        (
            "How fast is it?",
            SPEEDS,
            speed_cells,
            [line for line in report.lines if line.row not in checks and shown(line)],
        ),
    ):
        lines = "".join(page.table_row(*cells(line)) for line in wanted)
        tables += f"\n## {title}\n\n{page.table_row(*columns)}{page.table_row(*['---'] * len(columns))}{lines}"
    return (
        f"# premed on a GPU\n\n{METHOD}{short}\n{of_machine(report)}{running}{tables}"
        f"\n## What each speed is of\n\n{''.join(about(row.name, report) for row in ROWS if row.name not in checks)}"
    )


def shown(line: Line) -> bool:
    """Whether a speed has a row of the table: it has a number there, or should have one."""
    return line.state != "measured" or "step_ms" in line.numbers


def of_machine(report: GpuReport) -> str:
    """The machine, and how much time there was."""
    facts = report.machine
    gpu = ""
    if "gpu_memory_gib" in facts:
        gpu = f"GPU memory: {facts['gpu_memory_gib']} GiB; CUDA {facts['cuda']}, cuDNN {facts['cudnn']}. "
    took = sum(report.seconds.values()) / 60
    return f"{page.of_machine(facts)}{gpu}Time: {took:.1f} of {report.minutes:g} minutes.\n"


def check_cells(line: Line) -> tuple[str, ...]:
    return line.row, line.of, line.state, one_line(line.found)


def speed_cells(line: Line) -> tuple[str, ...]:
    numbers = line.numbers
    memory = " / ".join(f"{numbers[name]:.2f}" for name in ("memory_gib", "peer_memory_gib") if name in numbers)
    shares = [f"{numbers[name]:.1%}" if name in numbers else "" for name in ("mfu", "of_products", "data_wait")]
    rate, milliseconds, times = (spread(numbers, name) for name in ("samples_per_second", "step_ms", "times_as_fast"))
    return line.row, line.of, rate, milliseconds, *shares, memory, times, line.state


def spread(numbers: dict[str, float], name: str) -> str:
    """A median with its quartiles, where there are any."""
    if name not in numbers:
        return ""
    low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
    quartiles = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{numbers[name]:.4g}{quartiles}"


def about(name: str, report: GpuReport) -> str:
    """What the lines of a row are of, or why they were not measured."""
    what = next(row.what for row in ROWS if row.name == name)
    lines = [line for line in report.lines if line.row == name]
    if not lines:
        return ""
    took = f" ({report.seconds[name]:.0f} s)" if name in report.seconds else ""
    found = "".join(f"- {line.of + ': ' if line.of else ''}{one_line(line.found)}\n" for line in lines)
    return f"**{name}**: {what}{took}.\n\n{found}\n"


def one_line(text: str) -> str:
    """Without what would end a table's cell."""
    return " ".join(text.split()).replace("|", "/")


def line(found: Line) -> str:
    """A line on one line of the terminal."""
    numbers = found.numbers
    parts = [f"{numbers['samples_per_second']:.4g} samples/s"] if "samples_per_second" in numbers else []
    parts += [
        f"{numbers[name]:.1%} {title}" for name, title in (("mfu", "MFU"), ("data_wait", "wait")) if name in numbers
    ]
    parts += [f"{numbers['times_as_fast']:.2f} times as fast"] if "times_as_fast" in numbers else []
    of = f", {found.of}" if found.of else ""
    return f"{found.row}{of}: {found.state}: {'; '.join([*parts, one_line(found.found)])}"
