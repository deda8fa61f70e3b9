"""At which two-sided level compare's test decides: 5 %, or less at each look where seeds were added until it is decided
(`seeds: auto`, `sequential`)."""

from collections.abc import Sequence

from premed.reporting.comparison.interim import listed_looks, ordinal
from premed.reporting.comparison.result import Looks
from premed.reporting.formatting import counted
from premed.reporting.sample_size.power import LEVEL
from premed.reporting.sequential import levels


def level_now(looks: Looks | None, alpha: float = LEVEL) -> float:
    """That of the last look that was taken. alpha: of all looks together."""
    return levels(tuple(looks.planned), alpha)[looks.taken - 1] if looks else alpha


def level_at(looks: Looks | None, num_seeds: int) -> float:
    """That of the look at so many seeds; where that is none of those planned, of the last one that was taken."""
    if looks is None or num_seeds not in looks.planned:
        return level_now(looks)
    return levels(tuple(looks.planned))[list(looks.planned).index(num_seeds)]


def look_in_words(looks: Looks, level: float) -> str:
    """`0.57 %, the level of the 1st of 5 looks`."""
    return f"{100 * level:.2g} %, the level of the {ordinal(looks.taken)} of {counted(len(looks.planned), 'look')}"


def planned_in_words(planned: Sequence[int]) -> str:
    """`4, 6, 8 seeds`."""
    return f"{', '.join(listed_looks(planned))} seeds"
