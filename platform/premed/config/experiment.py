"""Experiment: what one YAML says, as data; and the Stages it comes to.

`loader` reads YAMLs into one, `expand` into several. A plug-in is named by its file: `plugins`.
"""

from collections.abc import Callable, Iterator, Sequence

from pydantic import SerializeAsAny, model_validator

from premed.config.plugins import plugged, plugin
from premed.config.settings import BLIND, PRETRAINING, Finetune, Kind, Pretrain, Source, Train, sources
from premed.config.spec import Spec, elsewhere, unscored


class Experiment(Spec):
    """One strategy on one task."""

    name: str | None = elsewhere(None)
    """What people call it; the task and the strategy, if nothing is said."""
    task: plugged("tasks")  # type: ignore[valid-type]
    encoder: plugged("encoders")  # type: ignore[valid-type]
    pretext: plugged("pretext")  # type: ignore[valid-type]
    pretrain: Pretrain | None = None
    finetune: Finetune
    train: Train = Train()
    test: bool = elsewhere(True)
    """False stops after validation; the test part is not even opened."""

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
        """Of its stages, in order."""
        return [kind for kind, _ in self.trainings()]

    def trainings(self) -> list[tuple[Kind, Spec | None]]:
        """Kind and settings of its stages: pre-training or import (if the strategy has one), fine-tuning, test."""
        strategy = plugin("pretext", self.pretext)
        first: Sequence[tuple[Kind, Spec | None]] = []
        if strategy.build:
            assert self.pretrain is not None
            first = self.pretrain.stretches()
        elif hasattr(strategy, "weights"):
            first = [("import", None)]
        return [*first, ("finetune", self.finetune), *([("test", self.finetune)] if self.test else [])]

    def sources(self, kind: Kind) -> tuple[Source, ...]:
        """The data sets that a stage of that kind sees."""
        return sources(self.pretrain if kind in PRETRAINING else None, self.task)

    def stages(self, data: "Callable[[Kind], str]") -> "Iterator[Stage]":
        """Its stages in order, each naming its parent.

        data: a stage's kind to the fingerprint of the data that it sees. It is asked when the stage's turn comes, for
        "test" only after the fine-tuning was taken, and never if `test` is false.
        """
        parent = None
        for kind, training in self.trainings():
            task = self.sources(kind)[0].task
            if kind in BLIND:  # the same, whatever the task is that it is for
                task, training = unscored(task), training and unscored(training)
            stage = Stage(
                kind=kind,
                parent=parent,
                data=data(kind),
                task=task,
                encoder=self.encoder,
                pretext=self.pretext if kind in BLIND else None,
                training=training,
            )
            yield stage
            parent = stage.digest()


class Stage(Spec):
    """What is found by its digest, or run: everything its result depends on."""

    kind: Kind
    parent: str | None
    data: str
    task: SerializeAsAny[Spec]
    encoder: SerializeAsAny[Spec]
    pretext: SerializeAsAny[Spec] | None = None
    training: SerializeAsAny[Spec] | None

    @property
    def sources(self) -> tuple[Source, ...]:
        """The data sets that it sees; `task` is the first one's."""
        return sources(self.training, self.task)

    @property
    def draws(self) -> str:
        """What its draws are keyed by: the same for all that pre-trains, so that a trunk goes on across its stages."""
        return "pretrain" if self.kind in PRETRAINING else self.kind

    @property
    def folder(self) -> str:
        """Its name below `train.storage`."""
        return f"{self.kind}-{self.digest()[:16]}"
