"""Grouping: which experiments are compared, as the arms of a comparison.

Their protocol, which is the task, the data and the fine-tuning without its policy, must be equal or be allowed to
differ by name; else the comparison is refused. What differs besides makes arms: an arm is a strategy, in one of its
variants, at one label fraction, over its seeds.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from premed.config.plugins import plugin
from premed.errors import UserError
from premed.reporting.comparison.folds import FOLD, is_cross_validated, of_fold, pooled
from premed.reporting.comparison.labels import ABSENT, ENCODER, POLICY, differing, label
from premed.reporting.comparison.later_fields import without_later_defaults
from premed.reporting.comparison.selection import FRACTION, HEAD, SEEDS, ExperimentRun
from premed.reporting.formatting import counted, listed

if TYPE_CHECKING:
    from premed.contracts import Part  # which imports torch

PROTOCOL = ("task.", "data.train", "data.val", "data.test", "finetune.")
PRETRAINED = ("strategy", "pretext", "pretrain.", "cooldown.", "data.images", "data.weights")
"""What an encoder's weights depend on."""
Pairing = Literal["paired", "unpaired", "patients"]


@dataclass(frozen=True)
class Arm:
    """A strategy, in one of its variants, at one label fraction: runs that differ in seeds alone."""

    label: str
    fraction: float
    runs: tuple[ExperimentRun, ...]
    differs: dict[str, str]
    """The fields that distinguish it from other arms of its strategy, and their values."""

    @property
    def fields(self) -> dict[str, str]:
        return self.runs[0].fields

    @property
    def experiments(self) -> list[ExperimentRun]:
        """Its runs; of cross-validated ones those of all folds."""
        return [each for run in self.runs for each in run.experiments]

    @property
    def strategy(self) -> str:
        return self.fields["strategy"]

    @property
    def architecture(self) -> dict[str, str]:
        """The encoder's fields."""
        return {name: value for name, value in self.fields.items() if name.startswith(ENCODER)}

    @property
    def policy(self) -> dict[str, str]:
        """The fields of its fine-tuning's policy."""
        return {name: value for name, value in self.fields.items() if name.startswith(POLICY)}

    def differs_from(self, other: "Arm") -> tuple[str, ...]:
        """What a difference to another arm may be due to, in words, where more than the pre-training differs."""
        found = ["architecture"] if self.architecture != other.architecture else []
        found += ["fine-tuning policy"] if self.policy != other.policy else []
        before = [
            {name: value for name, value in arm.fields.items() if name.startswith(PRETRAINED) and name not in SEEDS}
            for arm in (self, other)
        ]
        return (*found, *(["pre-training"] if before[0] != before[1] else [])) if found else ()

    @cached_property
    def by_seed(self) -> dict[tuple[str, str], list[ExperimentRun]]:
        """Runs by independent seed.

        If several fine-tunings start from each of several pre-trainings, the seeds are those of the pre-trainings.
        """
        num_pretrain = len({run.pretrain_seed for run in self.runs})
        is_one_to_one = num_pretrain == len({run.seed for run in self.runs}) == len(self.runs)
        by_seed: dict[tuple[str, str], list[ExperimentRun]] = defaultdict(list)
        for run in sorted(self.runs, key=lambda run: (len(run.seed), run.seed)):
            if num_pretrain > 1 and not is_one_to_one:
                by_seed["pretrain", str(run.pretrain_seed)].append(run)
            else:
                by_seed["finetune", run.seed].append(run)
        return by_seed

    @property
    def varied(self) -> str:
        """Which seeds differ within the arm, in words."""
        seeds = {
            "pre-training": {run.pretrain_seed for run in self.runs},
            "fine-tuning": {run.seed for run in self.runs},
        }
        several = [name for name, values in seeds.items() if len(values) > 1]
        return f"{' and '.join(several)} seed" if several else "nothing"

    def paired(self, other: "Arm", least: int) -> tuple[Pairing, list[int], list[int]]:
        """How it is compared with another arm, and on which of its own seeds and of the other's (by index).

        paired: on the seeds that both have, if there are at least `least`; unpaired: on all seeds, if each has at least
        `least`; patients: the seeds are too few to estimate the variation between seeds.
        """
        ours, theirs = list(self.by_seed), list(other.by_seed)
        common = [seed for seed in ours if seed in theirs]
        shared = [ours.index(seed) for seed in common], [theirs.index(seed) for seed in common]
        all_seeds = list(range(len(ours))), list(range(len(theirs)))
        if len(common) >= least:
            return "paired", *shared
        if min(len(ours), len(theirs)) >= least:
            return "unpaired", *all_seeds
        return "patients", *(shared if common else all_seeds)


@dataclass(frozen=True)
class Block:
    """The arms with one head."""

    head: str
    arms: list[Arm]

    @property
    def num_runs(self) -> int:
        return sum(len(arm.runs) for arm in self.arms)


# ---- what may be compared


