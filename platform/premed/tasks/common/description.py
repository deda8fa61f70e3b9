"""The description of a task in a network's card: what is needed to predict as the task does, without its data."""

from typing import Any

PREDICTION_METHODS = ("logits", "native", "predict", "masks", "decide", "tiles", "probabilities")
"""The methods that turn logits into a prediction."""
SETTINGS = ("overlap", "window_batch", "exclusive", "painted", "channel_files")


def description(task: Any, base: type, answer: str) -> dict[str, Any]:
    """Returns the description of a task of the kind `base`.

    answer: the kind of prediction: `regions` (masks that may overlap), `labels` (one per voxel), `classes`
    (probabilities). The result has None if the task overrides one of PREDICTION_METHODS.
    """
    is_base = all(getattr(type(task), name, None) is getattr(base, name, None) for name in PREDICTION_METHODS)
    return {
        "task": task.name,
        "answer": answer if is_base else None,
        "dims": task.dims,
        "channels": task.channels,
        "classes": list(task.classes),
        "labels": list(task.labels),
        "regions": {name: list(labels) for name, labels in task.regions.items()},
        "roi": list(task.roi),
        "preprocessing": task.preprocessing.model_dump(mode="json"),
        "settings": {name: getattr(task, name) for name in SETTINGS if getattr(task, name, None) is not None},
    }
