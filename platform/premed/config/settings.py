"""The settings of pre-training and fine-tuning (length, learning rate, seed), and of where they run (`Train`)."""

from math import ceil
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from premed.config.image_processing import Augmentation
from premed.config.plugins import plugin_field
from premed.config.policy import Full, Policy
from premed.config.spec import Spec, added_field, runtime_field

Kind = Literal["pretrain", "trunk", "cooldown", "import", "finetune", "test"]
PRETRAINING: tuple[Kind, ...] = ("pretrain", "trunk", "cooldown")
"""Self-supervised training: one stage, or segments of a shared trunk and the cool-down that ends it with an encoder."""
LABEL_FREE: tuple[Kind, ...] = (*PRETRAINING, "import")
"""Stages that produce an encoder without labels, so that any number of fine-tunings can share them."""
TRUNK = "trunk_"
"""Prefix of a trunk segment's name in an experiment's outcome; its number of epochs follows."""
GATE_SHARE = 0.95
"""A pre-training passes its gate when its validation loss is below this share of it."""

Beta = Annotated[float, Field(ge=0, lt=1)]


class Training(Spec):
    """Length, learning rate and seed of a training. The effective learning rate is `lr` × `batch` / 256."""

    epochs: int = Field(ge=1)
    warmup_epochs: float = Field(0.0, ge=0)
    """In which the learning rate grows from 0. With `steps`, warmup_epochs / `epochs` of the steps."""
    steps: int | None = Field(None, ge=1)
    """Number of steps, in place of `epochs`, which may then be left out (and is 1): independent of the number of
    images."""
    batch: int = Field(ge=1)
    """Images per step, over all workers and micro-batches."""
    lr: float = Field(gt=0)
    """Also `base_lr`: the learning rate for a batch of 256; the effective one is `lr` × `batch` / 256."""
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: float | None = Field(None, gt=0)
    """Maximum norm of the gradient; the papers do not clip."""
    seed: int = 0
    validations: int = Field(20, ge=1)
    """Number of validations, evenly spread over the steps; the last one is at the end."""
    augment: Augmentation = Augmentation()

    @model_validator(mode="before")
    @classmethod
    def _length(cls, fields: Any) -> Any:
        """With `steps`, `epochs` may be left out: they would only say of what `warmup_epochs` is a share."""
        if isinstance(fields, dict) and fields.get("steps") is not None:
            return {"epochs": 1, **fields}
        return fields


class Source(Spec):
    """A data set that a pre-training learns from."""

    task: plugin_field("tasks")  # type: ignore[valid-type]
    group: str | None = None
    """What the data set shares with others (X-ray, MRI); None: the task's name."""
    augment: Augmentation | None = None
    """Augmentation of its views; None: the pre-training's."""

    @model_validator(mode="after")
    def _label_free(self) -> "Source":
        return refuse_label_crops(self)


def refuse_label_crops(spec: Any) -> Any:
    """Returns `spec`. Raises ValueError if its augmentation samples crops by their labels."""
    if spec.augment and spec.augment.positive is not None:
        raise ValueError("augment.positive: crops that depend on labels are not self-supervised; leave it out here")
    return spec


class OnlineProbe(Spec):
    """A linear model on the frozen encoder's features of few labelled images, at each validation of a pre-training."""

    images: int = Field(default=128, ge=2)
    """Training images with labels, and at most as many of val; a volume counts once for each of its fixed views."""
    strength: float = Field(default=0.1, gt=0)
    """scikit-learn's C of the logistic regression. Features are standardised."""


class Stopping(Spec):
    """What ends a pre-training early."""

    probe_patience: int = Field(ge=1)
    """The number of validations in a row without a better score of the probe after which it ends; the weights of the
    best are kept."""


