"""Where a run comes from: host and process that write it, commit and package versions that it ran on."""

import os
import socket
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("premed", "torch", "timm", "monai", "ray", "mlflow", "numpy")
"""Packages whose versions a run records."""


@cache
def host() -> str:
    """Where a process number means the same process: containers of one machine may share its name, not its numbers."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def process_tags() -> dict[str, str]:
    """Tags that say which process writes a run."""
    return {
        "premed.host": host(),
        "premed.pid": str(os.getpid()),
        "premed.born": f"{psutil.Process().create_time():.2f}",  # process numbers come round again
    }


def gone(tags: dict[str, str]) -> bool:
    """Whether the process of these `process_tags` is known to have ended; of another host nothing is known."""
    if tags.get("premed.host") != host() or "premed.pid" not in tags:
        return False
    try:
        process = psutil.Process(int(tags["premed.pid"]))
        other = abs(process.create_time() - float(tags["premed.born"])) > 10  # somebody may have set the clock a little
        return other or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def provenance() -> dict[str, str]:
    """Tags: the commit premed runs from, and the versions of what it stands on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return versions | ({"mlflow.source.git.commit": found} if (found := commit()) else {})


def commit() -> str | None:
    """The commit of premed's own checkout, `-dirty` where it was changed; None of an installed copy.

    In a job that `premed submit` sent, whose files came without their history: as PREMED_COMMIT says.
    """
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is somebody else's repository around us
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PREMED_COMMIT")
