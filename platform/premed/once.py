"""Work that several threads of a command want is done once."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

from premed.errors import CalledOff

LOOK = 0.2  # seconds between two looks at whether a wait is still wanted


class Once:
    """What several threads of a command want: the first to ask does it, the others wait for what comes of it.

    Where the first is called off, one of the others takes over.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.known: dict[Hashable, Future] = {}

    def __call__(
        self,
        name: Hashable,
        work: Callable[[], Any],
        wait: Callable[[], Any] = lambda: None,
        pause: Callable[[float], None] = lambda seconds: None,
    ) -> Any:
        """What `work()` gave (or raised) for the first to ask, and whether this one was it.

        wait: called before a wait. pause: called again and again during it; what it raises ends it.
        """
        with self.lock:
            first = name not in self.known
            result = self.known.setdefault(name, Future())
        if first:
            return self.first(name, work, result), True
        if not result.done():
            wait()
        while True:
            try:
                return result.result(LOOK), False
            except TimeoutError:
                if result.done():  # it is the work's own
                    raise
                pause(0)
            except CalledOff:
                return self(name, work, wait, pause)

    def first(self, name: Hashable, work: Callable[[], Any], result: Future) -> Any:
        try:
            result.set_result(work())
        except BaseException as error:
            if isinstance(error, CalledOff):  # before the others hear of it
                del self.known[name]
            result.set_exception(error)
        return result.result()

    def forget_failures(self) -> None:
        """What failed may be tried again."""
        with self.lock:
            for name, result in list(self.known.items()):
                if result.done() and result.exception() is not None:
                    del self.known[name]
