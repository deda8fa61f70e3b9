"""Rows beside others: those of `premed bench` that compute on a device, each as lines of a GPU's page."""

import torch

from premed.benchmarks import bench
from premed.benchmarks.gpu.context import Context
from premed.benchmarks.gpu.result import Line
from premed.benchmarks.result import Report, Result, Spread
from premed.benchmarks.rows import ROWS, Row

UNETR_BF16 = Row("unetr-bf16", "the same with autocast to bf16", "SelfMedMAE, MONAI", "unetr.step_bf16", gpu=True)
BESIDE = [row for row in (*ROWS, UNETR_BF16) if row.gpu]


def beside(context: Context) -> None:
    """The row of `premed bench` that has the name of the one under way."""
    (row,) = [row for row in BESIDE if row.name == context.report.running]
    lines, report = dict[int, Line](), Report({}, context.settings.short)

    def changed(report: Report, complete: bool) -> None:
        for number, result in enumerate(report.results):
            line = lines.setdefault(number, Line(row.name, "", "measured"))
            update(line, result, context)
            context.tell(line)

    bench.measure(row, context.settings, report, changed)


def update(line: Line, result: Result, context: Context) -> None:
    """What is known of a result so far."""
    line.of = f"beside {result.peer}"
    if result.not_measured:
        line.state = "failed" if result.differs else "not measured"
        line.found = result.not_measured
        return
    if not result.ours:
        line.found = f"{result.sizes}; under way"
        return
    spread = Spread.of([each.wall for each in result.ours])
    num = len(result.ours)
    line.found = f"{result.sizes}; {num} pair{'s' * (num != 1)} of {result.unit}; asserted: {result.same}"
    line.numbers = {
        "samples_per_second": result.samples / spread.median,
        "samples_per_second_low": result.samples / spread.high,
        "samples_per_second_high": result.samples / spread.low,
        "step_ms": 1000 * spread.median,
    }
    if ratio := result.ratio("wall"):
        line.numbers |= {
            "times_as_fast": ratio.median,
            "times_as_fast_low": ratio.low,
            "times_as_fast_high": ratio.high,
        }
    if result.floor is not None:
        line.numbers |= context.shares(result.floor.flops, spread.median, precision_of(result))
    for name, gib in zip(("memory_gib", "peer_memory_gib"), result.memory, strict=False):
        line.numbers[name] = gib


def precision_of(result: Result) -> torch.dtype:
    """In which premed computes: the one whose products the floor names."""
    return torch.bfloat16 if result.floor and "(bfloat16" in result.floor.what else torch.float32
