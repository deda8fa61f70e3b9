"""Ends a worker that is stuck: it trains or tests, and its encoder was not called for `train.hang_timeout` seconds.

It waits for another worker that does not answer, say, or for a disk. Ray Train then restarts the workers, which go on
from the newest checkpoint; by itself it would wait 10 minutes for a process that is stopped, and for ever for one that
runs. Before it ends, the worker writes the stacks of its threads into the stage's folder.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from premed.training.storage import StageStorage

STUCK = "stuck/"
"""The folder of stacks. A name ends in the rank, and begins with `new-` until it is reported."""


class Watchdog:
    """Watches this thread while it is in `watching`."""

    def __init__(self, storage: StageStorage, rank: int, seconds: float | None):
        """seconds: None watches nothing."""
        self.storage, self.rank, self.seconds = storage, rank, seconds
        self.thread, self.touched, self.paused, self.ended = threading.get_ident(), 0.0, False, threading.Event()

    @contextmanager
    def watching(self, encoder: nn.Module) -> Iterator[None]:
        """Within the context the encoder is to be called at least every `seconds`."""
        if self.seconds is None:
            yield
            return
        self.touch()
        hook = encoder.register_forward_pre_hook(lambda *given: self.touch())
        threading.Thread(target=self.watch, name="premed watchdog", daemon=True).start()
        try:
            yield
        finally:
            self.ended.set()
            hook.remove()

    def touch(self) -> None:
        self.touched = time.monotonic()

    def pausing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which may take any time."""

        def paused(*arguments: Any) -> Any:
            self.paused = True
            try:
                return function(*arguments)
            finally:
                self.touch()
                self.paused = False

        return paused

    def watch(self) -> None:
        assert self.seconds is not None
        while not self.ended.wait(min(self.seconds / 4, 5.0)):
            if not self.paused and time.monotonic() - self.touched > self.seconds:
                self.end()

    def end(self) -> None:
        """Writes all stacks, that of the training first, and ends this process at once."""
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        idents = sorted(frames, key=lambda ident: ident != self.thread)
        stacks = [f"{names.get(ident)}\n{''.join(traceback.format_stack(frames[ident]))}" for ident in idents]
        place = traceback.extract_stack(frames[self.thread])[-1]
        first = f"for more than {self.seconds:g} s in {place.name} ({place.filename}, line {place.lineno})"
        try:
            self.storage.put(f"{STUCK}new-{time.time():.0f}-rank{self.rank}.txt", "\n".join([first, *stacks]).encode())
        finally:
            os._exit(1)


def stuck_workers(storage: StageStorage) -> list[str]:
    """A line for each worker of the stage that was ended and is not reported yet; it counts as reported then."""
    lines = []
    for name in storage.names():
        if name.startswith(f"{STUCK}new-") and (content := storage.get(name)):
            kept = name.replace("new-", "")
            storage.put(kept, content)
            storage.remove(name)
            rank, first = name.rpartition("rank")[2].removesuffix(".txt"), content.decode().partition("\n")[0]
            lines.append(f"worker {rank} was stuck {first}: train.hang_timeout; its stacks: {storage.where}/{kept}")
    return lines
