"""Loads a trained network by its run or by its name in the model registry, without its data.

Weights are read from the stage's folder, or from MLflow if that is gone or on another machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, cast

from premed.config.image_processing import Preprocessing
from premed.config.plugins import plugin
from premed.contracts import Encoder, Task
from premed.errors import UserError
from premed.inference.runs import find_stage_run
from premed.inference.scored import Scored, scored
from premed.models.network import Network, load_strictly, seeded_init
from premed.paths import home
from premed.tasks.common.classification import Classification
from premed.tasks.common.segmentation import Regions, Segmentation
from premed.tracking.run_store import Run, open_store
from premed.training.artifacts import damaged_parts, load_encoder, part_weights, read_card
from premed.training.storage import StageStorage

TASKS: dict[str, type] = {"regions": Regions, "labels": Segmentation, "classes": Classification}
"""The base class of a task by its card's `answer`."""


@dataclass(frozen=True)
class TrainedModel:
    """The weights and the card of a finished stage."""

    run_id: str
    reference: str  # as the user gave it
    parent: str | None  # the experiment's run
    card: dict[str, Any]
    storage: StageStorage
    verified: bool = False  # whether its weights were found undamaged: they are not hashed again when they are loaded
    scored: Scored | None = None  # of a fine-tuning: what it scored

    def weights(self, part: str) -> dict[str, Any]:
        """Returns the weights of a part (`encoder`, `head`, …), by name."""
        return part_weights(self.storage, part, self.verified)

    def encoder(self, channels: int, roi: tuple[int, ...]) -> Encoder:
        """Returns the encoder with its trained weights, in evaluation mode."""
        module, config = self.parse_plugin("encoders", self.card["encoder"])
        with seeded_init(0, "encoder"):
            encoder = module.build(config, channels, roi)
        load_encoder(encoder, self.storage, self.verified)
        return encoder.eval()

    def network(self) -> tuple[Network, Task]:
        """Returns the fine-tuned network, in evaluation mode, and its task. Raises UserError for a pre-training."""
        if self.card.get("head") is None:
            raise UserError(f"{self.reference}: is a pre-training and cannot predict; name a run that was fine-tuned")
        task = task_from_card(self.card)
        encoder = self.encoder(task.channels, task.roi)
        module, config = self.parse_plugin("heads", self.card["head"])
        with seeded_init(0, "head"):
            head = module.build(config, encoder, task)
        load_strictly(head, self.weights("head"), "head")
        return Network(encoder, head).eval().requires_grad_(False), task

    def parse_plugin(self, folder: str, config: dict[str, Any]) -> tuple[Any, Any]:
        """Returns a plug-in's module and its parsed configuration."""
        try:
            module = plugin(folder, config)
            return module, module.Config.model_validate(config)
        except ValueError as error:  # pydantic's ValidationError is one
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.reference}: {folder}: {reason}; use the version of premed that it was trained with"
            ) from None


def task_from_card(card: dict[str, Any]) -> Task:
    """Returns the task that a card describes, without data. Raises UserError if the card has no kind of `answer`."""
    base = TASKS.get(card.get("answer") or "")
    if base is None:
        raise UserError(f"the card of {card.get('task', 'this run')} does not say how it predicts; run it again")
    facts = {
        "name": card["task"],
        "dims": card["dims"],
        "channels": card["channels"],
        "classes": tuple(card["classes"]),
        "labels": tuple(card["labels"]),
        "regions": MappingProxyType({name: tuple(labels) for name, labels in card["regions"].items()}),
        "roi": tuple(card["roi"]),
        "preprocessing": Preprocessing.model_validate(card["preprocessing"]),
        **card["settings"],
    }
    return cast(Task, type("Described", (base,), facts)())  # class attributes: they override the base's properties, too


@contextmanager
def open_trained(reference: str) -> Iterator[TrainedModel]:
    """Yields the stage of `reference`; downloaded weights are deleted when the context ends.

    reference: an experiment, a fine-tuning, a test or a pre-training, by any name that `references.find_run` knows.
    Raises UserError if there is no such run or it has no weights.
    """
    store = open_store()
    run = find_stage_run(store, reference)
    digest = run.tags["premed.digest"]
    with TemporaryDirectory() as folder:
        storage = stage_storage(run)
        card, whole = own_card(storage, digest), False
        if card is None or not (whole := not damaged_parts(storage)):
            with suppress(Exception):  # MLflow raises various errors for missing artifacts
                store.download(run.run_id, "parts", folder)
            fetched = StageStorage(folder, "")
            if (its_card := own_card(fetched, digest)) is not None and not damaged_parts(fetched):
                storage, card, whole = fetched, its_card, True
        if not whole:
            state = "neither in {} nor in MLflow" if card is None else "damaged in {}, and in MLflow"
            raise UserError(f"{reference}: its weights are {state.format(storage.where)}; run it again")
        assert card is not None
        yield TrainedModel(run.run_id, reference, run.parent, card, storage, True, scored(store, run))


def stage_storage(run: Run) -> StageStorage:
    """Returns the storage that the run names, whether its files still exist or not."""
    where = run.tags.get("premed.where", "").replace("${PREMED_HOME}", str(home()))
    storage, _, name = where.rpartition("/")
    return StageStorage(storage, name)


def own_card(storage: StageStorage, digest: str) -> dict[str, Any] | None:
    """Returns the card in a stage's folder, or None if there is none with that digest."""
    with suppress(Exception):  # an unreachable storage raises various errors
        card = read_card(storage)
        return card if card["digest"] == digest else None
    return None
