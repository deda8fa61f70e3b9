"""stdout and stderr as they are: a sign that they cannot write is replaced, and a reader that has left is no error.

`settle` is called once, before a command starts. Its work does not depend on who reads what it prints: a training whose
stderr nobody reads any more goes on to its end.
"""

import errno
import faulthandler
import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from premed.reporting.encoding import ERRORS


def settle() -> None:
    """Makes stdout and stderr write whatever they are given, for as long as somebody reads it.

    A crash in a library's C++ says on stderr where each thread was.
    """
    sys.stdout, sys.stderr = settled(sys.stdout), settled(sys.stderr)
    with suppress(OSError, ValueError):  # a stream that is no file
        faulthandler.enable(sys.stderr)


def settled(stream: TextIO | None) -> TextIO:
    """The stream with such a file below it; one that is no file, as in a test, only replaces signs."""
    if stream is None:  # it was closed before Python started: `>&-`
        return open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    try:
        stream.flush()
        file = Output(stream.fileno())
    except (OSError, ValueError):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
        return stream
    lines = stream.isatty() or getattr(stream, "line_buffering", False) or getattr(stream, "write_through", False)
    return io.TextIOWrapper(io.BufferedWriter(file), stream.encoding, ERRORS, line_buffering=lines)


def failure(stream: TextIO) -> str | None:
    """Why a stream could not be written to its end, as where the disk is full; None also if only its reader left."""
    stream.flush()
    file = getattr(getattr(stream, "buffer", None), "raw", None)
    return file.failure if isinstance(file, Output) else None


class Output(io.FileIO):
    """A file that becomes /dev/null once it cannot be written to, so that nobody gets an exception for it."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "wb", closefd=False)
        self.failure: str | None = None
        self.left = {errno.EPIPE, errno.EIO} if os.isatty(descriptor) else {errno.EPIPE}  # EIO: a terminal that is gone

    def write(self, data) -> int | None:  # type: ignore[override] - bytes or a buffer
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self.left:
                self.failure = error.strerror
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # what libraries and processes of ours write to it, too
            os.close(null)
            return len(memoryview(data).cast("B"))
