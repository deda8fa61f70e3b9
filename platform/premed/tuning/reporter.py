"""What a sweep's driver tells of its trials, and who passes it on to Ray Tune: light, for each is a process."""

import time
from typing import Any

LOOK = 0.2  # seconds between two looks at whether there is news


class TrialReports:
    """What the driver tells of each trial, in order; an actor that Tune's processes ask."""

    def __init__(self) -> None:
        self.told: dict[int, list[dict[str, Any]]] = {}
        self.ended: set[int] = set()
        self.closed = False

    def tell(self, number: int, news: dict[str, Any]) -> None:
        self.told.setdefault(number, []).append(news)

    def end(self, number: int) -> None:
        """There will be no more of it."""
        self.ended.add(number)

    def close(self) -> None:
        """Nor of any."""
        self.closed = True

    def listen(self, number: int, since: int) -> tuple[list[dict[str, Any]], bool]:
        """What there is after the first `since`, and whether that was all."""
        return self.told.get(number, [])[since:], self.closed or number in self.ended


def trainable(config: dict[str, Any]) -> None:
    """What Tune runs for a trial."""
    import ray
    from ray import tune

    since, over = 0, False
    while not over:
        news, over = ray.get(config["news"].listen.remote(config["number"], since))
        for each in news:
            tune.report(each)
        since += len(news)
        if not over:
            time.sleep(LOOK)
