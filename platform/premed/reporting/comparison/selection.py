"""Selection: the experiments of a store that can be compared, with their fields, and the filters on them.

A field has the name that it has in a YAML (`finetune.lr`). There are also `strategy` and the fingerprints of the data
(`data.train`, `data.val`, `data.test`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING

from premed.config.settings import PRETRAINING, TRUNK
from premed.errors import UserError
from premed.reporting.formatting import counted, listed
from premed.tracking.run_store import Run, RunStore

if TYPE_CHECKING:
    from premed.contracts import Part  # which imports torch

SEEDS = ("finetune.seed", "pretrain.seed")
SOURCE = "pretrain.sources."  # with its number after it: a data set that a pre-training names
FRACTION, HEAD = "finetune.label_fraction", "finetune.head.name"
SHORT = {"seed": SEEDS[0], "label_fraction": FRACTION, "head": "finetune.head", "data": "data", "encoder": "encoder"}
"""Other names of fields on the command line."""
DESIGN = "premed.decide"  # the tag of experiments of a command with `seeds: auto`


@dataclass(frozen=True)
class ExperimentRun:
    """A finished experiment: its own run, those of its stages by kind (a trunk's by `trunk_<epochs>`), its fields.

    One that is cross-validated stands for those of all folds: run and stages are the first fold's.
    """

    run: Run
    stages: dict[str, Run]
    fields: dict[str, str]
    folds: tuple["ExperimentRun", ...] = ()

    @property
    def experiments(self) -> tuple["ExperimentRun", ...]:
        """Those of all folds; itself where there is one."""
        return self.folds or (self,)

    @property
    def task(self) -> str:
        return self.run.tags["task"]

    @property
    def seed(self) -> str:
        return self.fields.get(SEEDS[0], "0")

    @property
    def pretrain_seed(self) -> str | None:
        return self.fields.get(SEEDS[1])

    @property
    def pretraining(self) -> dict[str, Run]:
        """The stages before fine-tuning, by kind."""
        return {kind: stage for kind, stage in self.stages.items() if kind not in ("finetune", "test")}

    @cached_property
    def variant(self) -> tuple[tuple[str, str], ...]:
        """Every field but the seeds and the label fraction."""
        return tuple(sorted((name, value) for name, value in self.fields.items() if name not in (*SEEDS, FRACTION)))


# ---- what the store holds


def finished_experiments(store: RunStore, task: str | None) -> tuple[list[ExperimentRun], list[str]]:
    """The finished experiments, newest first, and notes on those that are left out.

    task: only its experiments. Raises UserError if the store has none of it.
    """
    runs = {run.run_id: run for run in store.search({})}
    parents = [run for run in runs.values() if run.tags.get("premed.kind") == "experiment" and "task" in run.tags]
    if task is not None and parents and not any(run.tags["task"] == task for run in parents):
        raise UserError(
            f"--task {task}: the store has no run of it; it has {listed({run.tags['task'] for run in parents})}"
        )
    experiments, num_unfinished, num_incomplete = [], 0, 0
    for run in parents:
        if task not in (None, run.tags["task"]) or is_pretraining_alone(run):
            continue
        ids = {tag.removesuffix("_run"): value for tag, value in run.tags.items() if tag.endswith("_run")}
        stages = {kind: runs[run_id] for kind, run_id in ids.items() if run_id in runs}
        if run.status != "FINISHED":
            num_unfinished += 1
        elif "finetune" not in ids or stages.keys() != ids.keys():
            num_incomplete += 1
        else:
            experiments.append(ExperimentRun(run, stages, fields_of(run, stages)))
    notes = []
    if num_unfinished:
        notes.append(f"{counted(num_unfinished, 'run')} not finished, left out (the same `premed run` goes on)")
    if num_incomplete:
        notes.append(f"{counted(num_incomplete, 'run')} without the runs of their stages (deleted?), left out")
    return experiments, notes


def is_pretraining_alone(run: Run) -> bool:
    """Whether the experiment has no fine-tuning, so that there is nothing to compare."""
    return "label_fraction" not in run.tags and "finetune_run" not in run.tags


def fields_of(run: Run, stages: dict[str, Run]) -> dict[str, str]:
    """The parameters of an experiment's stages, under the names that they have in a YAML."""
    fields = {"strategy": run.tags.get("strategy", "none"), "finetune.policy.name": "full"}  # before there were others
    for kind, stage in stages.items():
        if kind.startswith(TRUNK):  # the cool-down has all fields; where segments end changes nothing
            continue
        hashes = dict(part.split(":", 1) for part in stage.tags.get("premed.data", "").split(" ") if ":" in part)
        if kind in ("finetune", "test"):
            names = {"task": "task", "encoder": "encoder", "training": "finetune"} if kind == "finetune" else {}
        else:
            inner = kind == "import" and any(other in PRETRAINING for other in stages)
            names = {"pretext": "pretext.init" if inner else "pretext", "training": kind}
            hashes |= {"val": ""}
        fields |= {f"data.{name}": value[:12] for name, value in hashes.items() if value}
        for param, value in stage.params.items():
            top, _, rest = param.removeprefix("stage.").partition(".")
            if top in names and rest and param != "stage.training.trunk":
                fields[f"{names[top]}.{rest}"] = value
            elif top == "version" and names:  # of what all stages share: raised where a change of it changes results
                fields[f"{names['training']}.stage_version"] = value
        if kind in PRETRAINING and "pretrain_encoder" in run.tags and f"{SOURCE}0.task.name" not in fields:
            # the experiment took it by its name, and its data set was its own task's
            fields |= {f"{SOURCE}0.group": stage.tags["task"], f"{SOURCE}0.task.name": stage.params["stage.task.name"]}
    return fields


# ---- filters


def filter_runs(runs: list[ExperimentRun], where: Sequence[str]) -> list[ExperimentRun]:
    """The experiments that meet every condition `FIELD=VALUE`. Raises UserError if none does."""
    for condition in where:
        field, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where {condition}: write FIELD=VALUE, as in --where finetune.lr=0.001")
        field = field_name(runs, field, "--where", single=True)
        kept = [run for run in runs if is_same(run.fields.get(field, ""), value)]
        if not kept:
            values = {run.fields[field] for run in runs if field in run.fields}
            raise UserError(f"--where {condition}: no run has it; {field} is {listed(values)}")
        runs = kept
    return runs


def field_name(runs: Iterable[ExperimentRun], field: str, option: str, single: bool = False) -> str:
    """The full name of a field or, unless `single`, of a group of fields. Raises UserError if no run has it."""
    names = {name for run in runs for name in run.fields}
    full = SHORT.get(field, field)
    full = f"{full}.name" if single and f"{full}.name" in names else full
    if full in names or not single and any(name.startswith(f"{full}.") for name in names):
        return full
    like = sorted(name for name in names if name.rpartition(".")[2] == field.rpartition(".")[2])
    like = like or get_close_matches(full, names, n=1)
    remedy = f"is it {listed(like, 'or')}?" if like else "write it as in the YAML: finetune.lr"
    raise UserError(f"{option} {field}: no run has this field; {remedy}")


def is_same(one: str, other: str) -> bool:
    """Whether two values are equal, as numbers if they are numbers."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def scored_on(runs: list[ExperimentRun], part: "Part | None") -> "tuple[Part, list[ExperimentRun], list[str]]":
    """The part on which a task's runs are compared, the runs that have it, and notes on this choice.

    part: None means test if any run has it, else val. Raises UserError if none has it.
    """
    tested = [run for run in runs if "test" in run.stages]
    if part == "test" and not tested:
        raise UserError(f"--part test: no run of {runs[0].task} was tested (test=false); --part val compares them")
    if part == "val" or not tested:
        note = "scored on val, which selected the checkpoints: these numbers are optimistic"
        return "val", runs, [note if part == "val" else f"no run was tested (test=false): {note}"]
    if rest := len(runs) - len(tested):
        note = f"{counted(rest, 'run')} without a test part (test=false), left out; --part val compares them"
        return "test", tested, [note]
    return "test", tested, []
