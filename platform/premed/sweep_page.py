"""A sweep as one HTML page: the answer and how sure it is, trials, heat maps, charts, what it cost, what failed."""

import math
from collections.abc import Iterator
from pathlib import Path

from premed import charts, sweep_charts
from premed.axes import Told, fields, short, varied
from premed.errors import UserError
from premed.figures import FAINT
from premed.findings import Grid, against, cost, curve, done, grid, kinds, pairs, reuse, scored
from premed.page import CHARTED, Cell, bullets, document, drawn, table, text
from premed.sweep_charts import BEST, DONE, Curve, Rivals
from premed.sweep_words import (
    about,
    answer,
    by_number,
    caveats,
    changing,
    chosen,
    command,
    constant,
    decimals,
    failures,
    front_lines,
    is_cost,
    label,
    ordered,
    over,
    reused,
    setting,
    several,
    shade,
    stage,
    told,
    value,
    weights,
)

STYLE = """
.answer { color: #222; font-size: 1.1rem; margin-top: 1rem } .answer b { font-weight: 600 }
pre { background: #f5f5f5; padding: .5rem .8rem; display: inline-block; margin: .4rem 0 }
tr:has(td.over) td { color: #777 } .maps { display: flex; flex-wrap: wrap; gap: 1rem 3rem }
.maps th { border: 0; vertical-align: middle } th.across { text-align: center }
td.heat { text-align: center; vertical-align: middle; padding: .5rem .8rem; border: 2px solid #fff; min-width: 5.5rem;
  font-variant-numeric: tabular-nums } td.heat span { font-size: 12px; opacity: .85 }
td.best { outline: 2px solid #D55E00; outline-offset: -1px }
"""
MOST = 9  # panels of scores against fields


