"""A task without its data: what a card tells of it, and the card as a task again, which answers on any machine."""

from types import MappingProxyType
from typing import Any, cast

from premed.config.transforms import Recipe
from premed.contracts import Task
from premed.errors import UserError
from premed.tasks.common.classification import Classification
from premed.tasks.common.segmentation import Regions, Segmentation

KINDS: dict[str, type] = {"regions": Regions, "labels": Segmentation, "classes": Classification}
"""How an answer is meant: overlapping masks, one label per voxel, or probabilities of the image's classes."""
ANSWERING = ("logits", "native", "predict", "masks", "decided", "tiles", "probabilities")
"""What turns logits into an answer; a task that does it in its own way is not told by its facts."""
SETTINGS = ("overlap", "window_batch", "exclusive")


def described(task: Task) -> dict[str, Any]:
    """The facts of a task that are needed to answer as it does. `answer` is None where they are not all."""
    kind = next((kind for kind, base in KINDS.items() if isinstance(task, base)), None)
    if kind and any(getattr(type(task), name, None) is not getattr(KINDS[kind], name, None) for name in ANSWERING):
        kind = None
    return {
        "task": task.name,
        "answer": kind,
        "dims": task.dims,
        "channels": task.channels,
        "classes": list(task.classes),
        "labels": list(task.labels),
        "regions": {name: list(united) for name, united in task.regions.items()},
        "roi": list(task.roi),
        "preprocessing": task.recipe.model_dump(mode="json"),
        "settings": {name: getattr(task, name) for name in SETTINGS if hasattr(task, name)},
    }


def bare(card: dict[str, Any]) -> Task:
    """The task that `described` told of. Raises UserError where it did not tell all."""
    base = KINDS.get(card.get("answer") or "")
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
        "recipe": Recipe.model_validate(card["preprocessing"]),
        **card["settings"],
    }
    return cast(Task, type("Bare", (base,), facts)())  # as attributes of a class, they also stand in for properties
