"""What the runs of a comparison left to look at: scores by case, curves of pre-training, pictures.

A row is one of the outcome of `compare`: a strategy, in one of its variants, at one label fraction.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from premed.config.settings import TRUNK
from premed.runs import Run, RunStore

Told = Mapping[str, Any]
LONG = 1200  # pixels
SCORING = ("finetune", "test")  # stages that scored cases; what came before them is pre-training


class Cases(NamedTuple):
    """One number per case for each row, the mean over its runs; NaN where it is undefined."""

    names: list[str]
    values: dict[str, np.ndarray]  # by the row's label: [N]
    what: str
    """The number, in words."""
    are_cases: bool
    """Whether every number is a case's own; else each is that of a case and one of its findings."""

    def apart(self, label: str, base: str) -> list[tuple[str, float, float]]:
        """(case, the baseline's number, the row's), the largest gain first, the largest loss last."""
        ours, theirs = self.values[label], self.values[base]
        order = np.argsort(theirs - ours, kind="stable")
        return [(self.names[i], float(theirs[i]), float(ours[i])) for i in order if np.isfinite(ours[i] - theirs[i])]


class Curve(NamedTuple):
    """The validation loss of a pre-training, and its gate, if it has one."""

    label: str
    steps: list[int]
    losses: list[float]
    gate: float | None


class Picture(NamedTuple):
    """A PNG that a run left."""

    label: str
    seed: str
    name: str
    png: bytes

    @property
    def is_long(self) -> bool:
        """Whether it is too long to stand beside others."""
        return struct.unpack(">I", self.png[16:20])[0] > LONG


# ---- scores by case


def cases(store: RunStore, part: str, rows: Sequence[Told]) -> Cases:
    """The cases as all runs of `rows`, whose labels differ, scored them."""
    tables = {
        row["label"]: [store.columns(store.get(run["stages"][SCORING[part == "test"]])) for run in row["runs"]]
        for row in rows
    }
    organs = any(name.startswith("dice/") for name in next(iter(tables.values()))[0])
    number = mean_dice if organs else placements
    found = {label: [dict(number(table)) for table in some] for label, some in tables.items()}
    names = sorted({name for some in found.values() for table in some for name in table})
    values = {
        label: np.array([[table.get(name, np.nan) for name in names] for table in some]).mean(axis=0)
        for label, some in found.items()
    }
    what = "mean Dice of the case" if organs else "share of the images without a finding that are ranked below the case"
    return Cases(names, values, what, organs)


def mean_dice(table: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, float]]:
    """Over the regions that are not excluded."""
    dice = np.array([column for name, column in table.items() if name.startswith("dice/")], float)
    for name, column in zip(table["case"], dice.T, strict=True):
        known = column[np.isfinite(column)]
        yield name, float(known.mean()) if len(known) else np.nan


def placements(table: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, float]]:
    """For each finding of a case, the share of the images without it that are held less likely to have it.

    The mean of these over the cases that have a finding is its AUC: DeLong's placement values. Ties count half.
    """
    for name in (name.removeprefix("y/") for name in table if name.startswith("y/")):
        truth, answer = (np.array(table[f"{kind}/{name}"], float) for kind in "yp")
        without = np.sort(answer[truth == 0])
        if not len(without):
            continue
        found = np.flatnonzero(truth == 1)
        below, upto = np.searchsorted(without, answer[found]), np.searchsorted(without, answer[found], "right")
        for i, share in zip(found.tolist(), (below + upto) / 2 / len(without), strict=True):
            yield f"{table['case'][i]}, {name}", float(share)


# ---- what was drawn and logged


def curves(store: RunStore, rows: Sequence[Told]) -> list[Curve]:
    """Of each pre-training of `rows` once."""
    found: dict[str, Curve] = {}
    with TemporaryDirectory() as folder:
        for label, _, run_id in before(rows):
            if run_id not in found and (path := left(store, store.get(run_id), "curve.jsonl", folder)):
                found[run_id] = curve(label, map(json.loads, path.read_text().splitlines()))
    return [each for each in found.values() if each.steps]


def curve(label: str, points: Iterator[Told]) -> Curve:
    validated = [(point["step"], point["metrics"]) for point in points if "val/loss" in point["metrics"]]
    steps, metrics = ([each[i] for each in validated] for i in (0, 1))
    gates = [each["val/gate"] for each in metrics if "val/gate" in each]
    return Curve(label, steps, [each["val/loss"] for each in metrics], gates[-1] if gates else None)


def before(rows: Sequence[Told]) -> Iterator[tuple[str, str, str]]:
    """(label, seed, run) of all stages before fine-tuning; a trunk's segments are in the cool-down's curve."""
    for row in rows:
        for run in row["runs"]:
            for kind, run_id in run["stages"].items():
                if kind not in SCORING and not kind.startswith(TRUNK):
                    yield row["label"], run["pretrain_seed"] or run["seed"], run_id


def pictures(store: RunStore, part: str, rows: Sequence[Told]) -> tuple[list[Picture], list[Picture]]:
    """Those of pre-training, each once, the long ones first, and those of answers: of every row's lowest seed."""
    early: dict[tuple[str, str], Picture] = {}
    late: list[Picture] = []
    with TemporaryDirectory() as folder:
        for row in rows:
            first = min(
                row["runs"], key=lambda run: [(len(seed), seed) for seed in (run["pretrain_seed"] or "", run["seed"])]
            )
            for label, seed, run_id in before([{**row, "runs": [first]}]):
                for name, png in drawn(store, run_id, folder):
                    early.setdefault((run_id, name), Picture(label, seed, name, png))
            for name, png in drawn(store, first["stages"][SCORING[part == "test"]], folder):
                late.append(Picture(row["label"], first["seed"], name, png))
    return sorted(early.values(), key=lambda each: (not each.is_long, each.name)), late


def drawn(store: RunStore, run_id: str, folder: str) -> Iterator[tuple[str, bytes]]:
    """A run's pictures by name."""
    run = store.get(run_id)
    if path := left(store, run, "pictures", folder):
        for png in sorted(path.glob("*.png")):
            yield png.stem, png.read_bytes()


def left(store: RunStore, run: Run, path: str, folder: str) -> Path | None:
    """What a run left under the name `path`, if it did."""
    if not any(each.path == path for each in store.client.list_artifacts(run.run_id)):
        return None
    return store.file(run, path, Path(folder) / run.run_id)
