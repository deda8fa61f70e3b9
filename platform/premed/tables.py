"""The tables of a comparison's page, and the colours and names by which all that the page shows goes together."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from premed import charts, scoreboard
from premed.console import number
from premed.contenders import counted
from premed.data.figures import COLOURS, FAINT, LINES
from premed.page import Cell, table, text
from premed.scoreboard import NAMES, Told, called, chance, share, signed, span, spread

Cells = list[Cell | str]


class Group:
    """The rows of one head on one task. ui: where MLflow's UI is, for links; None: nobody said."""

    def __init__(self, task: Told, block: Told, ui: str | None):
        self.task, self.block, self.ui = task, block, ui and ui.rstrip("/")
        self.rows: Sequence[Told] = block["rows"]
        self.score: str = task["score"]
        self.part: str = task["part"]
        self.word = NAMES.get(self.score, self.score)
        largest = max(row["label_fraction"] for row in self.rows)
        self.last = [row for row in self.rows if row["label_fraction"] == largest]
        self.base = next((row["label"] for row in self.last if row["is_baseline"]), None)

    @cached_property
    def colours(self) -> dict[str, str]:
        """By label, the baseline grey."""
        bases = [row["label"] for row in self.rows if row["is_baseline"]]
        others = dict.fromkeys(row["label"] for row in self.rows if row["label"] not in bases)
        return {label: COLOURS[LINES[i % len(LINES)]] for i, label in enumerate(others)} | dict.fromkeys(bases, FAINT)

    def dot(self, row: Told) -> str:
        return f'<span class="dot" style="background:{self.colours[row["label"]]}"></span>'

    def named(self, row: Told) -> Cell:
        other = "" if row["same_architecture"] else '<br><span class="small">another architecture</span>'
        return Cell(f"{self.dot(row)}{text(row['label'])}{other}", "name")

    def link(self, run: Told, run_id: str, words: str) -> str:
        """To a run's page in MLflow's UI; its id where nobody said where that is."""
        if self.ui is None:
            return f"{text(words)} <code>{text(run_id)}</code>"
        place = f"{self.ui}/#/experiments/{run['experiment_id']}/runs/{run_id}"
        return f'<a href="{text(place)}">{text(words)}</a>'


# ---- the verdict in words


def verdicts(group: Group) -> str:
    """One sentence for each strategy, at the largest label fraction."""
    if not group.base or len(group.last) < 2:
        return ""
    largest = f", with {share(group.last[0])} of the labels" if len(group.last) < len(group.rows) else ""
    lines = (f"<li>{group.dot(row)}{verdict(row, group.base, group.score)}</li>" for row in group.last)
    return f'<p>{text(group.word + largest)}:</p><ul class="verdicts">{"".join(lines)}</ul>'


def verdict(row: Told, base: str, score: str) -> str:
    """A row against the baseline."""
    found = row["scores"][score]
    mine = f"<b>{text(row['label'])}</b>: {text(spread(found))} {text(span(found['interval']))}"
    if (apart := found["difference"]) is None:
        return f"{mine}, the baseline"
    said, comma, rest = apart["verdict"].partition(", ")
    if said.startswith("not separable"):
        said = f"not separable from {base}{said.removeprefix('not separable')}"
    else:
        said += f" {'against' if said == 'no interval' else 'than'} {base}"
    numbers = f"{signed(apart['value'])} {span(apart['interval'], signed)}"
    return f"{mine}; <b>{text(said + comma + rest)}</b>, {text(numbers)}"


# ---- scores


def scores(group: Group, name: str) -> str:
    """One score of all rows; of the main one with p-values and verdicts."""
    main = name == group.score
    found = [row["scores"][name] for row in group.rows]
    constants = [row["constant"] for row in group.rows] if main else []
    scale = charts.spanning([x for each in found for x in (each["mean"], *each["interval"])], constants)
    apart = [each["difference"] for each in found if each["difference"]]
    reach = charts.spanning([x for each in apart for x in (each["value"], *each["interval"])], [0.0] * bool(apart))
    title = NAMES.get(name, name)
    heads: Cells = ["labels", Cell("strategy", "name"), Cell("seeds", "number")]
    heads += [Cell(f"{text(title)}<br>mean ± std", "number"), Cell(f"interval{ends(scale)}")]
    if apart:
        heads += [Cell("difference", "number"), Cell(f"interval{ends(reach, signed)}")]
        heads += [Cell("p", "number"), Cell("p, Holm", "number"), "verdict"] if main else []
    lines = [score_line(group, row, name, scale, reach, first) for row, first in firsts(group.rows)]
    way = "" if found[0]["higher_is_better"] else ": lower is better"
    body = f'<h3>{text(title + way)}</h3><div class="wide">{table(heads, lines)}</div>'
    known = any(math.isfinite(x) for x in constants)
    return body + '<p class="small">Dashed in the first interval: the best answer that looks at no image.</p>' * known


