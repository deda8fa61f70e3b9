"""What a run on a GPU found: dataclasses, of which the page, the terminal's lines and the JSON are made."""

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["passed", "failed", "measured", "not measured"]


@dataclass
class Line:
    """One finding of a row. of: which network, in which precision.

    numbers: `samples_per_second` and `step_ms` (medians, with `_low` and `_high`), `tflops`, `mfu` (share of the data
    sheet's rate), `of_products` (share of the rate of matrix products measured here), `data_wait` (share of the time),
    `memory_gib`, `times_as_fast` (as a peer); what was not measured is left out.
    """

    row: str
    of: str
    state: State
    found: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass
class GpuReport:
    """The lines of one run, and the machine that they are of."""

    machine: dict[str, Any]
    short: bool
    minutes: float  # the most that the run may take
    lines: list[Line] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # what each row took
    running: str = ""  # the row under way

    @property
    def failed(self) -> list[str]:
        """The rows of which something failed."""
        return list(dict.fromkeys(line.row for line in self.lines if line.state == "failed"))
