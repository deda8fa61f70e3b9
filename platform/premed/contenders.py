"""The experiments of a store that could be compared: found, with their fields, and chosen from.

A field is called as in a YAML (`finetune.lr`); beside those stand `strategy` and the fingerprints of the parts
(`data.train`, `data.val`, `data.test`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from premed.config.settings import TRUNK
from premed.contracts import Part
from premed.errors import UserError
from premed.runs import Run, RunStore

SEEDS = ("finetune.seed", "pretrain.seed")
FRACTION, HEAD = "finetune.label_fraction", "finetune.head.name"
SHORT = {"seed": SEEDS[0], "label_fraction": FRACTION, "head": "finetune.head", "data": "data", "encoder": "encoder"}
"""What fields are also called on the command line."""


@dataclass(frozen=True)
class Member:
    """One experiment that ran: its own run, those of its stages by kind (a trunk's by `trunk_<epochs>`), its fields."""

    run: Run
    stages: dict[str, Run]
    fields: dict[str, str]

    @property
    def task(self) -> str:
        return self.run.tags["task"]

    @property
    def seed(self) -> str:
        return self.fields.get(SEEDS[0], "0")

    @property
    def pretrain_seed(self) -> str | None:
        return self.fields.get(SEEDS[1])

    @cached_property
    def variant(self) -> tuple[tuple[str, str], ...]:
        """All that tells it from other members but seeds and label fraction."""
        return tuple(sorted((name, value) for name, value in self.fields.items() if name not in (*SEEDS, FRACTION)))


# ---- what the store holds


def gather(store: RunStore, task: str | None) -> tuple[list[Member], list[str]]:
    """The finished experiments, newest first, and what is to be said of the others."""
    runs = {run.run_id: run for run in store.search({})}
    found = [run for run in runs.values() if run.tags.get("premed.kind") == "experiment" and "task" in run.tags]
    if task is not None and found and not any(run.tags["task"] == task for run in found):
        raise UserError(
            f"--task {task}: the store has none of it; it has {listed({run.tags['task'] for run in found})}"
        )
    found = [run for run in found if task in (None, run.tags["task"])]
    members, unfinished, gone = [], 0, 0
    for run in found:
        ids = {tag.removesuffix("_run"): value for tag, value in run.tags.items() if tag.endswith("_run")}
        stages = {kind: runs[run_id] for kind, run_id in ids.items() if run_id in runs}
        if run.status != "FINISHED":
            unfinished += 1
        elif "finetune" not in ids or stages.keys() != ids.keys():
            gone += 1
        else:
            members.append(Member(run, stages, fields_of(run, stages)))
    said = (
        [f"{counted(unfinished, 'run')} not finished, left out (the same `premed run` goes on)"] if unfinished else []
    )
    said += [f"{counted(gone, 'run')} without the runs of their stages (deleted?), left out"] if gone else []
    return members, said


def fields_of(run: Run, stages: dict[str, Run]) -> dict[str, str]:
    """What an experiment's stages were told, under the names that a YAML has for it."""
    fields = {"strategy": run.tags.get("strategy", "none")}
    for kind, stage in stages.items():
        if kind.startswith(TRUNK):  # the cool-down says it all; where the segments before it ended changes nothing
            continue
        hashes = dict(part.split(":", 1) for part in stage.tags.get("premed.data", "").split(" ") if ":" in part)
        if kind in ("finetune", "test"):
            names = {"task": "task", "encoder": "encoder", "training": "finetune"} if kind == "finetune" else {}
        else:
            names, hashes = {"pretext": "pretext", "training": kind}, hashes | {"val": ""}
        fields |= {f"data.{name}": value[:12] for name, value in hashes.items() if value}
        for param, value in stage.params.items():
            top, _, rest = param.removeprefix("stage.").partition(".")
            if top in names and rest and param != "stage.training.trunk":
                fields[f"{names[top]}.{rest}"] = value
    return fields


# ---- which of them are meant


def chosen(members: list[Member], where: Sequence[str]) -> list[Member]:
    """The members with these `FIELD=VALUE`s."""
    for condition in where:
        field, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where {condition}: reads FIELD=VALUE, as in --where finetune.lr=0.001")
        field = known(members, field, "--where", single=True)
        kept = [member for member in members if same(member.fields.get(field, ""), value)]
        if not kept:
            values = {member.fields[field] for member in members if field in member.fields}
            raise UserError(f"--where {condition}: no run has it; {field} is {listed(values)}")
        members = kept
    return members


def known(members: Iterable[Member], field: str, option: str, single: bool = False) -> str:
    """The full name of a field, or, unless `single`, of a group of fields."""
    names = {name for member in members for name in member.fields}
    full = SHORT.get(field, field)
    full = f"{full}.name" if single and f"{full}.name" in names else full
    if full in names or not single and any(name.startswith(f"{full}.") for name in names):
        return full
    like = sorted(name for name in names if name.rpartition(".")[2] == field.rpartition(".")[2])
    mend = f"is it {listed(like, 'or')}?" if like else "they are called as in the YAML: finetune.lr"
    raise UserError(f"{option} {field}: no run has such a field; {mend}")


def same(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def scored(members: list[Member], part: Part | None) -> tuple[Part, list[Member], list[str]]:
    """The part that a task is compared on, the members that have it, and what is to be said of the others."""
    tested = [member for member in members if "test" in member.stages]
    if part == "test" and not tested:
        raise UserError(f"--part test: no run of {members[0].task} was tested (test=false); --part val compares them")
    if part == "val" or not tested:
        said = "scored on val, which picked the checkpoints: these numbers flatter"
        return "val", members, [said if part == "val" else f"no run was tested (test=false): {said}"]
    rest = len(members) - len(tested)
    said = (
        [f"{counted(rest, 'run')} without a test part (test=false), left out; --part val compares them"] if rest else []
    )
    return "test", tested, said


# ---- words


def listed(names: Iterable[str], word: str = "and") -> str:
    names = sorted(names)
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