def write(outcome: Told, file: Path) -> None:
    """The page of a sweep's outcome."""
    try:
        Path(file).write_text(page(outcome), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another file") from None


def page(outcome: Told) -> str:
    return document(f"premed sweep: {outcome['name']}", CHARTED + STYLE, filter(None, section(outcome)))


def section(outcome: Told) -> Iterator[str]:
    """All that is shown; what there is nothing of is left out."""
    yield f"<h1>Sweep: {text(outcome['name'])}</h1><p>{text(about(outcome))}</p>"
    yield f'<p class="answer"><b>{text(answer(outcome))}</b></p>'
    if outcome["best"] is not None:
        yield f"<pre>{text(command(outcome))}</pre>"
    yield f"<ul>{''.join(f'<li>{text(line)}</li>' for line in [*front_lines(outcome), *caveats(outcome)])}</ul>"
    yield rivals(outcome)
    yield trials(outcome)
    for metric in range(len(outcome["metrics"])):
        yield maps(outcome, metric) if not is_cost(outcome, metric) else ""
    for metric in range(len(outcome["metrics"])):
        yield panels(outcome, metric)
    if outcome["importances"]:
        words = "Optuna's importances: the share of the spread of scores that goes with each field"
        words += f", from {len(done(outcome))} finished trials. Few trials make them rough."
        yield drawn(f"What {label(outcome)} depends on most", words, sweep_charts.importances(weights(outcome)))
    yield curves(outcome)
    yield costs(outcome)
    yield bullets("What failed", [f"Trial {number}: {reason}" for number, reason in failures(outcome)])
    yield runs(outcome)


# ---- tables


def trials(outcome: Told) -> str:
    """All trials, the best first."""
    names, some = short(fields(outcome)), changing(outcome)
    metrics = range(len(outcome["metrics"]))
    scores = [[scored(trial, i) for trial in outcome["trials"]] for i in metrics]
    ends = [[x for s in of for x in (s.mean, s.mean - s.std, s.mean + s.std)] for of in scores]
    scales = [charts.spanning(each) for each in ends]
    timed = "seconds" not in outcome["metrics"]
    heads = ["trial", *(Cell(text(names[path]), "number") for path in some), Cell("state")]
    for i in metrics:
        heads += [Cell(f"{text(label(outcome, i))}<br>mean ± std", "number"), Cell(span(outcome, scales[i], i))]
    lines = []
    for trial in ordered(outcome):
        is_best, is_done = trial["number"] in chosen(outcome), trial["state"] == "done"
        colour = BEST if is_best else DONE if is_done else FAINT
        number = f"<b>{trial['number']}</b>" if is_best else str(trial["number"])
        cells = [Cell(f"{dot(colour)}{number}", "" if is_done else "over")]
        cells += [Cell(text(value(outcome, trial, path)), "number") for path in some]
        cells.append(Cell(text(trial["state"]), "error" if trial["state"] == "failed" else ""))
        for i in metrics:
            found = scored(trial, i)
            bar = charts.bar(found.mean, (found.mean - found.std, found.mean + found.std), scales[i] or (0, 1), colour)
            cells += [Cell(text(told(outcome, found, i)), "number"), Cell(bar)]
        lines.append([*cells, *[Cell(f"{cost(trial).total:.0f}", "number")] * timed])
    words = f"{dot(BEST)}{'on the front' if several(outcome) else 'the best'}; {dot(DONE)}done"
    if any(trial["state"] != "done" for trial in outcome["trials"]):
        words += f"; {dot(FAINT)}other: a stopped trial's score is what it had reached"
    words += ". Seconds: of all stages that a trial needed, shared ones too." if timed else "."
    words += text(f" The same in all: {constant(outcome)}.") * bool(constant(outcome))
    held = table([*heads, *[Cell("seconds", "number")] * timed], lines)
    return f'<h3>Trials</h3><div class="wide">{held}</div><p class="small">{words}</p>'


def span(outcome: Told, scale: tuple[float, float] | None, metric: int) -> str:
    """What the bars of a column stand for."""
    ends = " … ".join(decimals(outcome, end, metric) for end in scale or ())
    return f'<span class="faint">{ends}</span>'


def dot(colour: str) -> str:
    return f'<span class="dot" style="background:{colour}"></span>'


def maps(outcome: Told, metric: int) -> str:
    """A heat map for each pair of the most important fields."""
    shown = [heat(outcome, grid(outcome, *pair, metric), metric) for pair in pairs(outcome)]
    if not done(outcome, metric) or not shown:
        return ""
    way = "The darker, the better" + ("" if outcome["modes"][metric] == "max" else ", which here is lower")
    words = f"{way}; the best cell is framed. Only trials that are done count."
    title = f"{label(outcome, metric)} by setting"
    return f'<h3>{text(title)}</h3><p class="small">{words}</p><div class="maps">{"".join(shown)}</div>'


def heat(outcome: Told, found: Grid, metric: int) -> str:
    """Means and deviations as a table of colours; numbers of numbers where they are not the same everywhere."""
    names, shares = short(fields(outcome)), found.shares(outcome["modes"][metric])
    even = len({cell.num for row in found.cells for cell in row if cell.num}) < 2
    lines = []
    for i, name in enumerate(found.rows.labels):
        cells = []
        for cell, share in zip(found.cells[i], shares[i].tolist(), strict=True):
            if not math.isfinite(share):
                cells.append('<td class="heat">–</td>')
                continue
            (red, green, blue), ink = shade(share)
            mean, _, std = told(outcome, cell, metric).partition(" ")
            small = ", ".join(filter(None, [std, "" if even else f"n = {cell.num}"]))
            kind = "heat best" if share == 1 else "heat"
            style = f"background:rgb({red},{green},{blue});color:{ink}"
            cells.append(f'<td class="{kind}" style="{style}">{mean}<br><span>{text(small)}</span></td>')
        lines.append(f"<tr><th>{text(name)}</th>{''.join(cells)}</tr>")
    across = found.columns.field
    heads = "".join(f'<th class="across">{text(each)}</th>' for each in found.columns.labels)
    down = text(names[found.rows.field])
    corner = f"{down} ↓ &nbsp; {text(names[across])} →" if across else down
    caption = f"<figcaption><b>{down}{text(f' × {names[across]}') if across else ''}</b>: {text(over(outcome, found))}"
    held = f"<table><tr><th>{corner}</th>{heads}</tr>{''.join(lines)}</table>"
    return f'<figure>{caption}</figcaption><div class="wide">{held}</div></figure>'


def costs(outcome: Told) -> str:
    """What each trial needed, and what it was spared."""
    found = [cost(trial) for trial in ordered(outcome) if trial["stages"]]
    if not found:
        return ""
    heads = [
        Cell("trial", "number"),
        "setting",
        *(Cell(text(stage(k)), "number") for k in kinds(outcome)),
    ]
    heads += [Cell("seconds<br>in all", "number"), Cell("peak memory", "number")]
    lines = []
    for each in found:
        cells = [
            Cell(str(each.number), "number"),
            Cell(text(setting(outcome, by_number(outcome)[each.number]))),
        ]
        for kind in kinds(outcome):
            mark = '<span class="faint"> shared</span>' if kind in each.reused else ""
            cells.append(Cell(f"{each.seconds[kind]:.0f}{mark}" if kind in each.seconds else "–", "number"))
        memory = f"{each.peak_memory_mb / 1024:.1f} GB" if math.isfinite(each.peak_memory_mb) else "–"
        lines.append([*cells, Cell(f"{each.total:.0f}", "number"), Cell(memory, "number")])
    said = "".join(f"<li>{text(line)}</li>" for line in reused(outcome))
    shared = " Shared: it was there already, and not trained again." * any(each.reused for each in found)
    held = f'<details{" open" * (len(found) <= 24)}><summary>Seconds by trial</summary><div class="wide">'
    held += f'{table(heads, lines)}</div><p class="small">Seconds of all of a trial\'s seeds.{shared}</p></details>'
    title = "What it cost, and what reuse saved" if reuse(outcome).saved else "What it cost"
    return f"<h3>{title}</h3><ul>{said}</ul>{held}"


def runs(outcome: Told) -> str:
    """Where all of it is in MLflow, folded away."""
    lines = [
        [str(trial["number"]), Cell(f"<code>{text(trial['run_id'] or '–')}</code>"), Cell("<br>".join(
            f"{text(stage(each['kind']))} <code>{text(each['run_id'])}</code>" for each in trial["stages"]
        ))]
        for trial in outcome["trials"]
    ]  # fmt: skip
    held = table(["trial", "its run in MLflow", "its stages"], lines)
    words = f"Runs in MLflow; the sweep's own is {outcome['run_id']}"
    return f'<details><summary>{text(words)}</summary><div class="wide">{held}</div></details>'


# ---- charts


def panels(outcome: Told, metric: int) -> str:
    """A metric against each field that has several values."""
    shown = [against(outcome, path, metric) for path in varied(outcome)[:MOST]]
    shown = [each for each in shown if each.points]
    if not shown:
        return ""
    words = "A point per trial" + "; the most important field comes first" * bool(outcome["importances"])
    words += ". Grey: stopped early." if any(point.stopped for each in shown for point in each.points) else "."
    words += " Lines go through the means of those that are done." * any(each.scale == "words" for each in shown)
    chart = sweep_charts.panels(shown, short(fields(outcome)), label(outcome, metric), chosen(outcome))
    return drawn(f"{label(outcome, metric)} against each field", words, chart)


def curves(outcome: Told) -> str:
    """The best so far over validations."""
    lines = []
    for trial in outcome["trials"]:
        if known := [(x, y) for x, y in curve(trial) if math.isfinite(y)]:
            x, values = zip(*known, strict=True)
            lines.append(Curve(trial["number"], trial["state"], x, values))
    if not lines:
        return ""
    states = {line.state for line in lines}
    words = "The best so far of each trial's first seed."
    words += " Grey: stopped or failed." * bool(states & {"stopped", "failed"})
    words += " Dashed: still running." * ("running" in states)
    return drawn("Learning curves", words, sweep_charts.curves(lines, chosen(outcome), label(outcome)))


def rivals(outcome: Told) -> str:
    """The first metric over each of the others."""
    shown = []
    for i in range(1, len(outcome["metrics"])):
        both = [(t["number"], scored(t, i).mean, scored(t).mean) for t in done(outcome)]
        if known := [each for each in both if math.isfinite(each[1])]:
            numbers, x, y = zip(*known, strict=True)
            shown.append(Rivals(label(outcome, i), outcome["modes"][i], x, y, numbers))
    if not shown:
        return ""
    words = "Red, with their numbers: trials of the front, to which no other is better in one and no worse in the rest."
    chart = sweep_charts.rivals(shown, label(outcome), outcome["front"])
    return drawn(f"{label(outcome)} against {', '.join(each.name for each in shown)}", words, chart)
