"""What can go wrong, by who can do something about it; the CLI turns each into a line and an exit code."""

from typing import Literal, NamedTuple


def printable(value: object) -> str:
    """`value` as one line fit for any terminal and encoding: what is not printable, in file names say, is escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(value))


MOST_SIGNS = 2000
"""Of a message. A cell of a table, or a name in a file, may have any length, and a terminal is for people."""


def shortened(text: str, most: int = MOST_SIGNS) -> str:
    """`text`, or its two ends if it is longer: messages begin with the file or field, and end with the remedy."""
    if len(text) <= most:
        return text
    end = (most - len(f" … [{len(text)} characters] … ")) // 2
    return f"{text[:end]} … [{len(text) - 2 * end} characters] … {text[-end:]}"


def brief(value: object) -> str:
    """`value` as one line of a length that people read."""
    return shortened(printable(str(value)))


class UserError(Exception):
    """The user can fix it: one line that names the file or field and the fix. The CLI exits with code 2."""

    def __str__(self) -> str:
        return brief(super().__str__())


class Finding(NamedTuple):
    """One line of `premed data check`."""

    severity: Literal["error", "note"]
    where: str  # a file or a field
    what: str  # what is wrong with it, and how to fix it

    @classmethod
    def of(cls, error: UserError) -> "Finding":
        """A UserError as a finding: the text before the first colon is the file or field."""
        where, _, what = str(error).partition(": ")
        return cls("error", where, what)


class Missing(Finding):
    """Of a file that is listed and not there."""


class StageFailed(Exception):
    """A stage failed; one line says why. Checkpoints stay, and the same command resumes from them. Exit code 1."""


class CalledOff(BaseException):
    """The work was cancelled. A BaseException, so that no `except Exception` on the way takes it for a failure."""


class Left(Exception):
    """The user stopped a command, or detached from a job; one line says how to go on. Exit code 130."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the work; one line says where the same command goes on. Exit code 130."""


class LeaseLost(StageFailed):
    """Another process took over a stage's lease after this one's heartbeat stopped; it owns the run now."""


def first_line(error: BaseException) -> str:
    """The message of an error on one line; of Ray Train's errors, what the worker of the lowest rank raised."""
    if failures := getattr(error, "worker_failures", None):
        lines = [line for line in str(failures[min(failures)]).splitlines() if line.strip()]
        return shortened(lines[-1].strip()) if lines else type(error).__name__
    return shortened((str(error).strip() or type(error).__name__).splitlines()[0])
