"""A plan on the terminal, as tables."""

import math
from collections.abc import Sequence

from premed.reporting.comparison.result import Looks
from premed.reporting.comparison.terminal import print_lines
from premed.reporting.console import print_table
from premed.reporting.formatting import NAMES, listed, number, p_value, percent, signed, span
from premed.reporting.sample_size.levels import look_in_words, planned_in_words
from premed.reporting.sample_size.result import BlockPlan, ComparisonPlan, Forecast, ForecastPoint, Need, PlanResult
from premed.reporting.statistics import SEEDS

SHOWN = ["labels", "strategy", "trainings", "patients", "difference [95 % interval]", "smallest shown", "after Holm",
         "chance"]  # fmt: skip
FALSE = {
    "chance": "other seeds and patients",
    "patients_only": "other patients alone",
    "any_pretraining": "another pre-training, too",
    "below_margin": "below the margin",
}
NEEDED = ["labels", "strategy", "of what", "now", "needed", "cautious", "more hours", ""]


def show(result: PlanResult) -> None:
    """Prints the plan."""
    for block in result.blocks:
        print_lines([f"{block.conclusion}."] if block.conclusion else [])
        show_block(result, block)
    print_lines(result.notes)


def show_block(result: PlanResult, block: BlockPlan) -> None:
    """Prints what varies, what the design shows, false claims, what it would take, forecasts, notes."""
    plans, score = block.comparisons, NAMES.get(block.score, block.score)
    title = f"{block.task}, head {block.head}, {block.part} part: {score} less {block.baseline}'s"
    rows = [
        [*name(plan), row.name, number(row.sd) if math.isfinite(row.sd) else "-", row.known]
        for plan in plans
        for row in plan.rows
    ]
    heading = f"{title if block.head else 'From guesses'}\nWhat varies it: standard deviations"
    columns = ["labels", "strategy", "of", "sd", "known from"]
    print_table(heading, *known_alone(columns, without_repeats(rows)), words=len(columns))
    at = "at the level of the look" if all(plan.looks for plan in plans) else f"at {percent(result.level)}"
    test = f"with a power of {percent(result.power)}, tested {at} two-sided"
    print_table(f"What this design shows {test}", *known_alone(SHOWN, [shown_row(plan) for plan in plans]))
    if once := dict.fromkeys(plan.label for plan in plans if plan.is_one_pretraining):
        print_lines([f"{listed(once)}: of one pre-training; what is shown holds for this one, not for the method"])
    print_lines(list(dict.fromkeys(tested_at(plan, plan.looks) for plan in plans if plan.looks)))
    if few := dict.fromkeys(plan.label for plan in plans if plan.num_seeds < SEEDS):
        print_lines([f"{listed(few)}: fewer than {SEEDS} seeds; what is shown holds for these seeds alone"])
    show_false_claims(plans)
    show_needs(result, block)
    show_forecasts(block.forecasts, score)
    print_lines(block.notes)


def tested_at(plan: ComparisonPlan, looks: Looks) -> str:
    """Of seeds that were added until it is decided: the level in place of 5 %."""
    return f"{plan.label}: tested at {look_in_words(looks, plan.level)} ({planned_in_words(looks.planned)})"


def name(plan: ComparisonPlan) -> list[str]:
    return [percent(plan.label_fraction) if math.isfinite(plan.label_fraction) else "-", plan.label]


def without_repeats(rows: Sequence[list[str]]) -> list[list[str]]:
    """The rows, with the first two cells of the first row of each comparison only."""
    return [["", "", *row[2:]] if i and row[:2] == rows[i - 1][:2] else row for i, row in enumerate(rows)]