def score_line(group: Group, row: Told, name: str, scale: Any, reach: Any, first: bool) -> Cells:
    main, found, colour = name == group.score, row["scores"][name], group.colours[row["label"]]
    cells: Cells = [fraction(row, first), group.named(row), Cell(str(row["num_seeds"]), "number")]
    cells += [Cell(text(spread(found)), "number")]
    marks = [row["constant"]] if main else []
    cells.append(lined(found["mean"], found["interval"], scale, colour, marks))
    if reach is None:
        return cells
    if (apart := found["difference"]) is None:
        word = "baseline" if row["is_baseline"] else "–"
        return [*cells, Cell(word, "number faint"), "", *([""] * 3 * main)]
    cells.append(Cell(text(signed(apart["value"])), "number"))
    cells.append(lined(apart["value"], apart["interval"], reach, colour, [0.0], signed))
    if main:
        cells += [Cell(text(chance(apart[key])), "number") for key in ("p", "p_holm")]
        cells.append(Cell(text(apart["verdict"]), "words"))
    return cells


def firsts(rows: Sequence[Told]) -> list[tuple[Told, bool]]:
    """Rows, and whether each is the first of its label fraction."""
    before = [None, *(row["label_fraction"] for row in rows)]
    return [(row, row["label_fraction"] != last) for row, last in zip(rows, before, strict=False)]


def fraction(row: Told, first: bool) -> Cell:
    return Cell(share(row), "first") if first else Cell("")


def lined(
    value: float, interval: Sequence[float], scale: Any, colour: str, marks: Sequence[float], word: Any = number
) -> Cell:
    """An interval in numbers over its bar."""
    bar = charts.bar(value, interval, scale, colour, marks) if scale else ""
    return Cell(text(span(interval, word)) + bar, "interval")


def ends(scale: tuple[float, float] | None, word: Any = number) -> str:
    return f'<br><span class="faint">{word(scale[0])} … {word(scale[1])}</span>' if scale else ""


def classes(group: Group) -> str:
    """The classes' means, a table for each label fraction; that of the largest is open."""
    names = list(group.last[0]["scores"][group.score]["classes"])
    if len(names) < 2:
        return ""
    parts = [f"<h3>{text(group.word)} by class</h3>"]
    for share_ in sorted({row["label_fraction"] for row in group.rows}, reverse=True):
        some = [row for row in group.rows if row["label_fraction"] == share_]
        heads = [Cell("class", "name"), *(Cell(group.dot(row) + text(called(row)), "name") for row in some)]
        lines = (
            [Cell(text(name), "name"), *(classed(row["scores"][group.score], name) for row in some)] for name in names
        )
        is_open = " open" * (some[0] in group.last)
        parts.append(f"<details{is_open}><summary>{share(some[0])} of the labels</summary>")
        parts.append(f'<div class="wide">{table(heads, lines)}</div></details>')
    said = "▲ ▼ above or below the baseline by the class's own interval, not corrected for the number of classes."
    return "".join(parts) + f'<p class="small">{said}</p>' * (group.base is not None)


def classed(found: Told, name: str) -> Cell:
    """A class's mean and spread, marked where it stands clear of the baseline's."""
    each = found["classes"][name]
    apart, mark = each["difference"], ""
    if apart and math.isfinite(apart["interval"][0]) and not apart["interval"][0] <= 0 <= apart["interval"][1]:
        way = "up" if (apart["value"] > 0) == found["higher_is_better"] else "down"
        mark = f' <span class="{way}">{"▲" if apart["value"] > 0 else "▼"}</span>'
    return Cell(text(spread(each)) + mark, "number")


# ---- what it cost, and where it is


def costs(group: Group) -> str:
    columns, lines = scoreboard.beside(group.task, group.rows)
    heads = [Cell(text(name), "name" if name == "strategy" else "") for name in columns]
    cells = [
        [fraction(row, first), group.named(row), *line[2:]]
        for (row, first), line in zip(firsts(group.rows), lines, strict=True)
    ]
    return f'<h3>What it cost, and what stands beside the scores</h3><div class="wide">{table(heads, cells)}</div>'


def runs(group: Group) -> str:
    """Every run behind the rows, folded away."""
    lines: list[Cells] = []
    for row in group.rows:
        for run in row["runs"]:
            stages = (group.link(run, run_id, kind) for kind, run_id in run["stages"].items())
            told = [Cell(text(run["name"]), "name"), Cell(number(run["value"]), "number")]
            told += [Cell(group.link(run, run["run_id"], "experiment")), Cell("<br>".join(stages))]
            lines.append([share(row), group.named(row), *told])
    heads = ["labels", Cell("strategy", "name"), Cell("run", "name"), Cell(text(group.word), "number")]
    held = table([*heads, "in MLflow", "its stages"], lines)
    return f'<details><summary>{counted(len(lines), "run")}</summary><div class="wide">{held}</div></details>'
