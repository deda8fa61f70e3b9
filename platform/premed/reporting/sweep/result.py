"""The result of a sweep, its trials and their stages: what every report is made of, and, field by field, the JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["waiting", "running", "done", "stopped", "failed"]
"""Optuna's WAITING, RUNNING, COMPLETE, PRUNED and FAIL."""


@dataclass(frozen=True)
class StageResult:
    """One stage (a pre-training, a fine-tuning) that a trial needed."""

    kind: str
    digest: str
    """The same for all trials that share the stage."""
    seconds: float | None
    peak_memory_mb: float | None
    run_id: str | None
    """Its run in MLflow."""
    reused: bool
    """True if the stage existed already and this trial did not train it."""


@dataclass(frozen=True)
class TrialResult:
    number: int
    setting: Mapping[str, Any]
    """Values by the field's dotted path."""
    state: State
    values: Sequence[float] | None
    """By metric, the mean over seeds; None if the trial has no final score."""
    by_seed: Mapping[str, Sequence[float]]
    """By the fine-tuning's seed, a value for each metric."""
    curve: Mapping[int, float]
    """The first seed's best score so far after each validation."""
    stages: Sequence[StageResult]
    """Those that are finished, of all seeds: one that several seeds need is in it several times."""
    failure: str | None
    run_id: str | None
    """Its run in MLflow."""
    behind: str | None = None
    """With `seeds: auto`, how far it was behind the best when it got no more seeds; None if it got all."""


@dataclass(frozen=True)
class SweepResult:
    """A sweep as far as it has come."""

    name: str
    task: str
    strategy: str
    score: str
    """The task's own score, without the part of the data: dice."""
    search: str
    scheduler: str | None
    metrics: Sequence[str]
    modes: Sequence[str]
    """By metric: max or min."""
    space: Mapping[str, Sequence[Any] | Mapping[str, Sequence[float]]]
    """By the field's dotted path, as in the sweep's file: the values to choose from, or {"uniform": [low, high]}."""
    seeds: Sequence[int]
    num_trials: int
    """How many there will be."""
    where: str
    """The folder of the report."""
    run_id: str | None
    """The sweep's run in MLflow."""
    trials: Sequence[TrialResult]
    """By number."""
    best: int | None
    """The best trial's number; None with several metrics, or while no trial is done."""
    front: Sequence[int]
    """The numbers of the trials on the Pareto front; with one metric, the best trial alone."""
    importances: Mapping[str, float] | None
    """Optuna's parameter importances by the field's dotted path; None if there are too few trials."""

    @property
    def is_multi_objective(self) -> bool:
        return len(self.metrics) > 1

    @property
    def all_failed(self) -> bool:
        """Whether every trial failed, so that there is no score."""
        return bool(self.trials) and all(trial.state == "failed" for trial in self.trials)
