"""What a benchmark found: dataclasses, of which the page, the terminal's lines and the JSON are made."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Clock = Literal["cpu", "wall"]


@dataclass(frozen=True)
class Times:
    """Seconds that one execution took: of the process's CPU time, and of a clock on the wall."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one number; quartiles are interpolated linearly."""
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        return cls(median, low, high)


@dataclass(frozen=True)
class Floor:
    """The least time in which this machine could do a row's work, at a rate measured in the same run."""

    what: str
    seconds: float
    flops: float = 0.0  # of the work, where it computes


@dataclass(frozen=True)
class Target:
    """What a row should reach at its full size: a ratio (`×`), or seconds."""

    least: float
    wanted: float
    unit: Literal["×", "s"] = "×"


@dataclass
class Result:
    """One row beside one peer. The i-th of `ours` and of `theirs` are a pair: they ran one after the other."""

    row: str
    peer: str
    clock: Clock = "cpu"
    ours: list[Times] = field(default_factory=list)
    theirs: list[Times] = field(default_factory=list)
    unit: str = ""  # of what the times are: a step, 64 views
    samples: int = 1  # images or volumes in one of these
    sizes: str = ""
    same: str = ""  # what was asserted before anything was timed
    floor: Floor | None = None
    target: Target | None = None
    memory: list[float] = field(default_factory=list)  # GiB that a GPU needs beyond weights and states: ours, theirs
    not_measured: str = ""  # why
    differs: bool = False  # whether premed and the peer do not do the same work, or one of them failed

    def ratio(self, clock: Clock | None = None) -> Spread | None:
        """How many times as long as premed the peer takes: over the pairs' own ratios. None without a pair."""
        pairs = list(zip(self.ours, self.theirs, strict=False))
        clock = clock or self.clock
        return Spread.of([getattr(b, clock) / getattr(a, clock) for a, b in pairs]) if pairs else None

    def seconds(self, side: Literal["ours", "theirs"] = "ours", clock: Clock | None = None) -> float | None:
        """The median time of premed's, or of the peer's, executions."""
        times = [getattr(each, clock or self.clock) for each in getattr(self, side)]
        return Spread.of(times).median if times else None

    def share_of_floor(self) -> float | None:
        """The floor's share of the time that premed takes: 1 is as fast as this machine can be."""
        seconds = self.seconds()
        return self.floor.seconds / seconds if self.floor and seconds else None

    def numbers(self) -> dict[str, Any]:
        """What is computed from the times, for the JSON."""
        return {
            "ratio": self.ratio(),
            "ratio_cpu": self.ratio("cpu"),
            "ratio_wall": self.ratio("wall"),
            "seconds": self.seconds(),
            "peer_seconds": self.seconds("theirs"),
            "share_of_floor": self.share_of_floor(),
        }


@dataclass
class Report:
    """The results of one run, and the machine that they are of."""

    machine: dict[str, Any]
    short: bool
    results: list[Result] = field(default_factory=list)
    minutes: dict[str, float] = field(default_factory=dict)  # what each row took, its assertions included

    @property
    def differing(self) -> list[str]:
        """The rows in which premed and a peer do not do the same work, or one of them failed."""
        return list(dict.fromkeys(result.row for result in self.results if result.differs))
