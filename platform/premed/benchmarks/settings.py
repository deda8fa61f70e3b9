"""How rows are measured, and what a row gives to be measured. torch is not imported here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from premed.benchmarks.result import Clock, Floor, Target

Value = TypeVar("Value")
Work = Callable[[], Any]
"""Executed once for each time. What measures itself (another process) returns `Times`."""


class NotTheSame(Exception):
    """premed and a peer do not do the same work; one line says in what they differ."""


@dataclass(frozen=True)
class Settings:
    """short: small sizes of the same code. device: where the networks' rows compute. peers: folders of checkouts."""

    short: bool = False
    pairs: int = 7
    threads: int = 1
    device: str = "cpu"
    peers: Mapping[str, Path] = field(default_factory=dict)

    @property
    def clock(self) -> Clock:
        """What times are compared: CPU seconds on one CPU thread, where others may use the machine, too."""
        return "cpu" if self.device == "cpu" and self.threads == 1 else "wall"

    def size(self, full: Value, short: Value) -> Value:
        return short if self.short else full

    def batch(self, batch: int, on_gpu: int) -> int:
        """The batch of a row: at its full size a GPU takes a larger one."""
        return batch if self.short or self.device == "cpu" else on_gpu

    def finish(self) -> None:
        """Waits for what the device still computes."""
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Comparison:
    """One row beside one peer, after it was asserted that both do the same work.

    unit: of what one execution is. floor: measures the rate and returns the floor. most: at most so many pairs.
    samples: images or volumes in one execution. clock: what is compared, where it is not `Settings.clock`.
    """

    peer: str
    ours: Work
    theirs: Work | None
    unit: str
    sizes: str
    same: str
    floor: Callable[[], Floor] | None = None
    target: Target | None = None
    most: int | None = None
    samples: int = 1
    clock: Clock | None = None


@dataclass(frozen=True)
class NotMeasured:
    """One row beside one peer that cannot be measured here."""

    peer: str
    why: str
