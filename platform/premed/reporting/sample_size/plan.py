"""`premed plan`: what a comparison can show, and what would separate what it saw. docs/plan.md."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from premed.errors import UserError
from premed.reporting.comparison.compare import TaskRuns, each_task, require_named, selected_runs, task_runs
from premed.reporting.comparison.conclusion import OPTIMISTIC, no_better
from premed.reporting.comparison.effects import arm_name, block_result
from premed.reporting.comparison.folds import FOLD
from premed.reporting.comparison.grouping import Arm, Block
from premed.reporting.comparison.interim import notes as notes_on_looks
from premed.reporting.comparison.interim import pairs
from premed.reporting.comparison.result import Difference, looks_of
from premed.reporting.formatting import LOWER_IS_BETTER, counted
from premed.reporting.sample_size.arms import groups_of, prices
from premed.reporting.sample_size.comparing import NAMES, plan_comparison, unplannable
from premed.reporting.sample_size.components import Components, Side
from premed.reporting.sample_size.conclusion import conclusion
from premed.reporting.sample_size.curves import Curve, curves_of
from premed.reporting.sample_size.needs import PATIENTS, UNKNOWN, Question, needs, of_labels
from premed.reporting.sample_size.power import LEVEL, Design, layout, power, smallest_difference
from premed.reporting.sample_size.result import BlockPlan, ComparisonPlan, ComponentRow, PlanResult
from premed.reporting.sample_size.settings import PlanSettings, refuse_unusable
from premed.reporting.statistics import SEEDS
from premed.tracking.run_store import RunStore

if TYPE_CHECKING:
    from premed.contracts import Part  # which imports torch

NOT_FIXED = (
    "where seeds were added until it is decided, what is shown, the chance and what it takes are of one look's test at "
    "its level (an earlier look may show it, too), and seeds are those of the planned looks. To test more patients is "
    "a look that was not planned: their number is that of a comparison begun anew, and its hours are not given"
)
FOLDS = "test patients: folds test each labelled patient once (task.folds, docs/compare.md), without new ones"
FORECAST_OF_LOOKS = "forecast: of all seeds, those beyond the last look, too; its intervals do not allow for the looks"


def from_store(
    store: RunStore,
    settings: PlanSettings,
    *,
    task: str | None = None,
    baseline: str | None = None,
    allow: Sequence[str] = (),
    where: Sequence[str] = (),
    part: "Part | None" = None,
) -> PlanResult:
    """Plans from the store's experiments; a note says why a task is left out. Raises UserError if none can be compared,
    or there is nothing to plan."""
    runs, allow, notes = selected_runs(store, task, where, allow)
    tasks, left_out = each_task(runs, lambda some: task_runs(store, some, baseline, allow, part))
    notes += left_out
    labels = [arm.label for each in tasks for block in each.blocks for arm in block.arms]
    require_named(baseline, labels, any(any(each.baselines) for each in tasks))
    blocks, without = [], []
    for grouped in tasks:
        notes += grouped.notes
        for block, baselines in zip(grouped.blocks, grouped.baselines, strict=True):
            if baselines:
                blocks.append(block_plan(store, grouped, block, baselines, settings))
            else:
                where_from = f"{grouped.task}, head {block.head}"
                without.append(f"{where_from}: no run of {grouped.baseline} to plan against; --baseline names another")
    if not any(block.comparisons for block in blocks):
        alone = "; ".join(["no arm stands beside a baseline", *notes[:1]])
        reasons = [note for block in blocks for note in block.notes]
        raise UserError(f"plan: nothing to plan with: {[*reasons, *without, alone][0]}")
    return PlanResult(settings.power, LEVEL, settings.margin, blocks, [*notes, *without])


def block_plan(
    store: RunStore, grouped: TaskRuns, block: Block, baselines: dict[float, Arm], settings: PlanSettings
) -> BlockPlan:
    """Plans the comparisons of one head. baselines: by label fraction."""
    score = grouped.first.main
    result = block_result(block, baselines, grouped.tables, score)
    differences = {(arm.label, arm.label_fraction): arm.scores[score].difference for arm in result.rows}
    compared = [
        (arm, found)
        for arm in block.arms
        if arm is not baselines.get(arm.fraction) and (found := differences[arm.label, arm.fraction])
    ]
    num = sum(bool(np.isfinite(found.p)) for _, found in compared)
    curves = curves_of(store, block, baselines, grouped.tables, score)
    plans, notes = [], []
    for arm, found in compared:
        both = pairs(arm, baselines[arm.fraction])
        groups = groups_of(both, grouped.tables, score)
        if why := unplannable(groups, settings.stated, looks_of(found)):
            notes.append(f"{arm_name(arm)}: {why}")
            continue
        notes += notes_on_looks(arm, baselines[arm.fraction], found, arm_name(arm))
        of_both = prices(both.arm, grouped.part), prices(both.baseline, grouped.part)
        plan = plan_comparison(groups, found, (arm.label, arm.fraction), of_both, settings, num)
        curve = next((each for each in curves if each.forecast.label == arm.label), None)
        if curve and len(curve.laws) > 2 and arm.fraction == curve.largest:
            plan = with_labels(plan, curve, found, of_both, settings)
        plans.append(plan)
    if grouped.part == "test" and is_one_split(block) and any(needs_patients(plan) for plan in plans):
        notes.append(FOLDS)
    if num > 1:
        more = "the numbers here are of each by itself, but for the column after Holm"
        notes.append(f"{counted(num, 'comparison')}: premed compare corrects p for all of them; {more}")
    if any(plan.looks for plan in plans):
        notes.append(NOT_FIXED)
        notes += [FORECAST_OF_LOOKS] * any(each.forecast.points for each in curves)
    planned = BlockPlan(
        task=grouped.task,
        head=block.head,
        part=grouped.part,
        score=score,
        higher_is_better=score not in LOWER_IS_BETTER,
        num_patients=grouped.first.num_patients,
        baseline=grouped.baseline,
        comparisons=plans,
        forecasts=[curve.forecast for curve in curves],
        notes=notes,
    )
    if words := conclusion(planned, settings.power, settings.margin):
        words += no_better(score, result.rows) + (OPTIMISTIC if grouped.part == "val" else "")
    return replace(planned, conclusion=words)


def needs_patients(plan: ComparisonPlan) -> bool:
    """Whether more test patients would show the difference, or more than were tried."""
    return any(need.what == PATIENTS and need.needed != need.now for need in plan.needs)


def is_one_split(block: Block) -> bool:
    """Whether the block's runs are of one split of a task that deals folds."""
    run = block.arms[0].runs[0]
    return FOLD in run.fields and not run.folds


