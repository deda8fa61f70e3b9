"""What a stage is told: how long, how fast, from which seed; and plug-ins, which are named by their files."""

from math import ceil
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from premed.config.plugins import plugged
from premed.config.spec import Spec, elsewhere
from premed.config.transforms import Augmentation

Kind = Literal["pretrain", "trunk", "cooldown", "import", "finetune", "test"]
PRETRAINING: tuple[Kind, ...] = ("pretrain", "trunk", "cooldown")
"""Training on images without labels: whole, or as segments of a trunk and the cool-down that makes an encoder of it."""
BLIND: tuple[Kind, ...] = (*PRETRAINING, "import")
"""They make an encoder and see no label, so that any number of fine-tunings may share them."""
TRUNK = "trunk_"
"""With its epochs after it: what an experiment calls a segment of the trunk that its pre-training stands on."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class Training(Spec):
    """How long, how fast, from which seed. The effective learning rate is `lr` × `batch` / 256."""

    epochs: int = Field(ge=1)
    warmup_epochs: float = Field(0.0, ge=0)
    steps: int | None = Field(None, ge=1)
    """So many steps in place of the epochs' (warm-up keeps its share): the same for any number of images."""
    batch: int = Field(ge=1)
    """Images per step over all workers and micro-batches."""
    lr: float = Field(gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: float | None = Field(None, gt=0)
    """Limit of the gradient's norm; the papers do not clip."""
    seed: int = 0
    validations: int = Field(20, ge=1)
    """How often val is scored, evenly spread over the steps; the last is at the end."""
    augment: Augmentation = Augmentation()


class Source(Spec):
    """A data set that a pre-training learns from."""

    task: plugged("tasks")  # type: ignore[valid-type]
    group: str | None = None
    """What it has in common with others (X-ray, MRI); None: the task's name."""
    augment: Augmentation | None = None
    """How its views vary; None: as the pre-training says."""

    @model_validator(mode="after")
    def _label_free(self) -> "Source":
        return label_free(self)


def label_free(spec: Any) -> Any:
    if spec.augment and spec.augment.positive is not None:
        raise ValueError("augment.positive: crops that look at labels are not self-supervised; leave it out here")
    return spec


class Pretrain(Training):
    """Pre-training on the task's training images, or on those of other tasks, without labels."""

    sources: tuple[Source, ...] | None = Field(None, min_length=1)
    """The data sets that it learns from, and from no other; None: the task's own."""
    trunk: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Values of `epochs`, its own among them, that share one training at a constant rate and each cool down from it;
    those above its own are dropped. None: a training of its own, by half a cosine. See docs/trunk.md."""
    cooldown: float = Field(0.2, gt=0, lt=1)
    """The share of the epochs over which the rate falls from the trunk's to 0; of no account without `trunk`."""

    @field_validator("trunk")
    @classmethod
    def _up_to_its_own(cls, trunk: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if trunk is None or "epochs" not in info.data:
            return trunk
        if list(trunk) != sorted({*trunk}):
            raise ValueError(f"must be different numbers of epochs in rising order, as in [10, 20] (it is {[*trunk]})")
        if (epochs := info.data["epochs"]) not in trunk:
            raise ValueError(f"{[*trunk]} does not hold the pre-training's own epochs, {epochs}; add them there")
        return tuple(mark for mark in trunk if mark <= epochs)

    @model_validator(mode="after")
    def _on_a_trunk(self) -> "Pretrain":
        if self.trunk and self.steps is not None:
            raise ValueError("steps: a trunk's values are epochs; leave steps out, or trunk")
        if self.trunk and self.warmup_epochs > (most := self.trunk[0] * (1 - self.cooldown)):
            mend = f"make it {most:g} at the most, or leave the smallest value out"
            raise ValueError(f"warmup_epochs: {self.warmup_epochs:g} do not end before trunk's first cool-down; {mend}")
        return self

    @model_validator(mode="after")
    def _label_free(self) -> "Pretrain":
        return label_free(self)

    def unsaid(self) -> set[str]:
        unsaid = {"sources"} if self.sources is None else set()
        return unsaid | ({"trunk", "cooldown"} if self.trunk is None else set())

    def stretches(self) -> "list[tuple[Kind, Pretrain]]":
        """The stages it comes to, in order. Those of a trunk depend on no value above their own."""
        if self.trunk is None:
            return [("pretrain", self)]
        marks = [mark for mark in self.trunk if mark <= self.epochs]
        segments = [
            self.model_copy(update={"epochs": mark, "trunk": tuple(marks[: i + 1])}) for i, mark in enumerate(marks)
        ]
        return [*(("trunk", segment) for segment in segments), ("cooldown", segments[-1])]


def sources(training: Spec | None, task: Spec) -> tuple[Source, ...]:
    """The data sets that a stage sees: those that its pre-training names, else its task's own."""
    named = training.sources if isinstance(training, Pretrain) else None
    return named or (Source(task=task),)


class Finetune(Training):
    """Fine-tuning with labels; val picks the checkpoint."""

    head: plugged("heads")  # type: ignore[valid-type]
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    layer_decay: float = Field(1.0, gt=0, le=1)
    drop_path: float = Field(0.0, ge=0, lt=1)
    label_fraction: float = Field(1.0, gt=0, le=1)
    """The share of training patients whose labels are used; drawn by `seed`, smaller ones are part of larger ones."""


def _counted(said: Any) -> int | tuple[int, int]:
    count = TypeAdapter(Annotated[int, Field(ge=0)]).validate_python
    if not isinstance(said, (list, tuple)):
        return count(said)
    fewest, most = map(count, said if len(said) == 2 else (0, 0))
    if not 1 <= fewest <= most:
        raise ValueError(f"must be a number, or the fewest and the most, as in [2, 8] (it is {[*said]})")
    return fewest, most


class Train(Spec):
    """Where and how a stage runs. A result depends on none of it beyond floating-point order: none is in a digest."""

    workers: Annotated[int | tuple[int, int], BeforeValidator(_counted)] = elsewhere(1)
    """Ray Train workers; 0 trains in this process, without Ray, for debugging. [2, 8]: as many of these as find a
    place, more or fewer as nodes come and go."""
    gpu: bool = elsewhere(False)
    """One GPU per worker."""
    cpus: float = elsewhere(1, gt=0)
    """CPUs per worker."""
    accumulate: int = elsewhere(1, ge=1)
    """Micro-batches per step and worker."""
    precision: Literal["auto", "fp32", "bf16"] = elsewhere("auto")
    """auto: bf16 autocast on GPUs and on CPUs with bf16 matrix units, fp32 elsewhere."""
    loaders: int = elsewhere(0, ge=0)
    """Processes per worker that read ahead."""
    log_steps: int = elsewhere(20, ge=1)
    """Steps between two points of a curve; checkpoints fall on these points."""
    save_minutes: float = elsewhere(5.0, ge=0)
    """At least so long between two checkpoints; 0 saves at every point."""
    storage: str | None = elsewhere(None)
    """Where checkpoints and results go: a path or URL all nodes reach. None: PREMED_HOME/checkpoints."""
    max_failures: int = elsewhere(2, ge=-1)
    """How often a failed stage goes on from its newest good checkpoint; -1: always."""

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while a stage runs."""
        return isinstance(self.workers, tuple)

    @property
    def fewest(self) -> int:
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most(self) -> int:
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    def micro_batches(self, workers: int) -> int:
        """Per step and worker, so that none holds more at once than where there are as many workers as may be."""
        return ceil(self.accumulate * self.most / workers) if self.elastic else self.accumulate
