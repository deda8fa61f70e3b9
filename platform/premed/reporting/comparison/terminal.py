"""A comparison on the terminal, as tables, and all of its numbers as CSV."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from premed.paths import writing
from premed.reporting.comparison.result import (
    ArmResult,
    BlockResult,
    ClassEstimate,
    ComparisonResult,
    Cost,
    ScoreResult,
    StageCost,
    TaskResult,
)
from premed.reporting.console import print_table
from premed.reporting.formatting import NAMES, mean_std, number, p_value, percent, signed, span
from premed.safety.files import spreadsheet_cell

COLUMNS = [
    "labels",
    "strategy",
    "seeds",
    "mean ± std",
    "95 % interval",
    "difference [95 % interval]",
    "p",
    "Holm p",
    "",
]
SEGMENTED = "n_missed", "n_invented", "n_excluded"
COUNTS = {
    SEGMENTED: "missed, invented: a case's class that only the truth, only the prediction has (Dice 0, HD95 the "
    "image's diagonal); excluded: neither has it",
    ("n_undefined",): "undefined: classes without an AUC, of one kind of label only",
}
MAX_ARMS = 5  # side by side in the table of classes


def show(result: ComparisonResult) -> None:
    """Prints the comparison: the answer of each task, then its tables."""
    for task in result.tasks:
        print_lines([f"{block.conclusion}." for block in task.blocks])
    for task in result.tasks:
        for block in task.blocks:
            show_block(task, block)
        print_lines(task.notes)
    print_lines(result.notes)


def show_block(task: TaskResult, block: BlockResult) -> None:
    """Prints scores, then costs and counts, then classes."""
    main, arms = task.score, block.rows
    title = f"{task.task}, head {block.head}, {task.part} part: "
    title += f"{task.num_cases} cases of {task.num_patients} patients"
    title += f" in {task.num_folds} folds" if task.num_folds > 1 else ""
    for name, score in sorted(arms[0].scores.items(), key=lambda item: item[0] != main):  # the task's own first
        words = NAMES.get(name, name) + ("" if score.higher_is_better else ", lower is better")
        heading = f"{title}\n{words}" if name == main else words
        print_table(heading, COLUMNS if name == main else COLUMNS[:6], [score_row(task, arm, name) for arm in arms])
    print_table("What it cost, and what stands beside the scores", cost_columns(arms), [cost_row(arm) for arm in arms])
    print_lines(count_notes(arms))
    show_calibration(arms)
    show_classes(task, block)
    print_lines(block.notes)
    if not all(arm.same_architecture for arm in arms):
        print_lines(["* another architecture than the baseline's"])


def score_row(task: TaskResult, arm: ArmResult, name: str) -> list[str]:
    score = arm.scores[name]
    cells = [percent(arm.label_fraction), arm.marked_label, str(arm.num_seeds)]
    cells += [mean_std(score.mean, score.std), span(score.interval)]
    if (difference := score.difference) is None:
        more = ["baseline" if arm.is_baseline else "-", "", "", ""]
    else:
        more = [f"{signed(difference.value)} {span(difference.interval, signed)}", p_value(difference.p)]
        more += [p_value(difference.p_holm), difference.verdict]
    return cells + (more if name == task.score else more[:1])


def cost_columns(arms: Sequence[ArmResult]) -> list[str]:
    columns = ["labels", "strategy", "pre-training", "fine-tuning", "peak memory", "constant answer"]
    return columns + [count.removeprefix("n_") for count in arms[0].counts]


def cost_row(arm: ArmResult) -> list[str]:
    """An arm's row: its cost, then its other numbers (constant answer, counts)."""
    cells = [percent(arm.label_fraction), arm.marked_label, spent(arm.cost.pretrain), spent(arm.cost.finetune)]
    cells += [f"{arm.cost.peak_memory_mb / 1024:.1f} GB", number(arm.constant)]
    return cells + [f"{count:.4g}" for count in arm.counts.values()]


def count_notes(arms: Sequence[ArmResult]) -> list[str]:
    """What the counts in the rows are of, where any is above zero."""
    counted = {count for arm in arms for count, value in arm.counts.items() if value}
    return [words for names, words in COUNTS.items() if counted.intersection(names)]


def show_calibration(arms: Sequence[ArmResult]) -> None:
    """Prints how far probabilities are from the shares that come true; nothing for a segmentation."""
    if "mauc" not in arms[0].scores:
        return
    kind = next((arm.calibration.kind for arm in arms if arm.calibration), "")
    of = "of the likeliest class" if kind == "likeliest class" else "mean over classes"
    columns = ["labels", "strategy", "as measured ± std", "bias-corrected", "95 % interval"]
    print_table(f"calibration error, ECE, {of}, lower is better", columns, [calibration_row(arm) for arm in arms])
    print_lines(["interval: for other patients, these seeds; the error as it is measured is too large by chance alone"])


def calibration_row(arm: ArmResult) -> list[str]:
    cells = [percent(arm.label_fraction), arm.marked_label]
    if (found := arm.calibration) is None:
        return [*cells, "not stored", "-", "-"]
    return [*cells, mean_std(found.measured, found.std), number(found.value), span(found.interval)]