def group_runs(runs: list[ExperimentRun], part: "Part", allow: Sequence[str]) -> tuple[list[Block], list[str]]:
    """A task's runs, newest first, as blocks of arms, and notes on them. Those of several folds are pooled.

    Raises UserError if the protocols of the runs differ in a field that `allow` does not name.
    """
    runs = without_later_defaults(without_locations(runs, part))
    newest: dict[tuple, ExperimentRun] = {}
    for run in runs:
        newest.setdefault((run.variant, run.fields.get(FRACTION), run.seed, run.pretrain_seed), run)
    num_repeated = len(runs) - len(newest)
    notes = []
    if num_repeated:
        notes.append(f"{counted(num_repeated, 'run')} there twice with all fields the same: the newest counts")
    runs = list(newest.values())
    if part == "test" and not is_allowed(FOLD, allow) and is_cross_validated(runs):
        for some in of_fold(runs).values():
            require_same(some, PROTOCOL[:-1], part, allow)
        runs, incomplete = pooled(runs)
        notes += incomplete
    require_same(runs, PROTOCOL[:-1], part, allow)
    by_head: dict[str, list[ExperimentRun]] = defaultdict(list)
    for run in runs:
        by_head["" if is_allowed(HEAD, allow) else run.fields.get(HEAD, "")].append(run)
    blocks = []
    for head, some in sorted(by_head.items(), key=lambda item: -len(item[1])):
        require_same(some, PROTOCOL[-1:], part, allow)
        heads = sorted({run.fields.get(HEAD, "") for run in some})  # several, where they may differ
        blocks.append(Block(head or listed(heads), arms_of(some)))
    for name in sorted({name for run in runs for name in run.fields if is_protocol(name) and is_allowed(name, allow)}):
        if len(values := {run.fields.get(name, "not set") for run in runs}) > 1:
            notes.append(f"{name} differs and was allowed to: {listed(values)}")
    return blocks, notes


def without_locations(runs: list[ExperimentRun], part: "Part") -> list[ExperimentRun]:
    """The runs without the fields that change no score: where files are; on val, the fingerprint of the test part."""
    names = {name for run in runs for name in run.fields if name.startswith("task.")}
    differing = {name for name in names if len({run.fields.get(name) for run in runs}) > 1}
    left_out = {"data.test"} if part == "val" else set()
    if differing:
        try:
            config = plugin("tasks", runs[0].fields.get("task.name", "")).Config.model_fields
        except ValueError:  # the task's plug-in no longer exists, and its fields are not known
            return runs
        left_out |= {
            name
            for name in differing
            if (field := config.get(name.split(".")[1])) and (field.json_schema_extra or {}) == {"digest": False}
        }
    return [
        replace(run, fields={name: value for name, value in run.fields.items() if name not in left_out}) for run in runs
    ]


def is_protocol(name: str) -> bool:
    """Whether a field must be the same in all runs. Those of pre-training (`data.images` and `data.weights`, too), of
    the architecture and of the fine-tuning's policy make arms."""
    return name.startswith(PROTOCOL) and name not in (*SEEDS, FRACTION) and not name.startswith(POLICY)


def is_allowed(name: str, allow: Sequence[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in allow)


def require_same(runs: list[ExperimentRun], prefixes: tuple[str, ...], part: "Part", allow: Sequence[str]) -> None:
    """Raises UserError for the first field in which runs differ, a task's before the data that it selects; the cases
    that are scored may never differ."""
    names = {name for run in runs for name in run.fields if name.startswith(prefixes)}
    differing = []
    for name in sorted(filter(is_protocol, names), key=lambda name: (not name.startswith("task."), name)):
        values = Counter(run.fields.get(name, ABSENT) for run in runs)
        if len(values) > 1 and (name == f"data.{part}" or not is_allowed(name, allow)):
            differing.append((name, values))
    if not differing:
        return
    name, values = differing[0]
    shown = ", ".join(f"{value} ({counted(number, 'run')})" for value, number in values.most_common(4))
    remedy = f"--where {name}={next(value for value, _ in values.most_common() if value != ABSENT)}"
    other_cases = any(name == f"data.{part}" for name, _ in differing)
    remedy += ", for other cases cannot be paired" if other_cases else f" or --allow {name}"
    more = f" ({listed([name for name, _ in differing[1:5]])} too)" if differing[1:] else ""
    raise UserError(f"{runs[0].task}: runs differ in {name}: {shown}; {remedy}{more}")


# ---- arms


def arms_of(runs: list[ExperimentRun]) -> list[Arm]:
    """Runs as arms, by label fraction and label."""
    groups: dict[tuple, list[ExperimentRun]] = defaultdict(list)
    for run in runs:
        groups[float(run.fields.get(FRACTION, 1.0)), run.variant].append(run)
    arms = []
    for (fraction, _), some in groups.items():
        siblings = [run for run in runs if run.fields["strategy"] == some[0].fields["strategy"]]
        differs = {name: some[0].fields.get(name, ABSENT) for name in differing(siblings)}
        arms.append(Arm(label(some[0], siblings, runs), fraction, tuple(some), differs))
    return sorted(arms, key=lambda arm: (arm.fraction, arm.label))
