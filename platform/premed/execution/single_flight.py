"""SingleFlight: of several threads that need the same result, one computes it and the others wait for it."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

from premed.errors import CalledOff

POLL = 0.2  # seconds between two looks at whether a waiting thread was stopped


class SingleFlight:
    """Calls a function once for each key, however many threads ask. The result is kept, and so is an exception.

    If the computing thread is cancelled (CalledOff), one of the waiting threads computes it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.results: dict[Hashable, Future] = {}

    def __call__(
        self,
        key: Hashable,
        function: Callable[[], Any],
        on_wait: Callable[[], Any] = lambda: None,
        pause: Callable[[float], None] = lambda seconds: None,
    ) -> tuple[Any, bool]:
        """Returns the result of `function()`, and whether this call computed it. Raises what `function` raised.

        on_wait: called once before a wait. pause: called repeatedly during it; what it raises ends the wait.
        """
        with self.lock:
            first = key not in self.results
            result = self.results.setdefault(key, Future())
        if first:
            return self.compute(key, function, result), True
        if not result.done():
            on_wait()
        while True:
            try:
                return result.result(POLL), False
            except TimeoutError:
                if result.done():  # raised by the function itself
                    raise
                pause(0)
            except CalledOff:
                return self(key, function, on_wait, pause)

    def compute(self, key: Hashable, function: Callable[[], Any], result: Future) -> Any:
        try:
            result.set_result(function())
        except BaseException as error:
            if isinstance(error, CalledOff):  # before the waiting threads see it
                del self.results[key]
            result.set_exception(error)
        return result.result()

    def forget_failures(self) -> None:
        """Forgets exceptions, so that the next call with the same key tries again."""
        with self.lock:
            for key, result in list(self.results.items()):
                if result.done() and result.exception() is not None:
                    del self.results[key]
