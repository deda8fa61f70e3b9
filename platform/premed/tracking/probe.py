"""Probe: whether MLflow's server answers at all, asked in a short question before a request that would wait minutes.

A server that is dead refuses, and is known at once. One that hangs takes every connection and says nothing: MLflow's
own requests wait for it as long as for an upload, twice (`client`).
"""

import math
import threading
import time
from collections.abc import Callable

from premed.errors import first_line
from premed.tracking.client import POSTGRES, masked, reach

FRESH = 2.0
"""Seconds for which a server that did not answer is known to be away."""
ANSWER = 30.0
"""Seconds that a server may take in mid-command, where many commands may keep it busy."""


class Probe:
    """Asks the server at `uri`, if it is one: a database's file answers by itself. Many threads may share it."""

    def __init__(self, uri: str, clock: Callable[[], float] = time.monotonic):
        self.uri, self.clock = uri, clock
        self._asking = threading.Lock()
        self._asked, self._silence = -math.inf, ""

    def __call__(self, seconds: float = ANSWER, fresh: float = 0.0) -> None:
        """Raises ConnectionError if the server does not answer within so many seconds.

        One thread asks. Others wait for what it learns; while the server is known to be away they wait for nothing:
        they may be the threads of an actor that trainings report to. fresh: seconds for which an earlier answer will
        do; a server may hang in any of them, so only for who can wait.
        """
        if not self.uri.startswith(("http", *POSTGRES)) or self._known(fresh):
            return
        if not self._asking.acquire(timeout=0 if self._silence else seconds):
            raise ConnectionError(self._silence or f"it has sent no answer for {seconds:g} s")
        try:
            if self._known(fresh):
                return
            try:
                reach(self.uri, seconds)
            except OSError as error:
                self._silence = masked(first_line(error))
                raise ConnectionError(self._silence) from None
            else:
                self._silence = ""
            finally:
                self._asked = self.clock()
        finally:
            self._asking.release()

    def _known(self, fresh: float) -> bool:
        """Whether the server answered just now. Raises ConnectionError if it just did not."""
        age = self.clock() - self._asked
        if self._silence and age < FRESH:
            raise ConnectionError(self._silence)
        return not self._silence and age < fresh
