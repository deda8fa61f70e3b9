"""`premed compare`: the arms of each task measured, compared with a baseline, and what they cost. docs/compare.md."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from premed.errors import UserError
from premed.reporting.comparison.calibrated import with_calibration
from premed.reporting.comparison.conclusion import conclusion
from premed.reporting.comparison.costs import finished_before, shared_costs
from premed.reporting.comparison.effects import block_result
from premed.reporting.comparison.grouping import Arm, Block, group_runs
from premed.reporting.comparison.result import ComparisonResult, TaskResult
from premed.reporting.comparison.roundings import several_roundings
from premed.reporting.comparison.scores import ScoreTable, score_table
from premed.reporting.comparison.selection import (
    ExperimentRun,
    field_name,
    filter_runs,
    finished_experiments,
    scored_on,
)
from premed.reporting.formatting import counted, listed
from premed.tracking.artifacts import ArtifactMissing
from premed.tracking.client import masked
from premed.tracking.run_store import RunStore

if TYPE_CHECKING:
    from premed.contracts import Part  # which imports torch

DEFAULT_BASELINE = "none"  # the strategy


def compare(
    store: RunStore,
    *,
    task: str | None = None,
    baseline: str | None = None,
    allow: Sequence[str] = (),
    where: Sequence[str] = (),
    part: "Part | None" = None,
    run_ids: Collection[str] | None = None,
) -> ComparisonResult:
    """Compares the store's experiments, task by task; a note says why a task is left out. Raises UserError if none can
    be compared.

    run_ids: of the experiments' own runs, if only these are compared.
    """
    runs, allow, notes = selected_runs(store, task, where, allow, run_ids)
    tasks, left_out = each_task(runs, lambda some: task_result(store, some, baseline, allow, part))
    notes += left_out
    require_named(baseline, [arm.label for each in tasks for block in each.blocks for arm in block.rows],
                  any(each.baseline for each in tasks))  # fmt: skip
    scored = part or ("test" if any(each.part == "test" for each in tasks) else "val")
    return ComparisonResult(part=scored, notes=notes, tasks=tasks)


def selected_runs(
    store: RunStore,
    task: str | None,
    where: Sequence[str],
    allow: Sequence[str],
    run_ids: Collection[str] | None = None,
) -> tuple[list[ExperimentRun], list[str], list[str]]:
    """The experiments that are meant, the full names of the fields that may differ, and notes on what is left out."""
    runs, notes = finished_experiments(store, task)
    runs = [run for run in runs if run_ids is None or run.run.run_id in run_ids]
    if not runs:
        why = f"; {notes[0]}" if notes else ""
        raise UserError(f"{masked(store.uri)}: holds no finished run to compare{why}; premed run makes one")
    allow = [field_name(runs, field, "--allow") for field in allow]
    return filter_runs(runs, where), allow, notes


Found = TypeVar("Found")


def each_task(
    runs: Sequence[ExperimentRun], work: Callable[[list[ExperimentRun]], Found]
) -> tuple[list[Found], list[str]]:
    """What `work` finds of the runs of each task, and notes on the tasks that it refuses. Raises UserError if it
    refuses all."""
    found, refused = list[Found](), list[UserError]()
    for name in sorted({run.task for run in runs}):
        try:
            found.append(work([run for run in runs if run.task == name]))
        except UserError as error:
            refused.append(error)
    if refused and not found:
        raise refused[0]
    return found, [f"left out: {error}" for error in refused]


def require_named(baseline: str | None, labels: Collection[str], is_found: bool) -> None:
    """Raises UserError if a baseline was asked for and no run is it."""
    if baseline and not is_found:
        raise UserError(f"--baseline {baseline}: no run is called so; there are {listed(set(labels))}")


# ---- one task


class TaskRuns(NamedTuple):
    """The runs of one task that are compared: as arms, with their scores."""

    task: str
    part: "Part"
    baseline: str
    """Its name, whether or not any block has it."""
    blocks: list[Block]
    baselines: list[dict[float, Arm]]
    """Of each block, by label fraction."""
    tables: dict[str, ScoreTable]
    notes: list[str]

    @property
    def first(self) -> ScoreTable:
        return next(iter(self.tables.values()))


def task_runs(
    store: RunStore, runs: list[ExperimentRun], baseline: str | None, allow: Sequence[str], part: "Part | None"
) -> TaskRuns:
    """Groups the runs of one task. baseline: an arm's label or a strategy; None: the default, if it is there."""
    task = runs[0].task
    scored, runs, notes = scored_on(runs, part)
    main = next((run.run.tags["score"] for run in runs if "score" in run.run.tags), None)
    blocks, tables, more = scored_blocks(store, runs, scored, allow, main)
    name = baseline or DEFAULT_BASELINE
    baselines = [baseline_arms(block, name) for block in blocks]
    require_baseline(task, blocks, baselines)
    return TaskRuns(task, scored, name, blocks, baselines, tables, [*notes, *more])


