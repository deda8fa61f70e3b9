"""Experiment: the content of one YAML; and its Stages.

`loader` reads YAMLs into one Experiment, `expand` into several. Plug-ins are selected by file name: `plugins`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationInfo, model_validator

from premed.config.plugins import NO_IMPORT, plugin, plugin_field
from premed.config.settings import (
    LABEL_FREE,
    PRETRAINING,
    Finetune,
    Kind,
    Pretrain,
    Pretrained,
    Source,
    Tracking,
    Train,
    parse_pretraining,
    sources,
)
from premed.config.spec import Spec, runtime_field, without_scoring


class Experiment(Spec):
    """One strategy on one task. Without `finetune`, it ends with the encoder, which is registered."""

    name: str | None = runtime_field(None)
    """Display name; None: the task and the strategy."""
    task: plugin_field("tasks")  # type: ignore[valid-type]
    encoder: plugin_field("encoders")  # type: ignore[valid-type]
    pretext: plugin_field("pretext")  # type: ignore[valid-type]
    pretrain: Annotated[Pretrain | Pretrained | None, BeforeValidator(parse_pretraining)] = None
    """A pre-training's settings, or under `encoder` the name of one that is finished."""
    finetune: Finetune | None = None
    """None: pre-training alone."""
    train: Train = Train()
    tracking: Tracking = runtime_field(Tracking())
    test: bool = runtime_field(True)
    """False stops after validation and never opens the test part."""

    @model_validator(mode="before")
    @classmethod
    def _first_source(cls, fields: Any) -> Any:
        """Without a fine-tuning the task may be left out: it is that of the first source."""
        if isinstance(fields, dict) and fields.get("task") is None and fields.get("finetune") is None:
            pretrain = fields.get("pretrain")
            listed = pretrain.get("sources") if isinstance(pretrain, dict) else None
            if isinstance(listed, (list, tuple)) and listed and isinstance(listed[0], dict) and "task" in listed[0]:
                return fields | {"task": listed[0]["task"]}
        return fields

    @model_validator(mode="after")
    def _trainable(self, info: ValidationInfo) -> "Experiment":
        if info.context == NO_IMPORT:
            return self
        trains = plugin("pretext", self.pretext).build is not None
        if self.pretrain is None and trains:
            raise ValueError(f"pretrain: is missing, and {self.strategy} needs it (epochs, batch, lr, …)")
        if self.finetune is None and not trains:
            raise ValueError(f"finetune: is missing, and {self.strategy} trains nothing before it; set it in a YAML")
        if self.finetune is None and self.pretrained:
            raise ValueError("finetune: is missing, and pretrain.encoder is trained already; set it in a YAML")
        return self

    @property
    def strategy(self) -> str:
        return self.pretext.name  # type: ignore[attr-defined]

    @property
    def imported(self) -> Spec | None:
        """The strategy whose weights others trained: its own, or the one that its pre-training starts from
        (`pretext.init`). None: it starts from random weights."""
        strategy = plugin("pretext", self.pretext)
        if strategy.build is not None:
            return getattr(self.pretext, "init", None) if isinstance(self.pretrain, Pretrain) else None
        return self.pretext if hasattr(strategy, "weights") else None

    @property
    def pretrained(self) -> Pretrained | None:
        """The finished pre-training that it names, if it does, and its strategy has one."""
        trains = plugin("pretext", self.pretext).build is not None
        return self.pretrain if trains and isinstance(self.pretrain, Pretrained) else None

    @property
    def tested(self) -> bool:
        """Whether the test part is opened."""
        return self.test and self.finetune is not None

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of its stages, in order; a finished pre-training that it names is none of them."""
        return [kind for kind, _ in self.trainings()]

    def trainings(self) -> list[tuple[Kind, Spec | None]]:
        """Returns kind and settings of its stages: import, pre-training (where there are), fine-tuning, test."""
        stages: list[tuple[Kind, Spec | None]] = [("import", None)] if self.imported else []
        if plugin("pretext", self.pretext).build and isinstance(self.pretrain, Pretrain):
            stages += self.pretrain.trainings()
        if self.finetune:
            stages.append(("finetune", self.finetune))
        return [*stages, *([("test", self.finetune)] if self.tested else [])]

    def strategy_of(self, kind: Kind) -> Spec | None:
        """The strategy of a stage of that kind. A pre-training knows by its parent what it starts from."""
        if kind == "import":
            return self.imported
        if kind in LABEL_FREE and getattr(self.pretext, "init", None) is not None:
            return self.pretext.model_copy(update={"init": None})
        return self.pretext if kind in LABEL_FREE else None

    def stops_by_labels(self, kind: Kind) -> bool:
        """Whether labels decide how long a stage of that kind, a pre-training, is (`pretrain.stop`)."""
        return kind in PRETRAINING and isinstance(self.pretrain, Pretrain) and self.pretrain.stop is not None

    def sources(self, kind: Kind) -> tuple[Source, ...]:
        """Returns the data sets of a stage of that kind."""
        return sources(self.pretrain if kind in LABEL_FREE and self.is_trained else None, self.task)

    @property
    def is_trained(self) -> bool:
        """Whether its strategy trains an encoder."""
        return plugin("pretext", self.pretext).build is not None

    def stages(self, data: "Callable[[Kind], str]") -> "Iterator[Stage]":
        """Yields its stages in order, each with the digest of its parent.

        data: maps a stage's kind to the fingerprint of its data. It is called when the stage is requested: for "test"
        only after the fine-tuning was yielded, and never if `test` is false. A finished pre-training that the
        experiment names, by its digest (`preflight.resolve`), is the parent of the first.
        """
        parent = self.pretrained.encoder if self.pretrained else None
        for kind, training in self.trainings():
            task = self.sources(kind)[0].task
            if kind in LABEL_FREE:  # independent of how the task is scored
                task, training = without_scoring(task), training and without_scoring(training)
            stage = Stage(
                kind=kind,
                parent=parent,
                data=data(kind),
                task=task,
                encoder=self.encoder,
                pretext=self.strategy_of(kind),
                training=training,
            )
            yield stage
            parent = stage.digest()


class Stage(Spec):
    """Everything that a stage's result depends on: it is looked up by its digest, and run if there is none."""

    kind: Kind
    parent: str | None
    data: str
    task: SerializeAsAny[Spec]
    encoder: SerializeAsAny[Spec]
    pretext: SerializeAsAny[Spec] | None = None
    training: SerializeAsAny[Spec] | None

    @property
    def sources(self) -> tuple[Source, ...]:
        """Its data sets; `task` is the first one's."""
        return sources(self.training, self.task)

    @property
    def draws(self) -> str:
        """The key of its random draws: one for all stages of a pre-training, so that a trunk continues across them."""
        return "pretrain" if self.kind in PRETRAINING else self.kind

    @property
    def folder(self) -> str:
        """The name of its folder below `train.storage`."""
        return stage_folder(self.kind, self.digest())


@dataclass(frozen=True)
class FinishedStage:
    """A stage that an earlier command finished: its parts are used, and it is not trained."""

    kind: Kind
    sha256: str

    def digest(self) -> str:
        return self.sha256

    @property
    def folder(self) -> str:
        """The name of its folder below `train.storage`."""
        return stage_folder(self.kind, self.sha256)


def stage_folder(kind: Kind, digest: str) -> str:
    """The name of a stage's folder."""
    return f"{kind}-{digest[:16]}"
