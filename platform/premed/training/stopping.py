"""Ctrl-C and SIGTERM: the first one stops the command, a training only after a checkpoint; a second one leaves at once.

A training defers the first signal to its next step (`deferred`), where it saves a checkpoint and ends. Everything else
is interrupted where it is, by a KeyboardInterrupt. Only the command line handles signals so (`install`); elsewhere the
functions here change nothing.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 0.3  # seconds within which a second signal is the first once more: some launchers pass on what a terminal sends
PATIENCE = 1.0  # seconds after which a command that is still stopping says so
LEAVING = b"premed: left at once; what was not saved yet is lost\n"
SHOW_CURSOR = b"\x1b[?25h"

_asked = threading.Event()
_deferring = 0  # how many `deferred` contexts the main thread is in


def install() -> None:
    """Handles both signals from now on. The main thread calls it, once. A SIGINT that is ignored stays so (`nohup`)."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    # the main thread runs handlers only between two calls into a library: a second signal must not wait for that
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(read,), name="premed signals", daemon=True).start()


def asked() -> bool:
    """Whether a signal has come."""
    return _asked.is_set()


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within the context the first signal raises nothing; the function that it yields says whether one has come.

    The context raises KeyboardInterrupt at its end if one has. In other threads than the main one it does nothing.
    """
    global _deferring
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    _deferring += 1
    try:
        yield asked
    finally:
        _deferring -= 1
    if asked():
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """A part of `deferred` in which a signal, also one that came before, raises KeyboardInterrupt."""
    global _deferring
    if threading.current_thread() is not threading.main_thread() or not _deferring:
        yield
        return
    before, _deferring = _deferring, 0
    try:
        if asked():
            raise KeyboardInterrupt
        yield
    finally:
        _deferring = before


def _stop(number: int, frame: Any) -> None:
    """The handler of both signals, in the main thread. What comes after the first signal is for `_watch` to handle."""
    if not asked():
        _asked.set()
        if not _deferring:
            raise KeyboardInterrupt


def _watch(read: int) -> None:
    """Leaves at the second signal, and says after a while that the command is still stopping."""
    first, warned = None, False
    while True:
        wait = None if first is None or warned else max(first + PATIENCE - time.monotonic(), 0)
        if not select.select([read], [], [], wait)[0]:
            print(
                "premed: stopping, after a checkpoint where one can be saved; again to leave at once", file=sys.stderr
            )
            warned = True
            continue
        if not any(number in SIGNALS for number in os.read(read, 64)):  # libraries handle other signals
            continue
        now = time.monotonic()
        if first is not None and now - first > ECHO:
            os.write(2, SHOW_CURSOR * os.isatty(2) + LEAVING)  # not through Python's file, whose lock may be held
            os._exit(130)
        first = now if first is None else first


def _forget() -> None:
    """In a forked process: its signals are its own."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
