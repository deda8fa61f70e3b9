"""Forwards validation scores from the command to Ray Tune. Few imports: every trial's process loads this module."""

import time
from typing import Any

POLL = 0.2  # seconds between two checks for new results


class TrialReports:
    """The results of each trial, in order: an actor that the command writes to and Tune's trial processes read."""

    def __init__(self) -> None:
        self.results: dict[int, list[dict[str, Any]]] = {}
        self.ended: set[int] = set()
        self.closed = False

    def add(self, number: int, result: dict[str, Any]) -> None:
        """Adds a result of trial `number`."""
        self.results.setdefault(number, []).append(result)

    def end(self, number: int) -> None:
        """Marks trial `number` as ended: it adds no more results."""
        self.ended.add(number)

    def close(self) -> None:
        """Marks all trials as ended."""
        self.closed = True

    def read(self, number: int, start: int) -> tuple[list[dict[str, Any]], bool]:
        """Returns trial `number`'s results from the `start`-th on, and whether it has ended."""
        return self.results.get(number, [])[start:], self.closed or number in self.ended


def trainable(config: dict[str, Any]) -> None:
    """Tune's function trainable: forwards the results of trial `config["number"]` to Tune until the trial has ended."""
    import ray
    from ray import tune

    num_reported, ended = 0, False
    while not ended:
        results, ended = ray.get(config["reports"].read.remote(config["number"], num_reported))
        for result in results:
            tune.report(result)
        num_reported += len(results)
        if not ended:
            time.sleep(POLL)
