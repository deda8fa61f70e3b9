"""What the rows share: settings, where lines go, and the rates that this GPU reaches and should reach."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from premed.benchmarks.floors import matmul_rate
from premed.benchmarks.gpu.result import GpuReport, Line, State
from premed.benchmarks.settings import NotTheSame, Settings
from premed.errors import UserError, first_line
from premed.training.device import forget_peak_memory, is_out_of_memory

SHEETS: dict[tuple[str, ...], float] = {
    ("H200", "NVL"): 835,
    ("H200",): 989,
    ("GH200",): 989,
    ("H100", "NVL"): 835,
    ("H100", "PCIe"): 756,
    ("H100",): 989,
    ("A100",): 312,
    ("A30",): 165,
    ("A10",): 125,
    ("L40S",): 362,
    ("L4",): 121,
}
"""TFLOP/s of dense bf16 products by NVIDIA's data sheets, by words of the names that drivers give; the first counts."""


@dataclass
class Context:
    """tell: adds a line, or shows that one changed. rates: FLOP/s of matrix products by precision, once measured."""

    settings: Settings
    report: GpuReport
    changed: Callable[[GpuReport], None]
    rates: dict[torch.dtype, float] = field(default_factory=dict)
    check: bool = False  # whether the row under way says that premed works

    @property
    def device(self) -> torch.device:
        """The CPU, or the GPU that is torch's current one, by its number, as a training has it."""
        if self.settings.device == "cpu":
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def tell(self, line: Line) -> None:
        if not any(line is each for each in self.report.lines):
            self.report.lines.append(line)
        self.changed(self.report)

    def line(self, of: str, state: State, found: str = "", **numbers: float) -> None:
        """Tells a line of the row under way."""
        self.tell(Line(self.report.running, of, state, found, numbers))

    @contextmanager
    def guarded(self, of: str = "") -> Iterator[None]:
        """A context in which what fails is a line, and what is after it goes on; it leaves little memory held.

        A speed that does not fit in the GPU's memory has not failed: it was not measured.
        """
        try:
            yield
        except NotTheSame as error:
            self.line(of, "failed", f"premed and the peer do not do the same work: {error}")
        except Exception as error:
            what = first_line(error)
            unfit = is_out_of_memory(error) and not self.check
            named = what if isinstance(error, UserError) else f"{type(error).__name__}: {what}"
            self.line(of, "not measured" if unfit else "failed", named)
        gc.collect()
        forget_peak_memory()

    def rate(self, precision: torch.dtype) -> float:
        """FLOP/s of matrix products on this device, measured once."""
        if precision not in self.rates:
            self.rates[precision] = matmul_rate(self.settings, precision)
        return self.rates[precision]

    def shares(self, flops: float, seconds: float, precision: torch.dtype) -> dict[str, float]:
        """TFLOP/s of a work, and which share that is of the rates measured here and stated by the data sheet."""
        reached = flops / seconds
        shares = {"tflops": reached / 1e12, "of_products": reached / self.rate(precision)}
        sheet = sheet_rate(self.report.machine.get("gpu", ""))
        return shares | ({"mfu": reached / sheet} if sheet and precision == torch.bfloat16 else {})


def sheet_rate(name: str) -> float | None:
    """FLOP/s of dense bf16 products by the data sheet; None for GPUs that are not listed, and for parts of one."""
    words = name.replace("-", " ").split()
    if "MIG" in words:
        return None
    return next((1e12 * rate for known, rate in SHEETS.items() if {*known} <= {*words}), None)


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """A context in which products and convolutions of fp32 may round their inputs to TF32, or may not."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
