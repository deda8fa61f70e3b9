"""Experiment: the content of one YAML; and its Stages.

`loader` reads YAMLs into one Experiment, `expand` into several. Plug-ins are selected by file name: `plugins`.
"""

from collections.abc import Callable, Iterator, Sequence

from pydantic import SerializeAsAny, model_validator

from premed.config.plugins import plugin, plugin_field
from premed.config.settings import LABEL_FREE, PRETRAINING, Finetune, Kind, Pretrain, Source, Train, sources
from premed.config.spec import Spec, runtime_field, without_scoring


class Experiment(Spec):
    """One strategy on one task."""

    name: str | None = runtime_field(None)
    """Display name; None: the task and the strategy."""
    task: plugin_field("tasks")  # type: ignore[valid-type]
    encoder: plugin_field("encoders")  # type: ignore[valid-type]
    pretext: plugin_field("pretext")  # type: ignore[valid-type]
    pretrain: Pretrain | None = None
    finetune: Finetune
    train: Train = Train()
    test: bool = runtime_field(True)
    """False stops after validation and never opens the test part."""

    @model_validator(mode="after")
    def _trainable(self) -> "Experiment":
        if self.pretrain is None and plugin("pretext", self.pretext).build is not None:
            raise ValueError(f"pretrain: is missing, and {self.pretext.name} needs it (epochs, batch, lr, …)")  # type: ignore[attr-defined]
        return self

    @property
    def strategy(self) -> str:
        return self.pretext.name  # type: ignore[attr-defined]

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of its stages, in order."""
        return [kind for kind, _ in self.trainings()]

    def trainings(self) -> list[tuple[Kind, Spec | None]]:
        """Returns kind and settings of its stages: pre-training or import (where there is one), fine-tuning, test."""
        strategy = plugin("pretext", self.pretext)
        first: Sequence[tuple[Kind, Spec | None]] = []
        if strategy.build:
            assert self.pretrain is not None
            first = self.pretrain.trainings()
        elif hasattr(strategy, "weights"):
            first = [("import", None)]
        return [*first, ("finetune", self.finetune), *([("test", self.finetune)] if self.test else [])]

    def sources(self, kind: Kind) -> tuple[Source, ...]:
        """Returns the data sets of a stage of that kind."""
        return sources(self.pretrain if kind in PRETRAINING else None, self.task)

    def stages(self, data: "Callable[[Kind], str]") -> "Iterator[Stage]":
        """Yields its stages in order, each with the digest of its parent.

        data: maps a stage's kind to the fingerprint of its data. It is called when the stage is requested: for "test"
        only after the fine-tuning was yielded, and never if `test` is false.
        """
        parent = None
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
                pretext=self.pretext if kind in LABEL_FREE else None,
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
        return f"{self.kind}-{self.digest()[:16]}"
