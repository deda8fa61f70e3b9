"""Events: what a command reports while it runs.

Workers and the driver emit them; the tracker and the terminal read them. They are frozen dataclasses that pickle, so
that they travel through Ray actors. A reader dispatches on the class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """What every event may carry; the session fills it in where several experiments share a command."""

    experiment: str = field(default="", kw_only=True)
    """Name of the experiment, or of the trial and seed, that the event is of; empty where there is only one."""
    run_id: str = field(default="", kw_only=True)
    """MLflow run of the stage that a worker's event is of."""
    kind: str = field(default="", kw_only=True)
    """Kind of the stage (`settings.Kind`) that the event is of."""


EventHandler = Callable[[Event], None]
"""Called with each event as it happens."""


@dataclass(frozen=True)
class WarningIssued(Event):
    """Something the user should know; the command goes on."""

    text: str


# ---- the command


@dataclass(frozen=True)
class RayStarting(Event):
    """The command starts Ray, or connects to a cluster; this takes some seconds."""


@dataclass(frozen=True)
class ExperimentsStarted(Event):
    """A command of several experiments begins."""

    total: int


@dataclass(frozen=True)
class ExperimentEnded(Event):
    """One of several experiments succeeded or failed."""

    done: int
    total: int
    outcome: Mapping[str, Any]


@dataclass(frozen=True)
class LookTaken(Event):
    """With `seeds: auto`: it was looked at what the seeds so far say."""

    words: str
    """What was found, what was spent, and what is next."""


@dataclass(frozen=True)
class Count(Event):
    """How much is done of how much."""

    done: int
    total: int


class ImagesPrepared(Count):
    """So many images are preprocessed, in the cache."""


class ImagesCompared(Count):
    """Images of val and test are compared with those of other data sets: so many are read."""


class ImagesChecked(Count):
    """So many images were opened by `premed data check`."""


class FilesRead(Count):
    """`premed init`: so many headers and, of some images again, values were read."""


class ImagesPredicted(Count):
    """So many images were predicted by `premed predict`."""


@dataclass(frozen=True)
class ImageSkipped(Event):
    """`premed predict` leaves an image out."""

    reason: str


# ---- a stage, as the driver sees it


@dataclass(frozen=True)
class StageStarted(Event):
    """A stage begins, and waits for workers."""

    kind: str = field()  # no default: here it is required
    where: str
    """Its folder in `train.storage`."""


@dataclass(frozen=True)
class StageReused(Event):
    """A stage has a result already."""

    kind: str = field()  # no default: here it is required
    where: str


@dataclass(frozen=True)
class WaitingForStage(Event):
    """Another experiment of this command, or another command, runs the same stage."""

    kind: str = field()  # no default: here it is required
    owner: Literal["experiment", "command"]


@dataclass(frozen=True)
class WaitingForResources(Event):
    """The cluster has no room for the stage's workers, for some time now."""

    kind: str = field()  # no default: here it is required
    workers: int
    cpus: float
    gpu: bool
    """Whether each worker has a GPU; `cpus` are each worker's, too."""
    free: Mapping[str, float]
    total: Mapping[str, float]
    """CPUs and GPUs of the cluster; `free`: those that nobody holds."""


@dataclass(frozen=True)
class ModelRegistrationStarted(Event):
    """The fine-tuned network becomes a version of a model in MLflow's registry."""

    name: str


@dataclass(frozen=True)
class GateNotPassed(Event):
    """A pre-training is no better than a predictor without a network (`evaluate.passed_gate`)."""

    loss: float
    gate: float


@dataclass(frozen=True)
class CollapseDetected(Event):
    """A self-distillation gives all images the same answer, or a uniform one (`evaluate.collapsed`)."""

    into: Literal["one", "uniform"]
    entropy: float
    same: float


# ---- a stage, as its first worker sees it


@dataclass(frozen=True)
class TrainingStarted(Event):
    """Training begins, or goes on after step `start`."""

    start: int
    num_images: int
    num_val: int
    num_steps: int
    absent_classes: Sequence[str] = ()  # that no training image shows
    universal_classes: Sequence[str] = ()  # that every training image has
    workers: int | None = None  # their number, where it may change between two starts
    batch: int | None = None
    """Images in a step; None of a training that takes no steps of gradients."""
    lr: float | None = None
    """The effective learning rate at its highest; None as for `batch`."""
    warmup: float = 0.0
    """Steps of the warm-up to it."""
    probe: str | None = None
    """The online probe of a pre-training in words, or why there is none; None where none is asked for."""
    trained: str | None = None
    """How many parameters a fine-tuning trains (`finetune.policy`), in words; None of other trainings."""


@dataclass(frozen=True)
class TrainingResumed(Event):
    """The newest checkpoint is loaded."""

    step: int
    num_steps: int


@dataclass(frozen=True)
class EvaluationStarted(Event):
    """The test part is scored."""

    num_images: int


@dataclass(frozen=True)
class WeightsImported(Event):
    """An encoder has weights from a file."""

    file: str
    kept: int
    """Tensors taken as they are."""
    changed: Mapping[str, str]
    """Tensors made to fit, and how."""
    dropped: Sequence[str]  # tensors left out
    missing: Sequence[str] = ()  # tensors that the file does not have, at initial values


@dataclass(frozen=True)
class MetricsLogged(Event):
    """A point of the learning curve: training loss and learning rate, or validation scores."""

    step: int
    num_steps: int
    time: int
    """Milliseconds since 1970, as MLflow counts."""
    metrics: Mapping[str, float]
    throughput: Mapping[str, float] = field(default_factory=dict)
    """Speed and memory (`pace/…`): logged to MLflow and not part of the curve."""


@dataclass(frozen=True)
class TrainingEndedEarly(Event):
    """The online probe was no better in `patience` validations: the pre-training ends, with the weights of the best."""

    step: int
    num_steps: int
    score: str
    patience: int
    best_step: int
    best: float


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """The state after `step` steps is on storage."""

    step: int


@dataclass(frozen=True)
class DataLoadingBottleneck(Event):
    """Training waits for images most of the time."""

    share: float
    """Share of the time spent waiting."""
    num_loaders: int
    suggested_loaders: int
    """`train.loaders` that would keep up, as far as there are CPUs."""


# ---- a sweep


@dataclass(frozen=True)
class SweepStarted(Event):
    """A sweep begins or goes on."""

    total: int
    left: int
    """Trials without a result so far."""
    modes: Sequence[str]
    """`max` or `min`, by metric."""


@dataclass(frozen=True)
class TrialStarted(Event):
    """A trial begins."""

    number: int
    label: str
    """Its settings, in short."""


@dataclass(frozen=True)
class TrialEnded(Event):
    """A trial ended."""

    number: int
    label: str
    state: str
    metrics: Sequence[str]
    values: Sequence[float] | None
    """One per metric; None where the trial was stopped or failed."""
    failure: str
    """Reason of a failed trial; else empty."""
