"""A comparison as people read it: tables for the terminal, and all of its numbers as CSV."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from premed.console import NAMES, number, table
from premed.errors import UserError

Told = Mapping[str, Any]
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


def show(outcome: Told) -> None:
    """The whole comparison on stdout."""
    for task in outcome["tasks"]:
        for block in task["blocks"]:
            show_block(task, block)
        explain([*task["notes"]])
    explain(outcome["notes"])


def show_block(task: Told, block: Told) -> None:
    """Scores, then what stands beside them, then classes."""
    main, rows = task["score"], block["rows"]
    title = f"{task['task']}, head {block['head']}, {task['part']} part: "
    title += f"{task['num_cases']} cases of {task['num_patients']} patients"
    for name in rows[0]["scores"]:
        words = NAMES.get(name, name)
        way = "" if rows[0]["scores"][name]["higher_is_better"] else ", lower is better"
        heading = f"{title}\n{words}{way}" if name == main else f"{words}{way}"
        table(heading, COLUMNS if name == main else COLUMNS[:6], [score_row(task, row, name) for row in rows])
    table("What it cost, and what stands beside the scores", *beside(task, rows))
    show_classes(task, rows)
    explain(block["notes"])
    if not all(row["same_architecture"] for row in rows):
        explain(["* another architecture than the baseline's"])


def score_row(task: Told, row: Told, name: str) -> list[str]:
    found = row["scores"][name]
    cells = [share(row), called(row), str(row["num_seeds"]), spread(found), span(found["interval"])]
    apart = found["difference"]
    if apart is None:
        told = ["baseline" if row["is_baseline"] else "-", "", "", ""]
    else:
        told = [f"{signed(apart['value'])} {span(apart['interval'], signed)}", chance(apart["p"])]
        told += [chance(apart["p_holm"]), apart["verdict"]]
    return cells + (told if name == task["score"] else told[:1])


def beside(task: Told, rows: Sequence[Told]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what stands beside the scores."""
    counts = list(rows[0]["counts"])
    columns = ["labels", "strategy", "pre-training", "fine-tuning", "peak memory", "constant answer"]
    columns += [count.removeprefix("n_") for count in counts]
    cells = []
    for row in rows:
        before, after = row["cost"]["pretrain"], row["cost"]["finetune"]
        memory = max(each["peak_memory_mb"] for each in (before, after) if each)
        told = [
            share(row),
            called(row),
            spent(before),
            spent(after),
            f"{memory / 1024:.1f} GB",
            number(row["constant"]),
        ]
        cells.append(told + [f"{row['counts'][count]:.4g}" for count in counts])
    return columns, cells


def show_classes(task: Told, rows: Sequence[Told]) -> None:
    """The classes' means at the largest label fraction, side by side, as many as fit; the CSV has all."""
    main, largest = task["score"], max(row["label_fraction"] for row in rows)
    rows = [row for row in rows if row["label_fraction"] == largest]
    names = list(rows[0]["scores"][main]["classes"])
    if len(names) < 2:
        return
    some = rows[:5]
    cells = [[name, *(classed(row["scores"][main]["classes"][name]) for row in some)] for name in names]
    left = f"; {len(rows) - 5} more strategies in --csv" if len(rows) > 5 else ""
    table(
        f"{NAMES.get(main, main)} by class, {share(rows[0])} of the labels{left}",
        ["class", *map(called, some)],
        cells,
        words=1,
    )
    explain(["^ v above or below the baseline by its own 95 % interval, not corrected for the number of classes"])


def classed(found: Told) -> str:
    """A class's mean and spread, marked where it stands clear of the baseline's."""
    apart, mark = found["difference"], " "
    if apart and math.isfinite(apart["interval"][0]) and not apart["interval"][0] <= 0 <= apart["interval"][1]:
        mark = "^" if apart["value"] > 0 else "v"
    return f"{spread(found)} {mark}"


def explain(lines: Sequence[str]) -> None:
    for line in lines:
        print(fill(line, 120, subsequent_indent="  "))


# ---- words and numbers


def called(row: Told) -> str:
    return row["label"] if row["same_architecture"] else f"{row['label']} *"


def share(row: Told) -> str:
    return f"{100 * row['label_fraction']:.4g} %"


def spread(found: Told) -> str:
    return number(found["mean"]) + (f" ± {found['std']:.3f}" if math.isfinite(found["std"]) else "")


def span(interval: Sequence[float], word: Any = number) -> str:
    low, high = interval
    return f"[{word(low)}, {word(high)}]" if math.isfinite(low) else "-"


def signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "undefined"


def chance(p: float) -> str:
    return "-" if not math.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def spent(cost: Told | None) -> str:
    """How much computing, and for how many trainings."""
    if cost is None:
        return "-"
    hours = cost["device_hours"]
    if not math.isfinite(hours):
        return "not known"
    each = hours / cost["runs"]
    return f"{cost['runs']} x {f'{each:.2g}' if each >= 0.001 else '< 0.001'} {cost['device']}-h"


# ---- CSV

FIELDS = ["task", "part", "head", "label_fraction", "strategy", "label", "encoder", "is_baseline", "same_architecture"]
FIELDS += [
    "num_seeds",
    "varied",
    "score",
    "class",
    "mean",
    "std",
    "low",
    "high",
    "with_seeds",
    "baseline",
    "difference",
]
FIELDS += ["difference_low", "difference_high", "p", "p_holm", "pairing", "verdict", "constant"]
FIELDS += ["n_missed", "n_invented", "n_excluded", "n_undefined", "pretrain_runs", "pretrain_seconds", "pretrain_hours"]
FIELDS += ["finetune_runs", "finetune_seconds", "finetune_hours", "device", "peak_memory_mb"]


def write_csv(outcome: Told, path: Path) -> None:
    """One line per row, score and class (empty: the overall number), whose columns are FIELDS."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, restval="")
            writer.writeheader()
            writer.writerows(lines(outcome))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file") from None


def lines(outcome: Told) -> Iterator[dict[str, Any]]:
    for task in outcome["tasks"]:
        for block in task["blocks"]:
            for row in block["rows"]:
                about = {name: task[name] for name in ("task", "part", "baseline")} | {"head": block["head"]}
                about |= {name: row[name] for name in FIELDS if name in row} | row["counts"] | costs(row["cost"])
                for score, found in row["scores"].items():
                    for name, each in {"": found, **found["classes"]}.items():
                        yield defined(about | {"score": score, "class": name} | numbers(each))


def numbers(found: Told) -> dict[str, Any]:
    low, high = found["interval"]
    told = {name: found[name] for name in ("mean", "std", "with_seeds")} | {"low": low, "high": high}
    if apart := found["difference"]:
        low, high = apart["interval"]
        told |= {name: apart[name] for name in ("p", "p_holm", "pairing", "verdict")}
        told |= {"difference": apart["value"], "difference_low": low, "difference_high": high}
    return told


def costs(cost: Told) -> dict[str, Any]:
    stages = {kind: each for kind, each in cost.items() if each}
    told = {f"{kind}_{name}": each[name] for kind, each in stages.items() for name in ("runs", "seconds")}
    told |= {f"{kind}_hours": each["device_hours"] for kind, each in stages.items()}
    about = {"device": " and ".join(sorted({each["device"] for each in stages.values()}))}
    return told | about | {"peak_memory_mb": max(each["peak_memory_mb"] for each in stages.values())}


def defined(line: dict[str, Any]) -> dict[str, Any]:
    return {
        name: "" if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }
