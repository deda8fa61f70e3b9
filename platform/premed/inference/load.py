"""A trained network, found by its run or by its name in the registry, and built again without its data.

Its weights come from the stage's folder, or from MLflow where that is gone (or on another machine).
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, cast

from premed.config.plugins import plugin
from premed.config.transforms import Preprocessing
from premed.contracts import Encoder, Task
from premed.errors import UserError
from premed.models.network import Network, load_strictly, seeded_init
from premed.paths import home
from premed.tasks.common.classification import Classification
from premed.tasks.common.segmentation import Regions, Segmentation
from premed.tracking import registry
from premed.tracking.store import Run, RunStore, open_store
from premed.training.artifacts import load_encoder, part_weights
from premed.training.storage import StageStorage

TASKS: dict[str, type] = {"regions": Regions, "labels": Segmentation, "classes": Classification}
"""By a card's `answer`."""


@dataclass(frozen=True)
class TrainedModel:
    """What a finished stage left for others to use."""

    run_id: str
    reference: str  # as the user named it
    parent: str | None  # the experiment's run
    card: dict[str, Any]
    storage: StageStorage

    def weights(self, part: str) -> dict[str, Any]:
        return part_weights(self.storage, part)

    def encoder(self, channels: int, roi: tuple[int, ...]) -> Encoder:
        """The encoder with its trained weights."""
        module, config = self.parse_plugin("encoders", self.card["encoder"])
        with seeded_init(0, "encoder"):
            encoder = module.build(config, channels, roi)
        load_encoder(encoder, self.storage)
        return encoder.eval()

    def network(self) -> tuple[Network, Task]:
        """The fine-tuned network, in evaluation, and the task it answers. UserError of a pre-training."""
        if self.card.get("head") is None:
            raise UserError(f"{self.reference}: is a pre-training and answers nothing; name a run that was fine-tuned")
        task = task_from_card(self.card)
        encoder = self.encoder(task.channels, task.roi)
        module, config = self.parse_plugin("heads", self.card["head"])
        with seeded_init(0, "head"):
            head = module.build(config, encoder, task)
        load_strictly(head, self.weights("head"), "head")
        return Network(encoder, head).eval().requires_grad_(False), task

    def parse_plugin(self, folder: str, config: dict[str, Any]) -> tuple[Any, Any]:
        try:
            module = plugin(folder, config)
            return module, module.Config.model_validate(config)
        except ValueError as error:  # pydantic's are such, too
            reason = " ".join(str(error).split())
            raise UserError(f"{self.reference}: {folder}: {reason}; take the premed that it was trained with") from None


def task_from_card(card: dict[str, Any]) -> Task:
    """The task that a card describes, without data. UserError where the card does not say how it answers."""
    base = TASKS.get(card.get("answer") or "")
    if base is None:
        raise UserError(f"the card of {card.get('task', 'this run')} does not say how it answers; run it again")
    facts = {
        "name": card["task"],
        "dims": card["dims"],
        "channels": card["channels"],
        "classes": tuple(card["classes"]),
        "labels": tuple(card["labels"]),
        "regions": MappingProxyType({name: tuple(united) for name, united in card["regions"].items()}),
        "roi": tuple(card["roi"]),
        "preprocessing": Preprocessing.model_validate(card["preprocessing"]),
        **card["settings"],
    }
    return cast(Task, type("Described", (base,), facts)())  # class attributes: they override the base's properties, too


@contextmanager
def open_trained(reference: str) -> Iterator[TrainedModel]:
    """The stage that `reference` means, for as long as the context lasts. Raises UserError where there is none.

    reference: the id of an experiment's, a fine-tuning's, a test's or a pre-training's run, or
    `models:/NAME@ALIAS`, or `models:/NAME/VERSION`.
    """
    store = open_store()
    run = find_stage_run(store, reference)
    digest = run.tags["premed.digest"]
    with TemporaryDirectory() as folder:
        storage = stage_storage(run)
        if read_card(storage, digest) is None:
            with suppress(Exception):  # whatever way MLflow says that it has not got them, or not any more
                store.download(run.run_id, "parts", folder)
            storage = StageStorage(folder, "") if read_card(StageStorage(folder, ""), digest) else storage
        card = read_card(storage, digest)
        if card is None:
            raise UserError(f"{reference}: its weights are neither in {storage.where} nor in MLflow; run it again")
        yield TrainedModel(run.run_id, reference, run.parent, card, storage)


def find_stage_run(store: RunStore, reference: str) -> Run:
    """The run of the training that `reference` means: of an experiment or a test, its fine-tuning."""
    run_id = registry.run_of(store.client, reference) if reference.startswith("models:/") else reference
    run = get_run(store, run_id, reference)
    kind = run.tags.get("premed.kind")
    if kind == "experiment":
        if "finetune_run" not in run.tags:
            raise UserError(f"{reference}: this experiment has not been fine-tuned to its end; run it again")
        run = get_run(store, run.tags["finetune_run"], reference)
    elif kind == "test":
        found = store.find(run.tags.get("premed.parent_digest", ""), "finetune")
        if found is None:
            raise UserError(f"{reference}: the fine-tuning that it tested is not in this store; name another run")
        run = found
    if run.tags.get("premed.kind") == "trunk":
        raise UserError(f"{reference}: is a segment of a trunk, which leaves no encoder; name a cool-down from it")
    if run.tags.get("premed.kind") not in ("pretrain", "cooldown", "finetune") or run.status != "FINISHED":
        raise UserError(f"{reference}: is no finished run of premed ({run.status.lower()}); name another, or run it")
    return run


def get_run(store: RunStore, run_id: str, reference: str) -> Run:
    try:
        return store.get(run_id)
    except Exception as error:
        if getattr(error, "error_code", "") not in registry.UNKNOWN:
            raise
        raise UserError(
            f"{reference}: no such run in {store.uri}; `premed ui` lists them (MLFLOW_TRACKING_URI, PREMED_HOME)"
        ) from None


def stage_storage(run: Run) -> StageStorage:
    """Where the run's stage says it left its files, whether they are there still or not."""
    where = run.tags.get("premed.where", "").replace("${PREMED_HOME}", str(home()))
    storage, _, name = where.rpartition("/")
    return StageStorage(storage, name)


def read_card(storage: StageStorage, digest: str) -> dict[str, Any] | None:
    """The card in a stage's folder, if it is that stage's."""
    with suppress(Exception):  # a storage that is out of reach, or was, says so in many ways
        card = storage.get_json("parts/card.json")
        return card if card and card["digest"] == digest else None
    return None
