"""What a network's card holds of its task: all that is needed to answer as the task does, without its data."""

from typing import Any

PREDICTION_METHODS = ("logits", "native", "predict", "masks", "decide", "tiles", "probabilities")
"""The methods that turn logits into an answer."""
SETTINGS = ("overlap", "window_batch", "exclusive")


def description(task: Any, base: type, answer: str) -> dict[str, Any]:
    """The facts of a task of the kind `base`. `answer` becomes None where the task overrides one of ANSWERING.

    answer: what an answer is: `regions` (masks that may overlap), `labels` (one per voxel), `classes` (probabilities).
    """
    is_base = all(getattr(type(task), name, None) is getattr(base, name, None) for name in PREDICTION_METHODS)
    return {
        "task": task.name,
        "answer": answer if is_base else None,
        "dims": task.dims,
        "channels": task.channels,
        "classes": list(task.classes),
        "labels": list(task.labels),
        "regions": {name: list(united) for name, united in task.regions.items()},
        "roi": list(task.roi),
        "preprocessing": task.preprocessing.model_dump(mode="json"),
        "settings": {name: getattr(task, name) for name in SETTINGS if hasattr(task, name)},
    }
