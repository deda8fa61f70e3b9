"""A sweep's result on the terminal, and its trials as CSV."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.text import Text

from premed.data.figures import short
from premed.errors import printable
from premed.paths import writing
from premed.reporting.console import output_width, print_table
from premed.reporting.sweep import summary
from premed.reporting.sweep.analysis import (
    ScoreGrid,
    field_pairs,
    score_grid,
    seed_scores,
    stage_kinds,
    trial_cost,
    trial_score,
)
from premed.reporting.sweep.fields import field_paths, format_value, short_names, varied_fields
from premed.reporting.sweep.result import SweepResult
from premed.safety.files import spreadsheet_cell


def show(result: SweepResult) -> None:
    """Prints the result on stdout."""
    print_wrapped(f"Sweep {printable(result.name)}: {summary.headline(result)}")
    show_trials(result)
    for metric in range(len(result.metrics)):
        for rows, columns in field_pairs(result)[: not summary.is_cost(result, metric)]:
            show_grid(result, score_grid(result, rows, columns, metric), metric)
    if result.importances:
        shares = summary.importance_shares(result).items()
        print_wrapped(f"What {summary.metric_label(result)} depends on most (Optuna's importances)")
        print_table(
            "", ["field", "share", ""], [[name, f"{x:4.0%}", "█" * round(30 * x)] for name, x in shares], words=3
        )
    for line in summary.reuse_lines(result):
        print_wrapped(line)
    for number, reason in summary.failures(result):
        print(short(f"trial {number} failed: {printable(reason)}", line_width()))
    print()
    print_wrapped(summary.conclusion(result))
    for line in [*summary.front_lines(result), *summary.caveats(result)]:
        print_wrapped(f"- {line}")
    if result.best is not None:
        print(summary.best_command(result))


def show_trials(result: SweepResult) -> None:
    """Prints a row for each trial, the best first: a column for each field, or one for all if lines are too short."""
    rows, paths, metrics = [], varied_fields(result), range(len(result.metrics))
    with_seconds = "seconds" not in result.metrics
    for trial in summary.sorted_trials(result):
        row = [f"{trial.number}{'*' if trial.number in result.front else ''}"]
        row += [*(summary.field_text(result, trial, path) for path in paths), trial.state]
        row += [summary.format_score(result, trial_score(trial, i), i) for i in metrics]
        rows.append([*row, f"{trial_cost(trial).total:.0f}"] if with_seconds else row)
    names = short_names(field_paths(result))
    columns = ["trial", *(names[path] for path in paths), "state", *(summary.metric_label(result, i) for i in metrics)]
    columns += ["seconds"] * with_seconds
    widths = [max(map(len, column)) + 1 for column in zip(columns, *rows, strict=True)]
    end = 1 + len(paths)
    if paths and 1 + sum(widths) > line_width():
        left = max(line_width() - 2 - widths[0] - sum(widths[end:]), 20)
        rows = [[row[0], fill(summary.named(columns[1:end], row[1:end]), left), *row[end:]] for row in rows]
        columns = ["trial", "setting", *columns[end:]]
    print_table("", columns, rows, words=columns.index("state") + 1)
    star = "*: on the Pareto front" if result.is_multi_objective else "*: the best"
    print_wrapped(f"{star}; seconds: of all stages that a trial needed, shared ones too")
    if constant := summary.constant_setting(result):
        print_wrapped(f"the same in all: {constant}")


def show_grid(result: SweepResult, grid: ScoreGrid, metric: int) -> None:
    """Prints the grid as a table, its cells coloured on a terminal with colours; * marks the best one."""
    names, relative = short_names(field_paths(result)), grid.relative(result.modes[metric])
    rows: list[list[str | Text]] = []
    for i, label in enumerate(grid.rows.labels):
        row: list[str | Text] = [label]
        for cell, goodness in zip(grid.cells[i], relative[i].tolist(), strict=True):
            count = "" if grid.is_balanced or not cell.num else f" ({cell.num})"
            text = f" {summary.format_score(result, cell, metric)}{count}{'*' if goodness == 1 else ' '}"
            if math.isfinite(goodness):
                background, ink = summary.heat_colours(goodness)
                row.append(Text(text, f"on {background} {ink}"))
            else:
                row.append(text)
        rows.append(row)
    across = grid.columns.field
    columns = [names[grid.rows.field], *(grid.columns.labels if across else [summary.metric_label(result, metric)])]
    title = f"{summary.metric_label(result, metric)} by {names[grid.rows.field]}"
    title += f" (down) and {names[across]} (across)" if across else ""
    title += f": {summary.averaged_over(result, grid)}"
    print_wrapped(title if grid.is_balanced else f"{title}; (n): over n scores")
    print_table("", columns, rows, words=1)


def print_wrapped(line: str) -> None:
    print(fill(line, line_width(), subsequent_indent="  "))


def line_width() -> int:
    return output_width() or Console().width


# ---- CSV


def write_csv(result: SweepResult, path: Path) -> None:
    """Writes a line for each trial and seed. Raises UserError if the file cannot be written."""
    with writing(path), Path(path).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([*map(spreadsheet_cell, row)] for row in csv_rows(result))


def csv_rows(result: SweepResult) -> Iterator[list[str]]:
    """The header, then a row for each trial and seed; the seed is empty for a trial without scores by seed.

    A trial's seconds and memory are those of all its seeds, in each of its rows.
    """
    paths, metrics, kinds = field_paths(result), range(len(result.metrics)), stage_kinds(result)
    header = ["sweep", "task", "strategy", "trial", "state", "is_best", *paths, "seed", *result.metrics]
    yield [*header, "trial_seconds", *(f"trial_{kind}_seconds" for kind in kinds), "trial_peak_memory_mb", "reused",
           "failure", "run_id"]  # fmt: skip
    for trial in result.trials:
        cost = trial_cost(trial)
        before = [result.name, result.task, result.strategy, trial.number, trial.state, trial.number in result.front]
        before += [trial.setting.get(path, "") for path in paths]
        after = [cost.total, *(cost.seconds.get(kind, "") for kind in kinds), cost.peak_memory_mb]
        after += [" ".join(sorted(cost.reused)), trial.failure or "", trial.run_id or ""]
        for seed in trial.by_seed or [""]:
            scores = [seed_scores(trial, i).get(seed, "") if seed else trial_score(trial, i).mean for i in metrics]
            yield [csv_cell(value) for value in [*before, seed, *scores, *after]]


def csv_cell(value: Any) -> str:
    return "" if isinstance(value, float) and not math.isfinite(value) else format_value(value)
