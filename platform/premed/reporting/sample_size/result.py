"""The result of `premed plan`: what the terminal and the picture are made of and, field by field, the JSON.

Numbers that are undefined are NaN. Hours are device hours, as `premed compare` counts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from premed.reporting.comparison.result import Looks
from premed.reporting.sample_size.components import Components
from premed.reporting.sample_size.power import Design

Bounds = tuple[float, float]


@dataclass(frozen=True)
class ComponentRow:
    """One thing that varies a difference."""

    name: str
    sd: float
    known: str
    """In words: estimated from what, stated, guessed, or confounded with what."""


@dataclass(frozen=True)
class Need:
    """How many of one thing, the others as they are, show the difference that is planned for."""

    what: str
    now: int
    needed: int | None
    """None: no number up to `most` does."""
    cautious: int | None
    """The same if the variances are at their upper limits."""
    most: int
    patients: int | None
    """Test patients that are needed with it; None: as many as now."""
    hours: float
    """That it costs beyond what has been trained."""
    device: str
    note: str


@dataclass(frozen=True)
class FalseClaim:
    """The chance that the true order is the other way round, after these results and nothing else."""

    chance: float
    """For other patients and other seeds, as far as the seeds were varied."""
    patients_only: float
    """The same if only patients were drawn, as published: less than it is."""
    any_pretraining: float
    """For another pre-training, too, where all seeds stand on one: with the guess of their variance."""
    below_margin: float
    """The chance that the true difference in this direction is below --margin; NaN without one."""


@dataclass(frozen=True)
class ForecastPoint:
    """A score or a difference at more labels."""

    times: float
    """The largest share of labels that was used."""
    images: int | None
    value: float
    interval: Bounds


@dataclass(frozen=True)
class Forecast:
    """A power law through shares of the labels: limit - factor · share^-exponent (+ where lower is better)."""

    label: str
    shares: Sequence[float]
    scores: Sequence[float]
    limit: float
    factor: float
    exponent: float
    points: Sequence[ForecastPoint]
    differences: Sequence[ForecastPoint]
    """To the baseline; empty for the baseline itself."""
    refused: str
    """Why there is none; else empty."""


@dataclass(frozen=True)
class ComparisonPlan:
    """An arm against its baseline at one share of the labels; or what was guessed."""

    label: str
    label_fraction: float
    """NaN of guesses."""
    now: Design
    num_seeds: int
    """That the test has, on the side that has fewer."""
    level: float
    """Two-sided, of that test: of the last look alone, where seeds were added until it is decided."""
    looks: Looks | None
    """None: the number of seeds was fixed."""
    is_one_pretraining: bool
    """Whether all seeds stand on one, so that what the test shows is of this one."""
    difference: float
    interval: Bounds
    verdict: str
    """Of `premed compare`."""
    planned: float
    """The difference that is planned for: --margin, or the size of the measured one."""
    components: Components
    rows: Sequence[ComponentRow]
    smallest: float
    """The smallest difference that this design shows with the power."""
    smallest_corrected: float
    """The same where Holm's correction of all comparisons of the table is at its strictest; NaN for one comparison."""
    chance: float
    """Of showing the difference that is planned for, with this design."""
    false_claim: FalseClaim | None
    needs: Sequence[Need]


@dataclass(frozen=True)
class BlockPlan:
    """The comparisons of one task with one head."""

    task: str
    head: str
    part: str
    score: str
    higher_is_better: bool
    num_patients: int
    baseline: str
    comparisons: Sequence[ComparisonPlan]
    forecasts: Sequence[Forecast]
    notes: Sequence[str]
    conclusion: str = ""
    """All of it in one sentence, without a full stop; empty where nothing could be planned."""


@dataclass(frozen=True)
class PlanResult:
    power: float
    level: float
    margin: float | None
    blocks: Sequence[BlockPlan]
    notes: Sequence[str]
