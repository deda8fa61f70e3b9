"""Artifacts of the runs of a comparison: scores by case, curves of pre-training, pictures."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from premed.config.settings import TRUNK
from premed.data.figures import CASES
from premed.reporting.comparison.result import ArmResult, RunResult, experiments
from premed.reporting.comparison.scores import Columns
from premed.safety.curves import read_points
from premed.safety.seals import is_sealed
from premed.tracking.artifacts import ArtifactMissing
from premed.tracking.run_store import Run, RunStore

if TYPE_CHECKING:
    from PIL.Image import Image

WIDE = 1200  # pixels
SCORING = ("finetune", "test")  # stages that scored cases, on val and on test; the others are pre-training


class CaseScores(NamedTuple):
    """One number per case for each arm, the mean over its runs; NaN where it is undefined."""

    names: list[str]
    values: dict[str, np.ndarray]  # by the arm's label: [N]
    quantity: str
    """The number, in words."""
    are_cases: bool
    """Whether every number is a case's own; else each is that of a case and one of its findings."""
    by_run: Mapping[str, np.ndarray] = MappingProxyType({})  # by the arm's label: [R, N]

    def differences(self, label: str, baseline: str) -> list[tuple[str, float, float]]:
        """(case, the baseline's number, the arm's), the largest gain first, the largest loss last."""
        ours, theirs = self.values[label], self.values[baseline]
        order = np.argsort(theirs - ours, kind="stable")
        return [(self.names[i], float(theirs[i]), float(ours[i])) for i in order if np.isfinite(ours[i] - theirs[i])]


class LossCurve(NamedTuple):
    """The validation loss of a pre-training, and its gate, if it has one; what else its validations measured."""

    label: str
    steps: list[int]
    losses: list[float]
    gate: float | None
    measures: Mapping[str, tuple[list[int], list[float]]] = MappingProxyType({})
    """By name (`probe_mauc`, `rankme`): steps and values."""
    ended: tuple[int, int] | None = None
    """The step at which the probe ended it, of how many."""


class Picture(NamedTuple):
    """A PNG among a run's artifacts."""

    label: str
    seed: str
    name: str
    png: bytes

    @property
    def is_wide(self) -> bool:
        """Whether it is too wide to stand beside others."""
        return struct.unpack(">I", self.png[16:20])[0] > WIDE

    def cases(self) -> dict[str, bytes]:
        """The parts of it that show one case each, as PNGs by the case's name; empty where it does not tell."""
        from PIL import Image

        try:
            with Image.open(BytesIO(self.png), formats=["PNG"]) as image:
                boxes = json.loads(getattr(image, "text", {}).get(CASES, "[]"))
                whole = (0, 0, *image.size)
                return {str(name): cut(image, whole, box) for name, *box in boxes}
        except (OSError, ValueError, TypeError, Image.DecompressionBombError):  # not premed's, or damaged
            return {}


def cut(image: "Image", whole: tuple[int, ...], box: Sequence[int]) -> bytes:
    """A part of an image, as a PNG. box: left, top, right, bottom. Raises ValueError if that is not within `whole`."""
    left, top, right, bottom = (int(each) for each in box)
    if not (whole[0] <= left < right <= whole[2] and whole[1] <= top < bottom <= whole[3]):
        raise ValueError(f"{box} is not within {whole}")
    image.crop((left, top, right, bottom)).convert("RGB").save(file := BytesIO(), "PNG")
    return file.getvalue()


# ---- scores by case


def case_tables(store: RunStore, part: str, arms: Sequence[ArmResult]) -> dict[str, list[list[Columns]]]:
    """The tables of cases of all runs of `arms`, whose labels differ, by label; a run has one for each fold."""
    stage = SCORING[part == "test"]
    return {
        arm.label: [[store.columns(store.get(each.stages[stage])) for each in run.experiments] for run in arm.runs]
        for arm in arms
    }