def with_labels(
    plan: ComparisonPlan, curve: Curve, found: Difference, of_both: tuple, settings: PlanSettings
) -> ComparisonPlan:
    """The plan with its row on labels."""
    need = of_labels(
        plan.smallest,
        lambda times: curve.difference_at(times)[0],
        np.sign(found.value),
        sum(price.finetuning * sum(price.trained) for price in of_both),
        " and ".join(sorted({price.device for price in of_both})),
    )
    return replace(plan, needs=[*plan.needs, need])


# ---- from guesses


def from_guesses(
    settings: PlanSettings, sd_patients: float | None, num_patients: int, num_seeds: int = SEEDS
) -> PlanResult:
    """Plans a comparison that nobody has begun: `num_seeds` pre-trainings with a fine-tuning each, paired by seed.

    sd_patients: of the difference, from patient to patient; that of one patient from seed to seed is guessed as large.
    Raises UserError for what is missing or cannot be.
    """
    if sd_patients is None or settings.stated.finetuning is None:
        missing = "--sd-patients" if sd_patients is None else "--sd-finetuning"
        raise UserError(f"--n-patients: plans from guesses alone, and {missing} is missing; state it too")
    refuse_unusable("--sd-patients", sd_patients)
    if num_patients < 2:
        raise UserError(f"--n-patients {num_patients}: one patient shows no variance; write 2 or more")
    if num_seeds < SEEDS:
        raise UserError(f"--n-seeds {num_seeds}: the test takes {SEEDS} seeds or more")
    finetuning, patients = settings.stated.finetuning**2, sd_patients**2
    given = settings.stated.pretraining
    pretraining = finetuning if given is None else given**2
    half = Side(pretraining, finetuning, 0.0, patients, True).scaled(0.5)
    components, now = Components(half, half, patients), Design(num_seeds, 1, num_patients)
    squares = layout(components, now)
    question = Question(
        settings.margin or 0.0, settings.power, now, components, components, False, True, (UNKNOWN, UNKNOWN)
    )
    known = ["stated" if given is not None else "guess: as much as fine-tuning seeds; --sd-pretraining states it"]
    known += ["stated", "stated", "guess: none", "guess: as much as test patients"]
    values = (pretraining, finetuning, patients, 0.0, patients)
    plan = ComparisonPlan(
        label="guesses",
        label_fraction=np.nan,
        now=now,
        num_seeds=num_seeds,
        level=LEVEL,
        looks=None,
        is_one_pretraining=False,
        difference=np.nan,
        interval=(np.nan, np.nan),
        verdict="",
        planned=np.nan if settings.margin is None else settings.margin,
        components=components,
        rows=[ComponentRow(*each) for each in zip(NAMES, map(float, np.sqrt(values)), known, strict=True)],
        smallest=smallest_difference(squares, settings.power),
        smallest_corrected=np.nan,
        chance=power(settings.margin, squares) if settings.margin else np.nan,
        false_claim=None,
        needs=needs(question) if settings.margin else [],
    )
    block = BlockPlan("guesses", "", "", "score", True, num_patients, "", [plan], [], [])
    block = replace(block, conclusion=conclusion(block, settings.power, settings.margin))
    return PlanResult(settings.power, LEVEL, settings.margin, [block], [])
