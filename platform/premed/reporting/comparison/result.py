"""The result of a comparison: what the terminal, the CSV and the page are made of, and, field by field, the JSON.

Numbers that are undefined are NaN. An arm is a strategy, in one of its variants, at one label fraction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from premed.reporting.formatting import listed

Bounds = tuple[float, float]
"""Of a 95 % interval; NaN where there is none."""


@dataclass(frozen=True)
class Looks:
    """At which numbers of seeds a difference is looked at until it is decided (`seeds: auto`)."""

    planned: Sequence[int]
    taken: int
    """How many, this one included; 0: the first is still to come."""
    margin: float | None
    """The smallest difference that the user cares about."""
    is_changed: bool
    """Whether other looks were planned before, so that the levels are not those of all looks."""


@dataclass(frozen=True)
class Difference:
    """An arm's mean score less the baseline's."""

    value: float
    interval: Bounds
    df: float
    with_seeds: bool
    """Whether the interval holds for another seed too, or for these seeds alone."""
    p: float
    pairing: str
    """paired: on the seeds that both have; unpaired: on all of each; patients: there are too few seeds."""
    num_seeds: int
    """How many it is made of, on the side that has fewer."""
    p_holm: float
    """Corrected for all comparisons of the block; NaN where it is not one of them."""
    verdict: str
    """In words; "" where p_holm is NaN."""
    means: tuple[float, float]
    """Of the arm and of the baseline over the seeds that are compared: `value` is the one less the other."""
    left_out: Sequence[str]
    """The runs of both that are in their own means alone: of seeds that the other has not, that are beyond the last
    look, or of which the score is undefined."""


@dataclass(frozen=True)
class SequentialDifference(Difference):
    """One whose seeds were added until it was decided: its interval and p-values allow for all looks."""

    looks: Looks


def compared_runs(arm: "ArmResult", difference: Difference) -> "Sequence[RunResult]":
    """Those runs of an arm, or of its baseline, that a difference is made of; all where it is made of none."""
    left_out = set(difference.left_out)
    return [run for run in arm.runs if run.run_id not in left_out] or arm.runs


def experiments(arm: "ArmResult") -> "list[RunResult]":
    """The experiments of an arm; of cross-validated ones those of all folds."""
    return [each for run in arm.runs for each in run.experiments]


def looks_of(difference: Difference) -> Looks | None:
    """None where the number of seeds was fixed."""
    return difference.looks if isinstance(difference, SequentialDifference) else None


@dataclass(frozen=True)
class Estimate:
    """A score over independent seeds."""

    mean: float
    std: float
    interval: Bounds
    df: float
    with_seeds: bool


@dataclass(frozen=True)
class ClassEstimate(Estimate):
    """A score of one class."""

    alone: bool
    """Whether it is computed from one patient, so that the interval says nothing of others."""
    difference: Difference | None
    """To the baseline; None for the baseline itself and where there is none."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval of its difference leaves out zero; not corrected for the number of classes."""
        if self.difference is None:
            return False
        low, high = self.difference.interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class ScoreResult(Estimate):
    """One score of an arm, over all classes and for each."""

    higher_is_better: bool
    difference: Difference | None
    classes: Mapping[str, ClassEstimate]


@dataclass(frozen=True)
class CalibrationError:
    """An expected calibration error over an arm's runs; its interval is for other patients and these runs."""

    measured: float
    """As it is measured, which is too large."""
    value: float
    """Less that bias."""
    interval: Bounds


@dataclass(frozen=True)
class ReliabilityPoint:
    """A bin: the mean probability of its images, the share of them that is positive, with its interval."""

    predicted: float
    observed: float
    interval: Bounds
    num_images: int


@dataclass(frozen=True)
class CalibrationResult(CalibrationError):
    """How far an arm's probabilities are from the shares that come true."""

    kind: str
    """likeliest class: whether the class that is chosen is right as often as its probability; each class: the mean over
    classes of the error of each."""
    std: float
    """Of the measured error, over seeds."""
    classes: Mapping[str, CalibrationError]
    """Empty for the likeliest class."""
    curve: Sequence[ReliabilityPoint]
    """Of all its runs and classes together."""
    class_curves: Mapping[str, Sequence[ReliabilityPoint]]