def class_counts(table: Columns) -> dict[str, tuple[int, int]]:
    """(number of cases of which it is known, number of cases that have it) for each class."""
    counts = {}
    for column in table:
        kind, _, name = column.partition("/")
        if kind == "y":
            truth = np.array(table[column], float)
            counts[name] = int(np.isfinite(truth).sum()), int((truth == 1).sum())
        elif kind == "state":
            states = [state for state in table[column] if state]
            counts[name] = len(states), sum(state in ("both", "missed") for state in states)
    return counts


def case_scores(tables: Mapping[str, Sequence[Sequence[Columns]]], exclusive: bool = False) -> CaseScores:
    """The scores by case of all runs, the means over each arm's. tables: by the arms' labels.

    exclusive: each image has one class, and a case's number is the probability that this class was given.
    """
    is_segmentation = any(name.startswith("dice/") for name in next(iter(tables.values()))[0][0])
    of_cases = mean_dice if is_segmentation else true_probabilities if exclusive else placements
    scores = {
        label: [{name: value for fold in folds for name, value in of_cases(fold)} for folds in some]
        for label, some in tables.items()
    }
    names = sorted({name for some in scores.values() for table in some for name in table})
    by_run = {
        label: np.array([[table.get(name, np.nan) for name in names] for table in some])
        for label, some in scores.items()
    }
    values = {label: some.mean(axis=0) for label, some in by_run.items()}
    of_auc = "share of the images without a finding that are ranked below the case"
    quantity = "mean Dice of the case" if is_segmentation else "probability of the true class" if exclusive else of_auc
    return CaseScores(names, values, quantity, is_segmentation, by_run)


def mean_dice(table: Columns) -> Iterator[tuple[str, float]]:
    """Over the regions that are not excluded."""
    dice = np.array([column for name, column in table.items() if name.startswith("dice/")], float)
    for name, column in zip(table["case"], dice.T, strict=True):
        known = column[np.isfinite(column)]
        yield name, float(known.mean()) if len(known) else np.nan


def true_probabilities(table: Columns) -> Iterator[tuple[str, float]]:
    """The probability that each case's class was given, where it is known."""
    names = [name.removeprefix("y/") for name in table if name.startswith("y/")]
    truth, answer = (np.array([table[f"{kind}/{name}"] for name in names], float).T for kind in "yp")
    for i, (y, p) in enumerate(zip(truth, answer, strict=True)):
        if np.isfinite(y).all():
            yield f"{table['case'][i]}, {names[int(y.argmax())]}", float(p[y.argmax()])


def placements(table: Columns) -> Iterator[tuple[str, float]]:
    """For each finding of a case, the share of the images without it that get a lower probability of it.

    The mean of these over the cases that have a finding is its AUC: DeLong's placement values. Ties count half.
    """
    for name in (name.removeprefix("y/") for name in table if name.startswith("y/")):
        truth, answer = (np.array(table[f"{kind}/{name}"], float) for kind in "yp")
        without = np.sort(answer[truth == 0])
        if not len(without):
            continue
        positive = np.flatnonzero(truth == 1)
        below, upto = np.searchsorted(without, answer[positive]), np.searchsorted(without, answer[positive], "right")
        for i, share in zip(positive.tolist(), (below + upto) / 2 / len(without), strict=True):
            yield f"{table['case'][i]}, {name}", float(share)


# ---- curves and pictures


def loss_curves(store: RunStore, arms: Sequence[ArmResult]) -> list[LossCurve]:
    """The curve of each pre-training of `arms`, once."""
    curves: dict[str, LossCurve] = {}
    with TemporaryDirectory() as folder:
        for arm in arms:
            for run_id in (run_id for run in experiments(arm) for run_id in pretraining_stages(run)):
                if run_id not in curves:
                    curve = loss_curve(arm.label, curve_points(store, store.get(run_id), folder))
                    curves[run_id] = curve._replace(ended=early_end(store, run_id, folder))
    return [curve for curve in curves.values() if curve.steps]


