"""The points of a training's curve, from a file that a disk may have changed: of a damaged one those before it."""

import json
from typing import Any

LATEST = 253_402_300_799_000  # ms: the last second of the year 9999, beyond which there are no dates


def read_points(content: bytes) -> tuple[list[dict[str, Any]], str]:
    """The points `{"step": int, "time": ms, "metrics": {name: number}}` of `curve.jsonl`, one a line; and what is wrong
    with the line after them, empty if there is none."""
    points: list[dict[str, Any]] = []
    for line in content.splitlines():
        try:
            point = json.loads(line)
        except (ValueError, RecursionError) as error:  # the latter of thousands of brackets
            return points, str(error)
        if not is_point(point):
            return points, f"line {len(points) + 1} is no point of a curve"
        points.append(point)
    return points, ""


def is_point(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(metrics := value.get("metrics"), dict):
        return False
    step, time = value.get("step"), value.get("time")
    is_at = isinstance(step, int) and isinstance(time, int | float) and 0 <= time <= LATEST
    return is_at and all(isinstance(number, int | float) for number in metrics.values())