@dataclass(frozen=True)
class StageCost:
    """What the stages of one kind cost, each run once."""

    runs: int
    seconds: float
    device: str
    device_hours: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Cost:
    pretrain: StageCost | None
    finetune: StageCost

    @property
    def stages(self) -> dict[str, StageCost]:
        """Those that there are, by kind."""
        return {"pretrain": self.pretrain, "finetune": self.finetune} if self.pretrain else {"finetune": self.finetune}

    @property
    def peak_memory_mb(self) -> float:
        return max(stage.peak_memory_mb for stage in self.stages.values())


@dataclass(frozen=True)
class RunResult:
    """One experiment of an arm."""

    run_id: str
    experiment_id: str
    """MLflow's."""
    name: str
    seed: str
    pretrain_seed: str | None
    value: float
    """Of the task's score."""
    stages: Mapping[str, str]
    """The runs of its stages by kind."""
    folds: Sequence["RunResult"] = ()
    """Of a cross-validated one, which stands for them: its id and stages are the first's, its score that of all."""

    @property
    def experiments(self) -> "Sequence[RunResult]":
        """Those of all folds; itself where there is one."""
        return self.folds or (self,)


@dataclass(frozen=True)
class ArmResult:
    label: str
    """Its strategy, and what distinguishes it from other arms of that strategy."""
    strategy: str
    encoder: str
    label_fraction: float
    is_baseline: bool
    same_architecture: bool
    """As the baseline's."""
    policy: str
    """Of its fine-tuning."""
    due_to: Sequence[str]
    """What its difference to the baseline may be due to, where that is not the pre-training alone."""
    differs: Mapping[str, str]
    """The fields that distinguish it from other arms of its strategy."""
    num_seeds: int
    varied: str
    """Which seeds differ within it, in words."""
    scores: Mapping[str, ScoreResult]
    counts: Mapping[str, float]
    """n_missed, n_invented, n_excluded; or n_undefined: means over its runs."""
    constant: float
    """The score of the best constant answer."""
    cost: Cost
    runs: Sequence[RunResult]
    calibration: CalibrationResult | None = None
    """None for a segmentation, and where probabilities are not stored."""

    @property
    def marked_label(self) -> str:
        """Another architecture than the baseline's is marked by a star."""
        return self.label if self.same_architecture else f"{self.label} *"

    @property
    def attribution(self) -> str:
        """`the difference is of architecture and pre-training together`; empty if it is of the pre-training alone."""
        if not self.due_to:
            return ""
        together = " together" if len(self.due_to) > 1 else ""
        without = "" if "pre-training" in self.due_to else ", not of pre-training"
        return f"the difference is of {listed(self.due_to)}{together}{without}"


@dataclass(frozen=True)
class BlockResult:
    """The arms with one head."""

    head: str
    notes: Sequence[str]
    rows: Sequence[ArmResult]
    """By label fraction, the baseline first."""
    conclusion: str = ""
    """The answer in one sentence."""

    @property
    def largest_fraction(self) -> list[ArmResult]:
        """The arms at the largest label fraction."""
        largest = max(arm.label_fraction for arm in self.rows)
        return [arm for arm in self.rows if arm.label_fraction == largest]


@dataclass(frozen=True)
class TaskResult:
    task: str
    part: str
    """The part of the data that was scored: test or val."""
    score: str
    """The task's own, a key of every arm's `scores`."""
    classes: Sequence[str]
    num_cases: int
    num_patients: int
    num_folds: int
    """Of a cross-validation; 1: one test part."""
    baseline: str | None
    """Its name, where any block has it."""
    notes: Sequence[str]
    blocks: Sequence[BlockResult]


@dataclass(frozen=True)
class ComparisonResult:
    part: str
    notes: Sequence[str]
    tasks: Sequence[TaskResult]
