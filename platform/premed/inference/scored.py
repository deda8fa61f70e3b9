"""What answers a `predict`: the arm, share of the labels and seed of a trained network, and what it scored.

A score says little by itself: beside it stands that of the best answer that ignores the image.
"""

import math
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from premed.errors import UserError
from premed.reporting.formatting import NAMES, is_better, number, percent, span
from premed.tracking.references import get_run
from premed.tracking.run_store import Run, RunStore

PARTS = {"test": "test", "val": "val (which chose its weights)"}


@dataclass(frozen=True)
class Scored:
    """How a fine-tuned network was trained, and its score, of which higher is better. NaN: not known."""

    run_id: str
    """Of its experiment, or of its fine-tuning where the store has no experiment."""
    name: str
    """Of its experiment: `mae 5 % seed 1`."""
    strategy: str
    label_fraction: float | None
    seed: int | None
    score: str
    part: str | None
    """test, or val where it was not tested; None: neither is in the store."""
    value: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    """95 %, over patients."""
    constant: float = math.nan
    """Of the best answer that ignores the image, on test."""

    @property
    def beats_constant(self) -> bool | None:
        """Whether the score is above that of the constant answer; None: not known."""
        if not (math.isfinite(self.value) and math.isfinite(self.constant)):
            return None
        return is_better(self.score, self.value, self.constant)

    @property
    def words(self) -> str:
        """`mae 5 % seed 1 (run 1f0c1234): mean AUC on test 0.812 [0.750, 0.861], an answer that … has 0.500`."""
        if self.part is None:
            return f"{self.name} (run {self.run_id[:8]}): the store has no score of it"
        interval = f" {span(self.interval)}" if math.isfinite(self.interval[0]) else ""
        beside = f"; an answer that ignores the image has {number(self.constant)}"
        more = beside if math.isfinite(self.constant) else ""
        return f"{self.name} (run {self.run_id[:8]}): {self._score} {number(self.value)}{interval}{more}"

    @property
    def warning(self) -> str:
        """Why its answers are not to be relied on; empty where the score speaks for them, or is not known."""
        if self.beats_constant is None:
            return ""
        value, constant = number(self.value), number(self.constant)
        longer = "train longer (finetune.epochs, or finetune.steps where that is set)"
        remedy = f"{longer}, with more labels (finetune.label_fraction), or name another run"
        if not self.beats_constant:
            than = f"no better than an answer that ignores the image ({value} against {constant})"
            return f"{self.name}: its {self._score} is {than}: do not rely on these answers; {remedy}"
        if self.interval[0] <= self.constant:
            held = f"{value} {span(self.interval)}, which holds that of an answer that ignores the image, {constant}"
            return f"{self.name}: its {self._score} is {held}: it may have learnt nothing; {remedy}"
        return ""

    @property
    def entry(self) -> dict[str, Any]:
        """It as JSON holds it, with its words: what is not known is None."""
        interval = [known(each) for each in self.interval]
        numbers = {"value": known(self.value), "constant": known(self.constant)}
        more = {"interval": None if None in interval else interval, "beats_constant": self.beats_constant}
        return asdict(self) | numbers | more | {"words": self.words, "warning": self.warning}

    @property
    def _score(self) -> str:
        return f"{NAMES.get(self.score, self.score)} on {PARTS[self.part or 'test']}"


def known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def scored(store: RunStore, run: Run) -> Scored | None:
    """Returns what the store says of a fine-tuning; None for a pre-training, which answers nothing."""
    if run.tags.get("premed.kind") != "finetune":
        return None
    experiment = run
    if run.parent:
        with suppress(UserError):  # it was deleted for good (`mlflow gc`)
            experiment = get_run(store, run.parent, run.run_id)
    share, seed, score = (run.tags.get(name) for name in ("label_fraction", "seed", "score"))
    strategy = run.tags.get("strategy", "")
    composed = f"{strategy} {percent(float(share))} seed {seed}" if share else strategy
    about = Scored(
        run_id=experiment.run_id,
        name=composed if experiment is run else experiment.name,
        strategy=strategy,
        label_fraction=float(share) if share else None,
        seed=int(seed) if seed else None,
        score=score or "",
        part=None,
    )
    return with_score(store, run, about)


def with_score(store: RunStore, run: Run, about: Scored) -> Scored:
    """Returns `about` with the score of the newest test of a fine-tuning, else that of its validation."""
    tags = {"premed.kind": "test", "premed.parent_digest": run.tags["premed.digest"]}
    tested = next(store.search(tags, "FINISHED", limit=1), None)
    found, part, name = (run, "val", "best/val/") if tested is None else (tested, "test", "test/")
    if tested is None and f"{name}{about.score}" not in run.metrics:
        return about
    value, low, high, constant = (
        found.metrics.get(each, math.nan) for each in (f"{name}{about.score}", "test/low", "test/high", "test/constant")
    )
    return replace(about, part=part, value=value, interval=(low, high), constant=constant)
