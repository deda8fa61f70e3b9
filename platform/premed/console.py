"""What a person sees at the end: tables and lines on stdout."""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from premed.check import alike, summed_up
from premed.config.expand import percent
from premed.errors import printable

NAMES = {"dice": "Dice", "hd95": "HD95, mm", "mauc": "mean AUC", "accuracy": "accuracy"}  # of scores


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], words: int = 2) -> None:
    """A table on stdout, no wider than it need be; after the first `words` columns, numbers stand on the right."""
    drawn = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="left" if i < words else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))  # [a, b] is no markup here
    Console(width=width(), highlight=False).print(drawn)


def width() -> int | None:
    """Columns that a line may have; None: as many as the terminal has."""
    return None if sys.stdout.isatty() else 120


def outcomes(found: Sequence[dict[str, Any]]) -> None:
    """One row per experiment: its score on the test part (or val), interval, constant answer, gate, seconds.

    Of several, the labels' share and the seed too, and the mean over seeds.
    """
    several = ["labels", "seed"] if len(found) > 1 else []
    columns = ["task", "strategy", *several, "score", "value", "95 % interval", "constant", "gate", "seconds"]
    rows, title = [outcome_row(outcome, several) for outcome in found], "Scores"
    scores = {score_of(outcome)[0] for outcome in found if outcome["stages"]}
    if several and len(scores) == 1:  # once is enough, and 80 columns are few
        title, at = f"Scores: {scores.pop()}", columns.index("score")
        rows = [row[:at] + row[at + 1 :] for row in [columns, *rows]]
        columns = rows.pop(0)
    table(title, columns, rows)
    print("interval: over patients, one seed; constant: the best answer that looks at no image;")
    print("gate: how far pre-training's validation loss is below that of a predictor without a network")
    over_seeds(found)
    for outcome in found:
        name = outcome.get("name") or f"{outcome['task']} {outcome['strategy']}"
        if "failure" in outcome:
            print(f"{name} FAILED: {outcome['failure']}")
            continue
        last = outcome["stages"][-1]
        if not several:
            print(f"{name}: {last['where']}")
    unknown = {
        (o["task"], *o["stages"][-1]["undefined"]) for o in found if o["stages"] and o["stages"][-1].get("undefined")
    }
    for task, *classes in sorted(unknown):  # the same test part, the same classes
        print(f"{task}: no AUC, and left out of the mean: {', '.join(classes)} (one kind of label only)")
    if folders := sorted(
        {str(PurePosixPath(o["stages"][-1]["where"]).parent) for o in found if several and o["stages"]}
    ):
        print(f"weights and pictures: {', '.join(folders)}; side by side, with intervals and tests: premed compare")


def outcome_row(outcome: dict[str, Any], several: Sequence[str]) -> list[str]:
    stages = outcome["stages"]
    which = [percent(outcome["label_fraction"]), str(outcome["seed"])] if several else []
    which = [outcome["task"], outcome["strategy"], *which]
    if "failure" in outcome:
        return [*which, "-", "failed", "-", "-", "-", "-"]
    last, seconds = stages[-1], sum(stage["seconds"] for stage in stages)
    gate = next((stage["gate"] for stage in stages if stage.get("gate")), None)
    past = "-" if gate is None else f"{gate['below']:.0%}" if gate["passed"] else "not past"
    past = "collapsed" if any(stage.get("collapse") for stage in stages) else past
    interval, constant = "-", "-"
    if last["kind"] == "test":
        constant = number(last["constant"])
        interval = f"[{number(last['interval'][0])}, {number(last['interval'][1])}]"
    score, value = score_of(outcome)
    return [*which, score, number(value), interval, constant, past, f"{seconds:.0f}"]


def score_of(outcome: dict[str, Any]) -> tuple[str, float | None]:
    """The name and the value of an outcome's score, on the part that it was measured on last."""
    last = outcome["stages"][-1]
    part = "test" if last["kind"] == "test" else "val"
    return f"{part} {outcome['score']}", last["summary"].get(f"{part}/{outcome['score']}")


def score_words(outcome: dict[str, Any]) -> str:
    score, value = score_of(outcome)
    return f"{score} {number(value)}"


def over_seeds(found: Sequence[dict[str, Any]]) -> None:
    """Mean and standard deviation where there are several seeds of the same task, strategy and share of labels."""
    groups = defaultdict(list)
    for outcome in found:
        if "failure" not in outcome and (scored := score_of(outcome))[1] is not None:
            share = percent(outcome["label_fraction"]) if "label_fraction" in outcome else ""
            groups[outcome["task"], outcome["strategy"], share, scored[0]].append(scored[1])
    rows = [
        [*group, str(len(values)), f"{number(statistics.mean(values))} ± {number(statistics.stdev(values))}"]
        for group, values in groups.items()
        if len(values) > 1
    ]
    if rows:
        table("Over seeds", ["task", "strategy", "labels", "score", "seeds", "mean ± std"], rows)


def predictions(told: dict[str, Any]) -> None:
    """What came of `premed predict`."""
    what = "label maps" if "files" in told["outputs"][0] else "rows of probabilities"
    left = f"; {len(told['failed'])} skipped" if told["failed"] else ""
    print(f"{told['task']}: {what} of {len(told['outputs'])} images in {told['folder']}{left}")


def exported(told: dict[str, Any]) -> None:
    """What came of `premed export`."""
    print(f"{told['task']} as {told['format']} in {told['folder']}: {', '.join(told['files'])}")
    if found := told.get("check"):
        print(f"largest difference of a logit from torch's: {found['largest_difference']:.2g}, on {found['on']}")


def upload(told: dict[str, Any]) -> None:
    """What `premed submit` would send."""
    print(told["entrypoint"])
    for name, value in told["env_vars"].items():
        print(f"with {name}={value}")
    for file in told["files"]:
        print(f"{file['bytes']:>12,} {printable(file['name'])}")
    print(f"{told['megabytes'] * 1e6:>12,.0f} bytes in all, as Ray packs {len(told['files'])} files")


def findings(told: dict[str, Any]) -> None:
    """What `premed data check` found, errors first; of many files with the same trouble, ten."""
    name = printable(told["task"])
    title = f"{name} in {printable(told['root'])}" if told["root"] else name
    if told["findings"]:
        table(title, ["", "where", "what"], list(alike(told, 10)), words=3)
    print(f"{name}: {summed_up(told)}")
    for source in told.get("sources", ()):
        findings(source)


def number(value: float | None) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.3f}"
