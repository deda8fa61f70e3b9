"""A comparison as one HTML page: tables with the verdict in words, charts, cases, pictures, and links to the runs."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from premed import charts, exhibits, tables
from premed.console import number
from premed.contenders import counted, listed
from premed.errors import UserError
from premed.page import CHARTED, Cell, bullets, document, drawn, image, table, text
from premed.runs import RunStore
from premed.scoreboard import NAMES, Told, signed
from premed.tables import Cells, Group

EXTREMES = 3  # largest gains and losses that are shown


def refuse(path: Path, ui: str | None) -> None:
    """What can be said of the page's options before any work."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"--html {path}: there is no such folder to write it into; make it")
    if ui is not None and (urlsplit(ui).scheme not in ("http", "https") or not urlsplit(ui).netloc):
        raise UserError(f"--ui {ui}: is no address; it reads http://127.0.0.1:5000, as premed ui prints it")


def write(outcome: Told, store: RunStore, path: Path, ui: str | None) -> None:
    """The page of what `compare` told of `store`. ui: where MLflow's UI is; None: the server that the store is on."""
    if ui is None and store.uri.startswith("http"):
        parts = urlsplit(store.uri)
        ui = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # nobody's password goes into a page
    try:
        path.write_text(page(outcome, store, ui), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {path}: cannot be written ({error.strerror}); name another file") from None


def page(outcome: Told, store: RunStore, ui: str | None = None) -> str:
    names = [task["task"] for task in outcome["tasks"]]
    body = [f"<h1>Comparison: {text(listed(names))}</h1>", *(f"<p>{text(note)}</p>" for note in outcome["notes"])]
    links = (f'<a href="#task-{i}">{text(name)}</a>' for i, name in enumerate(names))
    body += [f"<p>{' · '.join(links)}</p>"] if len(names) > 1 else []
    for i, task in enumerate(outcome["tasks"]):
        body += [f'<h2 id="task-{i}">{text(task["task"])}</h2>', f"<p>{text(about(task))}</p>"]
        for block in task["blocks"]:
            body += [f"<h3>Head {text(block['head'])}</h3>"] if len(task["blocks"]) > 1 else []
            body += section(Group(task, block, ui), store)
        body.append(bullets("What to know of this task", task["notes"]))
    return document(f"premed compare: {listed(names)}", CHARTED, filter(None, body))


def about(task: Told) -> str:
    """What was scored."""
    scored = f"{counted(task['num_cases'], 'case')} of {counted(task['num_patients'], 'patient')}"
    base = f"set against {task['baseline']}" if task["baseline"] else "without a baseline"
    said = f"The {task['part']} part, {scored}: {NAMES.get(task['score'], task['score'])}, {base}."
    return f"{said} Intervals are of 95 %; a difference is that of the row less the baseline."


def section(group: Group, store: RunStore) -> Iterator[str]:
    """All that is shown of one head's runs on one task; what there is nothing of is left out."""
    yield tables.verdicts(group)
    yield tables.scores(group, group.score)
    yield fractions(group)
    yield from (tables.scores(group, name) for name in group.rows[0]["scores"] if name != group.score)
    yield tables.classes(group)
    found = exhibits.cases(store, group.part, group.last)
    yield strips(group, found)
    yield extremes(group, found)
    yield tables.costs(group)
    yield pretraining(group, exhibits.curves(store, group.rows))
    early, late = exhibits.pictures(store, group.part, group.last)
    yield pictures("What pre-training sees", early)
    yield pictures("Answers", late)
    yield bullets("What to know of these rows", group.block["notes"])
    yield tables.runs(group)


# ---- charts


def fractions(group: Group) -> str:
    """Score against label fraction, where there are several."""
    if len({row["label_fraction"] for row in group.rows}) < 2:
        return ""
    lines = []
    for label, colour in group.colours.items():
        some = [row for row in group.rows if row["label"] == label]
        found = [row["scores"][group.score] for row in some]
        low, high = ([each["interval"][i] for each in found] for i in (0, 1))
        x, values = [row["label_fraction"] for row in some], [each["mean"] for each in found]
        lines.append(charts.Line(label, colour, x, values, low, high))
    if not any(math.isfinite(value) for line in lines for value in line.values):
        return ""
    words = "Means over seeds; the bands are the intervals of the table above."
    return drawn(f"{group.word} against the share of labels", words, charts.fractions(lines, group.word))


def strips(group: Group, found: exhibits.Cases) -> str:
    """Every strategy's numbers by case or, where a case has no score of its own, by class; paired with the baseline."""
    names, numbers, over, word = found.names, found.values, "case", "Dice"
    if not found.are_cases:
        scored = {row["label"]: row["scores"]["mauc"]["classes"] for row in group.last}
        names, over, word = list(next(iter(scored.values()))), "class", "AUC"
        numbers = {label: [each[name]["mean"] for name in names] for label, each in scored.items()}
    first = group.base or group.last[0]["label"]
    places = [i for i in range(len(names)) if any(math.isfinite(each[i]) for each in numbers.values())]
    places.sort(key=lambda i: (math.isnan(numbers[first][i]), numbers[first][i]))
    if len(places) < 2:
        return ""
    rows = [charts.Strip(label, group.colours[label], [each[i] for i in places]) for label, each in numbers.items()]
    base = next((row for row in rows if row.name == group.base and len(rows) > 1), None)
    words = f"Each {over} has its place from left to right, in the order of {first}; means over seeds."
    if base:
        many = len(places) > charts.MANY
        words += f" The dark line is {first}." if many else f" Grey is {first}, and a stem leads from there."
    some = [row for row in rows if row is not base]
    svg = charts.strips(some, base, [names[i] for i in places], f"each {over}, ordered by {first}", word)
    return drawn(f"{word} by {over}", words, svg)


def pretraining(group: Group, curves: Sequence[exhibits.Curve]) -> str:
    """Validation losses: as shares of the gate where there is one, else as they are, a chart for each strategy."""
    parts, lines = [], []
    for label, steps, losses, gate in curves:
        if gate:
            shares = [loss / gate for loss in losses]
            lines.append(charts.Line(f"{label}: {100 * shares[-1]:.0f} %", group.colours[label], steps, shares))
    if lines:
        gates = listed({f"{curve.gate:.3g}" for curve in curves if curve.gate})
        words = f"Validation loss, as a share of what predicting the mean patch of each place loses ({gates}), which "
        words += "takes no network: the gate. An encoder that is not clearly below 100 % has little to transfer."
        parts.append(drawn("Pre-training and its gate", words, charts.pretraining(lines, "loss / gate", 1.0)))
    for label in dict.fromkeys(curve.label for curve in curves if not curve.gate):
        plain = [charts.Line(label, group.colours[label], c.steps, c.losses) for c in curves if c.label == label]
        parts.append(drawn(f"Pre-training of {label}", "Validation loss.", charts.pretraining(plain, "loss")))
    return "".join(parts)


# ---- cases and pictures


def extremes(group: Group, found: exhibits.Cases) -> str:
    """The cases with the largest gains and losses against the baseline."""
    lines: list[Cells] = []
    for row in group.last if group.base else []:
        apart = found.apart(row["label"], group.base or "")
        gains = [each for each in apart[:EXTREMES] if each[2] > each[1]]
        losses = [each for each in apart[-EXTREMES:] if each[2] < each[1]]
        for i, (name, theirs, ours) in enumerate(gains + losses):
            told = [Cell(number(theirs), "number"), Cell(number(ours), "number")]
            way = f'<span class="{"up" if ours > theirs else "down"}">{signed(ours - theirs)}</span>'
            shown = Cell(text(name), "name first" if i == 0 else "name")
            lines.append([group.named(row) if i == 0 else "", shown, *told, Cell(way, "number")])
    if not lines:
        return ""
    heads = [Cell("strategy", "name"), Cell("case", "name"), Cell(text(group.base), "number")]
    heads += [Cell("strategy", "number"), Cell("difference", "number")]
    words = f"The largest gains and losses against {group.base}: {found.what}, the mean over seeds."
    return f'<h3>Best and worst cases</h3><p>{text(words)}</p><div class="wide">{table(heads, lines)}</div>'


def pictures(title: str, found: Sequence[exhibits.Picture]) -> str:
    """Side by side; every run drew the same cases, in the same order."""

    def shown(picture: exhibits.Picture) -> str:
        words = f"<b>{text(picture.label)}</b>, seed {text(picture.seed)}: {text(picture.name)}"
        png = image(picture.png, f"{picture.label}: {picture.name}")
        long = ' class="long"' * picture.is_long
        return f"<figure{long}><figcaption>{words}</figcaption>{png}</figure>"

    return f'<h3>{text(title)}</h3><div class="beside">{"".join(map(shown, found))}</div>' if found else ""