def show_classes(task: TaskResult, block: BlockResult) -> None:
    """Prints the classes' means at the largest label fraction, for as many arms as fit; the CSV has all."""
    main, arms = task.score, block.largest_fraction
    names = list(arms[0].scores[main].classes)
    if len(names) < 2 or len(names) == 2 and "accuracy" in arms[0].scores:
        return  # two exclusive classes have one AUC, the mean that is told already
    some = arms[:MAX_ARMS]
    cells = [[name, *(class_cell(arm.scores[main].classes[name]) for arm in some)] for name in names]
    left = f"; {len(arms) - MAX_ARMS} more strategies in --csv" if len(arms) > MAX_ARMS else ""
    title = f"{NAMES.get(main, main)} by class, {percent(arms[0].label_fraction)} of the labels{left}"
    print_table(title, ["class", *(arm.marked_label for arm in some)], cells, words=1)
    if any(cell.endswith(("^", "v")) for row in cells for cell in row[1:]):
        print_lines(
            ["^ v above or below the baseline by its own 95 % interval, not corrected for the number of classes"]
        )


def class_cell(estimate: ClassEstimate) -> str:
    """A class's mean and deviation, marked where its difference to the baseline is clear."""
    mark = " "
    if estimate.difference and estimate.is_clear:
        mark = "^" if estimate.difference.value > 0 else "v"
    return f"{mean_std(estimate.mean, estimate.std)} {mark}"


def print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(fill(line, 120, subsequent_indent="  "))


def spent(cost: StageCost | None) -> str:
    """The number of trainings and the device hours of each."""
    if cost is None:
        return "-"
    if not math.isfinite(cost.device_hours):
        return "not known"
    each = cost.device_hours / cost.runs
    return f"{cost.runs} x {f'{each:.2g}' if each >= 0.001 else '< 0.001'} {cost.device}-h"


# ---- CSV

FIELDS = ["task", "part", "head", "label_fraction", "strategy", "label", "encoder", "is_baseline", "same_architecture"]
FIELDS += ["num_seeds", "varied", "score", "class", "mean", "std", "low", "high", "with_seeds", "baseline"]
FIELDS += ["difference", "difference_low", "difference_high", "p", "p_holm", "pairing", "verdict", "constant"]
FIELDS += ["n_missed", "n_invented", "n_excluded", "n_undefined", "pretrain_runs", "pretrain_seconds", "pretrain_hours"]
FIELDS += ["finetune_runs", "finetune_seconds", "finetune_hours", "device", "peak_memory_mb"]
FIELDS += ["ece_measured", "ece", "ece_low", "ece_high", "policy"]
FIELDS += ["difference_seeds"]


def write_csv(result: ComparisonResult, path: Path) -> None:
    """Writes one line per arm, score and class (empty: the overall number), whose columns are FIELDS."""
    with writing(path), path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, restval="")
        writer.writeheader()
        writer.writerows({name: spreadsheet_cell(cell) for name, cell in line.items()} for line in lines(result))


def lines(result: ComparisonResult) -> Iterator[dict[str, Any]]:
    for task in result.tasks:
        for block in task.blocks:
            for arm in block.rows:
                about = {"task": task.task, "part": task.part, "baseline": task.baseline, "head": block.head}
                about |= {name: value for name, value in vars(arm).items() if name in FIELDS}
                about |= {**arm.counts} | cost_cells(arm.cost)
                for name, score in arm.scores.items():
                    for class_name, estimate in {"": score, **score.classes}.items():
                        cells = {"score": name, "class": class_name} | estimate_cells(estimate)
                        if name != task.score or class_name:  # it is a value of that score alone: no HD95, no class's
                            cells["constant"] = ""
                        yield blank_undefined(about | cells | calibration_cells(arm, name, class_name))


def estimate_cells(estimate: ScoreResult | ClassEstimate) -> dict[str, Any]:
    low, high = estimate.interval
    cells = {"mean": estimate.mean, "std": estimate.std, "with_seeds": estimate.with_seeds, "low": low, "high": high}
    if difference := estimate.difference:
        low, high = difference.interval
        cells |= {"difference": difference.value, "difference_low": low, "difference_high": high}
        cells |= {name: getattr(difference, name) for name in ("p", "p_holm", "pairing", "verdict")}
        cells["difference_seeds"] = difference.num_seeds
    return cells


def calibration_cells(arm: ArmResult, score: str, class_name: str) -> dict[str, Any]:
    """Beside the AUCs: the ECE of the same class, or overall."""
    if arm.calibration is None or score != "mauc":
        return {}
    found = arm.calibration.classes.get(class_name) if class_name else arm.calibration
    if found is None:
        return {}
    low, high = found.interval
    return {"ece_measured": found.measured, "ece": found.value, "ece_low": low, "ece_high": high}


def cost_cells(cost: Cost) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for kind, stage in cost.stages.items():
        cells |= {f"{kind}_runs": stage.runs, f"{kind}_seconds": stage.seconds, f"{kind}_hours": stage.device_hours}
    device = " and ".join(sorted({stage.device for stage in cost.stages.values()}))
    return cells | {"device": device, "peak_memory_mb": cost.peak_memory_mb}


def blank_undefined(line: dict[str, Any]) -> dict[str, Any]:
    """The line with empty cells for what is undefined."""
    return {
        name: "" if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }
