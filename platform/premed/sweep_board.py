"""A sweep as people read it: tables and its answer on the terminal, and its trials as CSV."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.text import Text

from premed.axes import Told, fields, short, word
from premed.console import table, width
from premed.errors import UserError, printable
from premed.figures import short as shortened
from premed.findings import Grid, cost, grid, kinds, pairs, scored, seeds
from premed.sweep_words import (
    about,
    answer,
    caveats,
    changing,
    chosen,
    command,
    constant,
    failures,
    front_lines,
    is_cost,
    joined,
    label,
    ordered,
    over,
    reused,
    several,
    shade,
    told,
    value,
    weights,
)


def show(outcome: Told) -> None:
    """The whole sweep on stdout."""
    say(f"Sweep {printable(outcome['name'])}: {about(outcome)}")
    show_trials(outcome)
    for metric in range(len(outcome["metrics"])):
        for rows, columns in pairs(outcome)[: not is_cost(outcome, metric)]:
            show_grid(outcome, grid(outcome, rows, columns, metric), metric)
    if outcome["importances"]:
        rows = [[name, f"{share:4.0%}", "█" * round(30 * share)] for name, share in weights(outcome).items()]
        say(f"What {label(outcome)} depends on most (Optuna's importances)")
        table("", ["field", "share", ""], rows, words=3)
    for line in reused(outcome):
        say(line)
    for number, reason in failures(outcome):
        print(shortened(f"trial {number} failed: {printable(reason)}", room()))
    print()
    say(answer(outcome))
    for line in [*front_lines(outcome), *caveats(outcome)]:
        say(f"- {line}")
    if outcome["best"] is not None:
        print(command(outcome))


def show_trials(outcome: Told) -> None:
    """One row per trial, the best first; its settings in a column each, in one where a line has not enough room."""
    rows, some, best = [], changing(outcome), chosen(outcome)
    metrics, names = range(len(outcome["metrics"])), short(fields(outcome))
    timed = "seconds" not in outcome["metrics"]
    for trial in ordered(outcome):
        row = [f"{trial['number']}{'*' if trial['number'] in best else ''}"]
        row += [*(value(outcome, trial, path) for path in some), trial["state"]]
        row += [told(outcome, scored(trial, i), i) for i in metrics]
        rows.append([*row, f"{cost(trial).total:.0f}"] if timed else row)
    columns = ["trial", *(names[path] for path in some), "state", *(label(outcome, i) for i in metrics)]
    columns += ["seconds"] * timed
    wide = [max(map(len, column)) + 1 for column in zip(columns, *rows, strict=True)]
    end = 1 + len(some)
    if some and 1 + sum(wide) > room():
        left = max(room() - 2 - wide[0] - sum(wide[end:]), 20)
        rows = [[row[0], fill(joined(columns[1:end], row[1:end]), left), *row[end:]] for row in rows]
        columns = ["trial", "setting", *columns[end:]]
    table("", columns, rows, words=columns.index("state") + 1)
    said = "*: on the front" if several(outcome) else "*: the best"
    say(f"{said}; seconds: of all stages that a trial needed, shared ones too")
    if same := constant(outcome):
        say(f"the same in all: {same}")


def show_grid(outcome: Told, found: Grid, metric: int) -> None:
    """A coloured table where the terminal has colours, the same in plain letters elsewhere; * marks the best cell."""
    names, shares = short(fields(outcome)), found.shares(outcome["modes"][metric])
    even = len({cell.num for row in found.cells for cell in row if cell.num}) < 2
    rows: list[list[str | Text]] = []
    for i, name in enumerate(found.rows.labels):
        cells: list[str | Text] = [name]
        for cell, share in zip(found.cells[i], shares[i].tolist(), strict=True):
            count = "" if even or not cell.num else f" ({cell.num})"
            said = f" {told(outcome, cell, metric)}{count}{'*' if share == 1 else ' '}"
            cells.append(Text(said, "on #{:02x}{:02x}{:02x}".format(*shade(share)[0]) + f" {shade(share)[1]}")
                         if math.isfinite(share) else said)  # fmt: skip
        rows.append(cells)
    across = found.columns.field
    head = [names[found.rows.field], *(found.columns.labels if across else [label(outcome, metric)])]
    title = f"{label(outcome, metric)} by {names[found.rows.field]}"
    title += f" (down) and {names[across]} (across)" if across else ""
    say(f"{title}: {over(outcome, found)}{'' if even else '; (n): of so many numbers'}")
    table("", head, rows, words=1)


def say(line: str) -> None:
    print(fill(line, room(), subsequent_indent="  "))


def room() -> int:
    """Columns of a line."""
    return width() or Console().width


# ---- CSV


def write_csv(outcome: Told, path: Path) -> None:
    """One line per trial and seed; of a trial without any, one whose seed is empty."""
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(lines(outcome))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file") from None


def lines(outcome: Told) -> Iterator[list[str]]:
    """Heads, then lines. What a trial cost is of all its seeds."""
    paths, metrics, stages = fields(outcome), range(len(outcome["metrics"])), kinds(outcome)
    heads = ["sweep", "task", "strategy", "trial", "state", "is_best", *paths, "seed", *outcome["metrics"]]
    yield [*heads, "trial_seconds", *(f"trial_{kind}_seconds" for kind in stages), "trial_peak_memory_mb", "reused",
           "failure", "run_id"]  # fmt: skip
    for trial in outcome["trials"]:
        spent = cost(trial)
        head = [outcome["name"], outcome["task"], outcome["strategy"], trial["number"], trial["state"]]
        head += [trial["number"] in chosen(outcome)]
        head += [trial["setting"].get(path, "") for path in paths]
        after = [spent.total, *(spent.seconds.get(kind, "") for kind in stages), spent.peak_memory_mb]
        after += [" ".join(sorted(spent.reused)), trial["failure"] or "", trial["run_id"] or ""]
        for seed in trial["by_seed"] or [""]:
            scores = [seeds(trial, i).get(seed, "") if seed else scored(trial, i).mean for i in metrics]
            yield [plain(cell) for cell in [*head, seed, *scores, *after]]


def plain(cell: Any) -> str:
    return "" if isinstance(cell, float) and not math.isfinite(cell) else word(cell)