class Pretrain(Training):
    """Pre-training on the task's training images, or on those of other tasks, without labels."""

    sources: tuple[Source, ...] | None = Field(None, min_length=1)
    """The data sets to pre-train on, in place of the task's own; None: the task's own."""
    trunk: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Values of `epochs`, this one among them, that share one training at a constant learning rate, each followed by
    its own cool-down; larger values are dropped. None: one training with a cosine schedule. See docs/trunk.md."""
    cooldown: float = Field(0.2, gt=0, lt=1)
    """The share of the epochs over which the learning rate decays from the trunk's to 0; unused without `trunk`."""
    probe: OnlineProbe | None = OnlineProbe()
    """Measures at each validation how well a linear model reads the labels off the encoder's features; changes nothing
    in the training. None: it does not. Without labels there is none."""
    stop: Stopping | None = None
    """Ends the pre-training early, by the probe; labels then decide how long it is. None: it does not."""

    @field_validator("trunk")
    @classmethod
    def _up_to_epochs(cls, trunk: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if trunk is None or "epochs" not in info.data:
            return trunk
        if list(trunk) != sorted({*trunk}):
            raise ValueError(
                f"must be different numbers of epochs in ascending order, as in [10, 20] (it is {[*trunk]})"
            )
        if (epochs := info.data["epochs"]) not in trunk:
            raise ValueError(f"{[*trunk]} does not contain the pre-training's own epochs, {epochs}; add them")
        return tuple(mark for mark in trunk if mark <= epochs)

    @model_validator(mode="after")
    def _fits_trunk(self) -> "Pretrain":
        if self.trunk and self.steps is not None:
            raise ValueError("steps: a trunk's values are epochs; leave steps out, or trunk")
        if self.trunk and self.warmup_epochs > (most := self.trunk[0] * (1 - self.cooldown)):
            remedy = f"make it {most:g} at the most, or leave the smallest value out"
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs:g} do not end before trunk's first cool-down; {remedy}"
            )
        return self

    @model_validator(mode="after")
    def _label_free(self) -> "Pretrain":
        return refuse_label_crops(self)

    @model_validator(mode="after")
    def _can_stop(self) -> "Pretrain":
        if self.stop and self.probe is None:
            raise ValueError("stop.probe_patience: there is no probe (probe: null); leave one of the two out")
        if self.stop and self.trunk:
            raise ValueError("stop: a trunk's lengths are those of its epochs; leave stop out, or trunk")
        return self

    def unused_fields(self) -> set[str]:
        unused = {"sources"} if self.sources is None else set()
        unused |= {"probe", "stop"} if self.stop is None else set()  # a probe that ends nothing changes nothing
        return unused | ({"trunk", "cooldown"} if self.trunk is None else set())

    def trainings(self) -> "list[tuple[Kind, Pretrain]]":
        """Returns kind and settings of its stages, in order. Those of a trunk depend on no value above their own."""
        if self.trunk is None:
            return [("pretrain", self)]
        marks = [mark for mark in self.trunk if mark <= self.epochs]
        segments = [
            self.model_copy(update={"epochs": mark, "trunk": tuple(marks[: i + 1])}) for i, mark in enumerate(marks)
        ]
        return [*(("trunk", segment) for segment in segments), ("cooldown", segments[-1])]


class Pretrained(Spec):
    """A finished pre-training, whose encoder is taken in place of training one.

    Other fields of `Pretrain` may be there: they are compared with those that it was trained with.
    """

    model_config = ConfigDict(extra="allow")

    encoder: str = Field(min_length=1)
    """Its registered encoder (models:/NAME/VERSION, models:/NAME@ALIAS), its run's id, or its digest."""
    seed: int | None = None
    """The pre-training's; None: not compared. A resolved experiment holds it."""

    @model_validator(mode="after")
    def _known_fields(self) -> "Pretrained":
        if unknown := sorted((self.model_extra or {}).keys() - Pretrain.model_fields.keys()):
            raise ValueError(f"{unknown[0]}: no such field; check its spelling")
        return self

    @property
    def stated(self) -> dict[str, Any]:
        """The settings of the pre-training that the YAML states."""
        return {**(self.model_extra or {}), **({} if self.seed is None else {"seed": self.seed})}


def parse_pretraining(value: Any, info: ValidationInfo) -> Any:
    """Returns the settings under `pretrain`: of a training, or the name of a finished one, where it has `encoder`."""
    if value is None or isinstance(value, Spec):
        return value
    if isinstance(value, dict) and value.get("encoder") is not None:
        return Pretrained.model_validate(value, context=info.context)
    fields = {name: each for name, each in value.items() if name != "encoder"} if isinstance(value, dict) else value
    return Pretrain.model_validate(fields, context=info.context)


def sources(training: Spec | None, task: Spec) -> tuple[Source, ...]:
    """Returns the data sets of a stage: those that its pre-training lists, else its task's own."""
    named = training.sources if isinstance(training, Pretrain) else None
    return named or (Source(task=task),)