def scored_blocks(
    store: RunStore, runs: list[ExperimentRun], part: "Part", allow: Sequence[str], main: str | None
) -> tuple[list[Block], dict[str, ScoreTable], list[str]]:
    """Runs grouped, the scores of those that are compared, and notes. Those whose scores are gone are left out; where
    the same was run before, that one counts then."""
    tables: dict[str, ScoreTable] = {}
    gone: dict[str, ArtifactMissing] = {}
    lost: list[str] = []
    while True:
        try:
            blocks, notes = group_runs([run for run in runs if run.run.run_id not in gone], part, allow)
        except UserError as error:  # as where a fold has no run any more
            raise UserError("; ".join([str(error), *lost])) from None
        if not (missing := score_tables(store, runs_of(blocks), part, main, tables)):
            return blocks, tables, [*notes, *lost]
        gone |= missing
        lost = [f"{counted(len(gone), 'run')} left out: {next(iter(gone.values()))}"]


def task_result(
    store: RunStore, runs: list[ExperimentRun], baseline: str | None, allow: Sequence[str], part: "Part | None"
) -> TaskResult:
    """Compares the runs of one task."""
    grouped = task_runs(store, runs, baseline, allow, part)
    blocks, baselines, first, notes = grouped.blocks, grouped.baselines, grouped.first, grouped.notes
    if not any(baselines) and baseline is None:
        notes.append(
            f"no run of {grouped.baseline}, so there is nothing to set the others against; --baseline names another"
        )
    main = first.main
    results = [
        with_calibration(block_result(block, arms, grouped.tables, main), block, grouped.tables)
        for block, arms in zip(blocks, baselines, strict=True)
    ]
    classes = [arm.scores[main].classes for block in results for arm in block.rows]
    if alone := {label for each in classes for label, estimate in each.items() if estimate.alone}:
        where = " in some folds" if main == "mauc" and num_folds(blocks) > 1 else ""
        notes.append(f"{listed(alone)}: computed from one patient{where}; the interval does not cover other patients")
    if first.majority is not None:
        notes.append("accuracy: an answer that is always {} has {:.3f}".format(*first.majority))
    result = TaskResult(
        task=grouped.task,
        part=grouped.part,
        score=main,
        classes=list(first.scores[main].classes),
        num_cases=len(first.cases),
        num_patients=first.num_patients,
        num_folds=num_folds(blocks),
        baseline=grouped.baseline if any(baselines) else None,
        notes=[
            *notes,
            *cross_validated(blocks, first),
            *several_roundings([(arm.label, run) for block in blocks for arm in block.arms for run in arm.experiments]),
            *finished_before(blocks),
            *shared_costs([arm for block in blocks for arm in block.arms]),
        ],
        blocks=results,
    )
    answered = [replace(block, conclusion=conclusion(result, block)) for block in results]
    return replace(result, blocks=answered)


def runs_of(blocks: Sequence[Block]) -> list[ExperimentRun]:
    return [run for block in blocks for arm in block.arms for run in arm.runs]


def num_folds(blocks: Sequence[Block]) -> int:
    """Of a cross-validation; 1: one test part. All runs have as many."""
    return len(runs_of(blocks)[0].experiments)


