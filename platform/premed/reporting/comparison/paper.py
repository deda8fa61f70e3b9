"""A comparison as a paper needs it: the table of its scores as CSV and as LaTeX, and the methods as text."""

import csv
import math
from collections.abc import Sequence
from io import StringIO
from typing import Any

from premed.reporting.comparison.conclusion import pretraining_seeds
from premed.reporting.comparison.result import ArmResult, BlockResult, ComparisonResult, TaskResult
from premed.reporting.formatting import NAMES, counted, mean_std, number, p_value, percent, signed, span
from premed.safety.files import spreadsheet_cell

COLUMNS = ["task", "head", "part", "images", "patients", "labels", "strategy", "seeds", "pre-trainings", "score"]
COLUMNS += ["mean", "std", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm", "verdict"]
COLUMNS += ["ece_measured", "ece", "ece_low", "ece_high", "difference_seeds", "folds"]
HEADINGS = ["Labels", "Strategy", "Seeds", "{score}", "95 % interval", "Difference [95 % interval]", "p (Holm)"]
HEADINGS += ["Verdict"]
ECE = "ECE [95 % interval]"
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}",
    "[": "{[}", "]": "{]}", "–": "--", "-": "{-}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
}  # fmt: skip
"""What LaTeX would read as something else. A bracket after a row's end would be its option, and two hyphens a dash."""


# ---- CSV


def table_csv(result: ComparisonResult) -> str:
    """The main score of every arm, a line each."""
    writer = csv.DictWriter(file := StringIO(), COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for task in result.tasks:
        for block in task.blocks:
            for arm in block.rows:
                cells = line(task, block, arm).items()
                writer.writerow({name: spreadsheet_cell(blank(cell)) for name, cell in cells})
    return file.getvalue()


def line(task: TaskResult, block: BlockResult, arm: ArmResult) -> dict[str, Any]:
    score = arm.scores[task.score]
    cells: dict[str, Any] = {"task": task.task, "head": block.head, "part": task.part, "images": task.num_cases}
    cells |= {"patients": task.num_patients, "folds": task.num_folds}
    cells |= {"labels": arm.label_fraction, "strategy": arm.marked_label}
    cells |= {"seeds": arm.num_seeds, "pre-trainings": len(pretraining_seeds(arm)), "score": task.score}
    cells |= {"mean": score.mean, "std": score.std, "low": score.interval[0], "high": score.interval[1]}
    if difference := score.difference:
        low, high = difference.interval
        cells |= {"difference": difference.value, "difference_low": low, "difference_high": high}
        cells |= {name: getattr(difference, name) for name in ("p", "p_holm", "verdict")}
        cells["difference_seeds"] = difference.num_seeds
    if found := arm.calibration:
        low, high = found.interval
        cells |= {"ece_measured": found.measured, "ece": found.value, "ece_low": low, "ece_high": high}
    return cells


def blank(value: Any) -> Any:
    """An empty cell for what is undefined."""
    return "" if isinstance(value, float) and not math.isfinite(value) else value


# ---- LaTeX


def table_tex(result: ComparisonResult) -> str:
    """A tabular for each task and head, for `\\input`; it needs no package, and signs beyond ASCII UTF-8."""
    blocks = [tabular(task, block) for task in result.tasks for block in task.blocks]
    return "\n".join(blocks)


def tabular(task: TaskResult, block: BlockResult) -> str:
    has_errors = any(arm.calibration for arm in block.rows)
    score = NAMES.get(task.score, task.score)
    headings = [each.format(score=f"{score}, mean ± std") for each in HEADINGS] + [ECE] * has_errors
    rows = [row(task, arm) + ([error_cell(arm)] if has_errors else []) for arm in block.rows]
    about = f"{task.task}, head {block.head}, {task.part} part: {task.num_cases} images of {task.num_patients} patients"
    about += f" in {task.num_folds} folds" if task.num_folds > 1 else ""
    lines = [f"% {comment(about)}", rf"\begin{{tabular}}{{ll{'r' * (len(headings) - 2)}}}", r"\hline"]
    lines += [cells(headings), r"\hline", *map(cells, rows), r"\hline", r"\end{tabular}", ""]
    return "\n".join(lines)


def row(task: TaskResult, arm: ArmResult) -> list[str]:
    score = arm.scores[task.score]
    shown = [percent(arm.label_fraction), arm.marked_label, str(arm.num_seeds)]
    shown += [mean_std(score.mean, score.std), span(score.interval)]
    if (difference := score.difference) is None:
        return [*shown, "baseline" if arm.is_baseline else "-", "", ""]
    values = f"{signed(difference.value)} {span(difference.interval, signed)}"
    if difference.left_out:  # the row's own mean, beside it, is of other seeds
        values += f", {counted(difference.num_seeds, 'seed')}"
    return [*shown, values, p_value(difference.p_holm), difference.verdict]


def error_cell(arm: ArmResult) -> str:
    found = arm.calibration
    return "not stored" if found is None else f"{number(found.value)} {span(found.interval)}"


def cells(texts: Sequence[str]) -> str:
    return " & ".join(map(latex, texts)) + r" \\"


def latex(text: str) -> str:
    """Text as LaTeX prints it: minus signs of numbers in mathematics, all else as it stands. No line breaks."""
    words = []
    for word in " ".join(text.split()).split(" "):
        bare = word.strip("[],")
        is_negative = bare.startswith("-") and bare[1:].replace(".", "", 1).isdigit()
        escaped = "".join(SPECIAL.get(sign, sign) for sign in word)
        words.append(escaped.replace("{-}", "$-$", 1) if is_negative else escaped)
    return " ".join(words)


def comment(text: str) -> str:
    return " ".join(text.split())