def loss_curve(label: str, points: Iterable[Mapping[str, Any]]) -> LossCurve:
    validated = [(point["step"], point["metrics"]) for point in points if "val/loss" in point["metrics"]]
    steps, metrics = ([each[i] for each in validated] for i in (0, 1))
    gates = [each["val/gate"] for each in metrics if "val/gate" in each]
    names = {name for each in metrics for name in each if name.startswith("val/probe_") or name == "val/rankme"}
    found = {name: [(step, each[name]) for step, each in validated if name in each] for name in sorted(names)}
    measures = {name.removeprefix("val/"): ([*zip(*pairs, strict=True)]) for name, pairs in found.items()}
    return LossCurve(
        label,
        steps,
        [each["val/loss"] for each in metrics],
        gates[-1] if gates else None,
        {name: (list(at), list(values)) for name, (at, values) in measures.items()},
    )


def early_end(store: RunStore, run_id: str, folder: str) -> tuple[int, int] | None:
    """The step at which the probe ended a pre-training, of how many; None if it went on to its end."""
    stopped = stage_result(store, store.get(run_id), folder).get("stopped")
    return (stopped["step"], stopped["of"]) if stopped else None


def pretraining_stages(run: RunResult) -> list[str]:
    """The runs of the stages before fine-tuning; a trunk's segments are part of the cool-down's curve."""
    return [run_id for kind, run_id in run.stages.items() if kind not in SCORING and not kind.startswith(TRUNK)]


def pictures(store: RunStore, part: str, arms: Sequence[ArmResult]) -> tuple[list[Picture], list[Picture]]:
    """The pictures of pre-training, each once, the wide ones first, and those of answers: of each arm's lowest seed."""
    of_pretraining: dict[tuple[str, str], Picture] = {}
    of_answers: list[Picture] = []
    with TemporaryDirectory() as folder:
        for arm in arms:
            run = min(arm.runs, key=seed_order)
            for run_id in pretraining_stages(run):
                for name, png in run_pictures(store, run_id, folder):
                    picture = Picture(arm.label, run.pretrain_seed or run.seed, name, png)
                    of_pretraining.setdefault((run_id, name), picture)
            for name, png in run_pictures(store, run.stages[SCORING[part == "test"]], folder):
                of_answers.append(Picture(arm.label, run.seed, name, png))
    return sorted(of_pretraining.values(), key=lambda each: (not each.is_wide, each.name)), of_answers


def seed_order(run: RunResult) -> list[tuple[int, str]]:
    """By the pre-training's seed, then by the fine-tuning's, as numbers."""
    return [(len(seed), seed) for seed in (run.pretrain_seed or "", run.seed)]


def run_pictures(store: RunStore, run_id: str, folder: str) -> Iterator[tuple[str, bytes]]:
    """A run's pictures by name."""
    if path := artifact(store, store.get(run_id), "pictures", folder):
        for png in sorted(path.glob("*.png")):
            yield png.stem, png.read_bytes()


def artifact(store: RunStore, run: Run, path: str, folder: str) -> Path | None:
    """A run's artifact, downloaded into a folder of its own below `folder` if it is elsewhere. None: it has none."""
    try:
        return store.file(run, path, Path(folder) / run.run_id)
    except ArtifactMissing:
        return None


def curve_points(store: RunStore, run: Run, folder: str) -> list[dict[str, Any]]:
    """The curve of a stage; of a damaged one what is before the damage."""
    path = artifact(store, run, "curve.jsonl", folder)
    return read_points(path.read_bytes())[0] if path else []


def stage_result(store: RunStore, run: Run, folder: str) -> dict[str, Any]:
    """The result of a stage; empty if it is missing, damaged, changed, or another stage's."""
    path = artifact(store, run, "result.json", folder)
    try:
        found = json.loads(path.read_bytes()) if path else {}
    except (ValueError, RecursionError):  # the latter of thousands of brackets
        return {}
    is_own = is_sealed(found, "result") and found.get("digest", digest := run.tags.get("premed.digest")) == digest
    return found if is_own else {}