def score_tables(
    store: RunStore, runs: list[ExperimentRun], part: "Part", main: str | None, tables: dict[str, ScoreTable]
) -> dict[str, ArtifactMissing]:
    """Adds the scores of each run to `tables`, by its id; returns why those of others are gone, by theirs.

    Raises UserError if the scores are not of the same cases, or all gone.
    """
    missing: dict[str, ArtifactMissing] = {}
    for run in (run for run in runs if run.run.run_id not in tables):
        stages = {each.run.run_id: each.stages["test" if part == "test" else "finetune"] for each in run.experiments}
        folds = []
        for run_id, stage in stages.items():
            try:
                folds.append(store.columns(stage))
            except ArtifactMissing as error:
                missing[run_id] = error
        if len(folds) < len(stages):
            continue
        tables[run.run.run_id] = table = score_table(folds, main, f"{part}/accuracy" in run.run.metrics)
        first = next(iter(tables.values()))
        if not np.array_equal(table.cases, first.cases):
            raise UserError(
                f"{run.task}: the run {next(iter(stages.values())).run_id} has scores of other cases than the rest; "
                f"leave it out (--where) or run it again"
            )
    if missing and not tables:
        why = next(iter(missing.values()))
        raise UserError(f"{runs[0].task}: no run has its scores any more: {why}; put the files back, or run it again")
    return missing


def baseline_arms(block: Block, name: str) -> dict[float, Arm]:
    """The baseline's arm at each label fraction; of several architectures the one that most of the block has, and then
    of several policies. name: an arm's label, or a strategy. Raises UserError if arms with several labels may be meant.
    """
    arms = [arm for arm in block.arms if name in (arm.label, arm.strategy)]
    arms = [arm for arm in arms if arm.label == name] or arms
    for kind in (lambda arm: arm.architecture, lambda arm: arm.policy):
        usual = most_frequent(block.arms, kind)
        arms = [arm for arm in arms if kind(arm) == usual] or arms
    if len(labels := {arm.label for arm in arms}) > 1:
        raise UserError(f"--baseline {name}: may be {listed(labels, 'or')}; name one of them")
    return {arm.fraction: arm for arm in arms}


def most_frequent(arms: Sequence[Arm], kind: Callable[[Arm], dict[str, str]]) -> dict[str, str]:
    """The architecture or policy that most strategies have, and then most runs; `full` of equally frequent policies."""

    def frequency(arm: Arm) -> tuple[int, int, bool, str]:
        same = [each for each in arms if kind(each) == kind(arm)]
        is_full = "full" in kind(arm).values()
        return len({each.strategy for each in same}), sum(len(each.runs) for each in same), is_full, arm.label

    return kind(max(arms, key=frequency))


def require_baseline(task: str, blocks: list[Block], baselines: list[dict[float, Arm]]) -> None:
    """Raises UserError if a strategy has no baseline because its runs have another head than the baseline's."""
    compared = {arm.strategy for block, base in zip(blocks, baselines, strict=True) if base for arm in block.arms}
    for block, base in zip(blocks, baselines, strict=True):
        if compared and not base and (lost := {arm.strategy for arm in block.arms} - compared):
            heads = ", ".join(f"{each.head} ({counted(each.num_runs, 'run')})" for each in blocks)
            raise UserError(
                f"{task}: runs differ in finetune.head.name: {heads}, and {listed(lost)} has no baseline with its own; "
                f"--where finetune.head.name={blocks[0].head} or --allow finetune.head"
            )


def cross_validated(blocks: list[Block], first: ScoreTable) -> list[str]:
    """Notes on what the intervals of a cross-validation do not cover, and its AUCs leave out."""
    num = num_folds(blocks)
    if num == 1:
        return []
    covered = "the networks of two folds share training images, and the intervals are not for other training images"
    notes = [f"cross-validated in {num} folds, each scored by networks without its patients: {covered}"]
    if first.one_sided:
        each = listed([f"{name}: {counted(lacking, 'fold')}" for name, lacking in first.one_sided.items()])
        notes.append(f"folds without an AUC of a class, since all labels are alike; it is that of the others ({each})")
    return notes
