"""The rows of `premed bench --gpu`, in the order in which they run. Importing this imports none of them."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from premed.errors import UserError

if TYPE_CHECKING:
    from premed.benchmarks.gpu.context import Context


class GpuRow(NamedTuple):
    """One row. least: seconds without which it is left out. check: whether it says that premed works, not how fast."""

    name: str
    what: str
    where: str  # module and function
    least: float
    check: bool = False

    def measure(self, context: "Context") -> None:
        """Tells the row's lines."""
        module, _, function = self.where.partition(".")
        call: Callable[[Context], None] = getattr(import_module(f"premed.benchmarks.gpu.{module}"), function)
        call(context)


ROWS = (
    GpuRow("rates", "matrix products and copies, of which other rows' shares are", "device_rows.rates", 5),
    GpuRow("equal", "losses of 20 steps in fp32 beside the CPU's", "equality.equal", 20, check=True),
    GpuRow("bf16", "losses of 20 steps in bf16 beside fp32's", "equality.bf16", 5, check=True),
    GpuRow("resume", "a training resumed from a checkpoint beside one never stopped", "resume.resume", 15, check=True),
    GpuRow("views", "views of images that stay on the device beside the CPU's", "resident.views", 20, check=True),
    GpuRow("memory", "a step that does not fit, and what is told", "memory.memory", 15, check=True),
    GpuRow("syncs", "whether a step waits for the GPU", "device_rows.syncs", 10, check=True),
    GpuRow("training", "trainings from one batch, files, and images on the device", "throughput.training", 60),
    GpuRow("mae-3d-bf16", "a training step of MAE on volumes, bf16", "beside.beside", 25),
    GpuRow("mae-2d-bf16", "a training step of MAE on pictures, bf16", "beside.beside", 25),
    GpuRow("unetr-bf16", "a fine-tuning step of UNETR, bf16", "beside.beside", 25),
    GpuRow("sliding-window", "the logits of a volume by windows", "beside.beside", 25),
    GpuRow("mae-3d", "a training step of MAE on volumes, fp32", "beside.beside", 25),
    GpuRow("mae-2d", "a training step of MAE on pictures, fp32", "beside.beside", 25),
    GpuRow("unetr", "a fine-tuning step of UNETR, fp32", "beside.beside", 25),
    GpuRow("deterministic", "what deterministic algorithms cost", "device_rows.deterministic_cost", 20),
    GpuRow("compile", "what train.compile gains", "device_rows.compiled", 120),
)


def chosen(names: Sequence[str]) -> list[GpuRow]:
    """The rows by these names, in the order of ROWS; all without a name. Raises UserError for an unknown one."""
    known = [row.name for row in ROWS]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"bench: --gpu has no row {unknown[0]}; there are {', '.join(known)}")
    return [row for row in ROWS if not names or row.name in names]