def known_alone(columns: Sequence[str], rows: Sequence[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns that tell something in any row: of guesses, say, no share of the labels and no interval."""
    known = [i for i in range(len(columns)) if any(row[i] not in ("-", "") for row in rows)]
    return [columns[i] for i in known], [[row[i] for i in known] for row in rows]


def shown_row(plan: ComparisonPlan) -> list[str]:
    trainings = f"{plan.now.pretrainings} × {plan.now.finetunings}"
    measured = f"{signed(plan.difference)} {span(plan.interval, signed)}" if math.isfinite(plan.difference) else "-"
    cells = [*name(plan), trainings, str(plan.now.patients), measured, number(plan.smallest)]
    cells.append(number(plan.smallest_corrected) if math.isfinite(plan.smallest_corrected) else "-")
    return [*cells, f"{plan.chance:.0%}" if math.isfinite(plan.chance) else "-"]


def show_false_claims(plans: Sequence[ComparisonPlan]) -> None:
    """Prints, for each of FALSE that any comparison has, the chance that the order is not the measured one."""
    claims = [(plan, plan.false_claim) for plan in plans if plan.false_claim]
    shown = [each for each in FALSE if any(math.isfinite(getattr(claim, each)) for _, claim in claims)]
    if shown:
        rows = [[*name(plan), *(p_value(getattr(claim, each)) for each in shown)] for plan, claim in claims]
        title = "If one claimed now that the measured order is the true one: the chance that it is not, for"
        print_table(title, ["labels", "strategy", *(FALSE[each] for each in shown)], rows)


def show_needs(result: PlanResult, block: BlockPlan) -> None:
    """Prints what it takes; of guesses without what only runs tell: upper limits and hours."""
    rows = [[*name(plan), *need_row(need)] for plan in block.comparisons for need in plan.needs]
    if not rows:
        return
    what = "the measured difference" if result.margin is None else f"a difference of {result.margin:g}"
    title, guessed = f"What would show {what}, the rest as it is", not block.head
    if guessed:
        columns, rows = known_alone(NEEDED[:5], without_repeats([row[:5] for row in rows]))
        print_table(title, columns, rows, words=columns.index("of what") + 1)
        return
    print_table(title, NEEDED, without_repeats(rows), words=3)
    print_lines(
        ["cautious: with the variances at their upper 80 % limits; plan with it, for few seeds know little of them"]
    )
    print_lines(["hours: of the devices, from the stages in the store; labelling is not in them"])


def need_row(need: Need) -> list[str]:
    if not need.most:
        return [need.what, str(need.now), "-", "-", "-", need.note]
    none = f"none up to {need.most:,}"
    needed, cautious = (none if number is None else f"{number:,}" for number in (need.needed, need.cautious))
    if need.patients is not None:
        needed, cautious = (cell if cell == none else f"{cell} on {need.patients:,}" for cell in (needed, cautious))
    if need.what.startswith("labels"):
        cautious = "-"
    return [need.what, str(need.now), needed, cautious, hours(need), need.note]


def hours(need: Need) -> str:
    if not math.isfinite(need.hours):
        return "-"
    return (
        f"{need.hours:.2g} {need.device}-h"
        if need.hours >= 0.001
        else "0"
        if not need.hours
        else f"< 0.001 {need.device}-h"
    )


def show_forecasts(forecasts: Sequence[Forecast], score: str) -> None:
    if rows := [row for each in forecasts for row in forecast_rows(each)]:
        columns = ["strategy", "labels", "images", f"{score} [95 % interval]", "difference"]
        print_table("Forecast at more labels, by a power law", columns, rows, words=2)
    print_lines([f"no forecast of {each.label}: {each.refused}" for each in forecasts if each.refused])


def forecast_rows(forecast: Forecast) -> list[list[str]]:
    differences: list[ForecastPoint | None] = list(forecast.differences) or [None] * len(forecast.points)
    rows = []
    for point, difference in zip(forecast.points, differences, strict=True):
        images = "-" if point.images is None else f"{point.images:,}"
        less = f"{signed(difference.value)} {span(difference.interval, signed)}" if difference else "-"
        score = f"{number(point.value)} {span(point.interval)}"
        rows.append([forecast.label, f"{point.times:g} × {percent(forecast.shares[-1])}", images, score, less])
    return rows