class Finetune(Training):
    """Fine-tuning with labels; the validation score selects the checkpoint."""

    head: plugin_field("heads")  # type: ignore[valid-type]
    policy: Policy = added_field(Full())
    """What is trained: full (all weights), head, last_n, lora or warmup_then_full (the head first). One with fields is
    written {name: lora, rank: 8}. See docs/finetuning.md."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    layer_decay: float = Field(1.0, gt=0, le=1)
    drop_path: float = Field(0.0, ge=0, lt=1)
    label_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training patients whose labels are used, drawn by `seed`; smaller shares are subsets of larger."""


def _parse_workers(value: Any) -> int | tuple[int, int]:
    count = TypeAdapter(Annotated[int, Field(ge=0)]).validate_python
    if not isinstance(value, (list, tuple)):
        return count(value)
    low, high = map(count, value if len(value) == 2 else (0, 0))
    if not 1 <= low <= high:
        raise ValueError(f"must be a number, or the minimum and the maximum, as in [2, 8] (it is {[*value]})")
    return low, high


class Train(Spec):
    """Where and how a stage runs. Results do not depend on it beyond the order and the precision of floating-point
    arithmetic: no field is in a digest."""

    workers: Annotated[int | tuple[int, int], BeforeValidator(_parse_workers)] = runtime_field(1)
    """Number of Ray Train workers; 0 trains in this process, without Ray, for debugging. [2, 8]: elastic, as
    many of these as fit while nodes come and go."""
    gpu: bool = runtime_field(False)
    """One GPU per worker."""
    cpus: float = runtime_field(1, gt=0)
    """CPUs per worker."""
    accumulate: int = runtime_field(1, ge=1)
    """Micro-batches per step and worker."""
    precision: Literal["auto", "fp32", "bf16"] = runtime_field("auto")
    """auto: bf16 autocast on GPUs and on CPUs that multiply in it (AMX, AVX512_BF16), fp32 elsewhere. A finished
    stage is used in whichever it was trained; a warning says so if the other one is set now."""
    compile: bool = runtime_field(False)
    """The network's blocks are compiled by torch.compile for the steps of a training, which takes minutes before the
    first ones; validation, test and prediction are not. As with `precision`, a finished stage is used as it is. See
    docs/performance.md."""
    loaders: int = runtime_field(0, ge=0)
    """Data-loading processes per worker."""
    resident: Literal["auto", True, False] = runtime_field("auto")
    """Whether prepared training images stay in the memory of the device, where views are then made: the same, bit for
    bit. auto: on a GPU. Where they take more than half of what is free, or are augmented with `rand`, they are read
    from files for each step all the same, and a warning says so."""
    log_steps: int = runtime_field(20, ge=1)
    """Steps between two logged points of a curve; checkpoints are saved at such points."""
    save_minutes: float = runtime_field(5.0, ge=0)
    """Minimum time between two checkpoints; 0 saves at every logged point."""
    storage: str | None = runtime_field(None)
    """Where checkpoints and results are stored: a path or URL that all nodes reach. None: PREMED_HOME/checkpoints."""
    max_failures: int = runtime_field(2, ge=-1)
    """How often a failed stage is resumed from its newest valid checkpoint; -1: always."""
    hang_timeout: float | None = runtime_field(1800, gt=0)
    """Seconds without a step (or a view of an evaluation) after which a Ray worker counts as stuck: its stacks are
    written to the stage's folder, and the stage is resumed as after a failure. None: never."""

    @property
    def elastic(self) -> bool:
        """True if the number of workers may change while a stage runs."""
        return isinstance(self.workers, tuple)

    @property
    def min_workers(self) -> int:
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def max_workers(self) -> int:
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    def micro_batches(self, workers: int) -> int:
        """Micro-batches per step and worker: none holds more images than with the maximum number of workers."""
        return ceil(self.accumulate * self.max_workers / workers) if self.elastic else self.accumulate


class Tracking(Spec):
    """What of the data is stored. Results do not depend on it: no field is in a digest."""

    hash_ids: bool = runtime_field(False)
    """Names of cases and patients are stored as keyed hashes, whose key stays in PREMED_HOME. See docs/security.md."""
    pictures: Literal["all", "none"] = runtime_field("all")
    """none: no pictures of images are drawn and stored."""
