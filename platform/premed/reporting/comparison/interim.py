"""Comparisons whose seeds were added until they were decided (`seeds: auto`): which seeds count, and what is noted.

The experiments' own runs say so in tags. Seeds count up to the last look that both arms have complete; what was trained
beyond it, or without the design, is left out of the difference.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from premed.config.decide import Decide
from premed.reporting.comparison.grouping import Arm, Pairing
from premed.reporting.comparison.result import Difference, Looks, looks_of
from premed.reporting.comparison.selection import DESIGN, ExperimentRun
from premed.reporting.formatting import counted
from premed.reporting.sequential import last_look, levels, repeated_p
from premed.reporting.statistics import SEEDS

"""The tag with `decide` as JSON."""
LOOKS = "premed.looks."
"""Prefix of a tag whose rest are the planned looks: a run has one for each design that it was looked at in."""

APART = "less than"
"""After `not separable, `: the verdict on a difference that is known to be smaller than the margin."""


def design_tags(decide: Decide) -> dict[str, str]:
    """The tags of the experiments' own runs."""
    return {DESIGN: decide.model_dump_json(), LOOKS + "-".join(map(str, decide.planned)): "planned"}


class Pairs(NamedTuple):
    """What of an arm and its baseline is compared: seeds, by index."""

    arm: Arm
    baseline: Arm
    pairing: Pairing
    ours: list[int]
    theirs: list[int]
    looks: Looks | None


def pairs(arm: Arm, baseline: Arm) -> Pairs:
    """The seeds that are compared: those of the last look, where seeds were added until it was decided."""
    decide = decided_by(arm, baseline)
    if decide is None:
        return Pairs(arm, baseline, *arm.paired(baseline, SEEDS), None)
    arm, baseline = (replace(each, runs=tuple(of_one_kind(designed(each)))) for each in (arm, baseline))
    ours, theirs = list(arm.by_seed), list(baseline.by_seed)
    common, planned = [seed for seed in ours if seed in theirs], decide.planned
    look = last_look(planned, len(common))
    counted_seeds = [] if look is None else common[: planned[look]]
    looks = Looks(planned, 0 if look is None else look + 1, decide.margin, is_changed(arm))
    return Pairs(arm, baseline, "paired", [*map(ours.index, counted_seeds)], [*map(theirs.index, counted_seeds)], looks)


def decided_by(arm: Arm, baseline: Arm) -> Decide | None:
    """The design by which seeds were added until this arm was told apart from this baseline; None: by none."""
    decide = design_of(arm)
    named = decide is not None and decide.baseline in (baseline.label, baseline.strategy)
    return decide if named and designed(baseline) else None


def design_of(arm: Arm) -> Decide | None:
    """That of its newest run that has one."""
    runs = of_one_kind(designed(arm))
    return next((Decide.model_validate_json(run.run.tags[DESIGN]) for run in runs), None)


def designed(arm: Arm) -> list[ExperimentRun]:
    return [run for run in arm.runs if DESIGN in run.run.tags]


def of_one_kind(runs: Sequence[ExperimentRun]) -> list[ExperimentRun]:
    """Where seeds were added with a pre-training each and also on one alone (`vary=finetune`), those of which there are
    more: a look has one run of each seed."""
    each, on_one = list[ExperimentRun](), defaultdict[str | None, list[ExperimentRun]](list)
    for run in runs:
        each += [run] * (run.pretrain_seed == run.seed)
        on_one[run.pretrain_seed].append(run)
    return max((each, *on_one.values()), key=len)


def is_changed(arm: Arm) -> bool:
    """Whether seeds of the arm were looked at in designs with other looks, too. Of a baseline, other arms may have."""
    return any(sum(tag.startswith(LOOKS) for tag in run.run.tags) > 1 for run in arm.runs)


def is_decided(difference: Difference) -> bool:
    """Whether more seeds are of no use: it is a difference, or one that is known to be smaller than the margin."""
    word, _, limit = difference.verdict.partition(", ")
    return difference.with_seeds and (word in ("better", "worse") or limit.startswith(APART))


def level_of(looks: Looks | None) -> float:
    """The coverage of the interval at this look, as the interval of one look alone."""
    return 1 - levels(tuple(looks.planned))[looks.taken - 1] if looks and looks.taken else 0.95


def sequential_p(looks: Looks | None, p: float) -> float:
    """`p` of this look alone, allowing for all looks."""
    return repeated_p(tuple(looks.planned), looks.taken - 1, p) if looks and looks.taken else p


def notes(arm: Arm, baseline: Arm | None, difference: Difference | None, name: str) -> list[str]:
    """What is to be said of an arm whose seeds were added until it was decided. name: the arm's."""
    if difference is None or baseline is None:
        return []
    if (looks := looks_of(difference)) is None:
        other = design_of(arm)
        words = other and f"seeds were added until it was told apart from {other.baseline}, and this difference is none"
        return [f"{name}: {words} of those that were planned: its interval does not allow for that"] if words else []
    planned = listed_looks(looks.planned)
    if not looks.taken:
        return [f"{name}: seeds are added until it is decided; the first look is at {planned[0]} seeds"]
    at = f"the {ordinal(looks.taken)} of {counted(len(looks.planned), 'look')} ({', '.join(planned)} seeds)"
    found = [f"{name}: seeds were added until it was decided; interval and p are those of {at}, and allow for all"]
    if left := len(arm.by_seed) - difference.num_seeds:
        found.append(f"{name}: {counted(left, 'seed')} beyond that look left out of the difference")
    if left := len(baseline.by_seed) - difference.num_seeds:
        found.append(f"{name}: {counted(left, 'seed')} of {baseline.label} beyond that look left out of the difference")
    for other in (arm, baseline):
        if left := len(of_design := designed(other)) - len(of_one_kind(of_design)):
            why = "seeds were added with a pre-training each, and also on one pre-training alone"
            found.append(f"{name}: {counted(left, 'run')} of {other.label} left out of the difference: {why}")
    if looks.is_changed:
        found.append(f"{name}: the looks were changed after looking, so that the interval may be too narrow")
    return found


def listed_looks(looks: Sequence[int]) -> list[str]:
    return [str(look) for look in looks]


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `3rd`, `4th`."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
