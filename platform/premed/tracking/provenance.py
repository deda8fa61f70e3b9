"""Where a run comes from: the host and process that write it, premed's commit, package versions."""

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
    """The host name and PID namespace: containers of one machine may share its name, but not its process ids."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def process_tags() -> dict[str, str]:
    """Returns tags that identify this process as the writer of a run."""
    return {
        "premed.host": host(),
        "premed.pid": str(os.getpid()),
        "premed.born": f"{psutil.Process().create_time():.2f}",  # process ids are reused
    }


def gone(tags: dict[str, str]) -> bool:
    """Whether the process of these `process_tags` has ended. False for another host, of which nothing is known."""
    if tags.get("premed.host") != host() or "premed.pid" not in tags:
        return False
    try:
        process = psutil.Process(int(tags["premed.pid"]))
        other = abs(process.create_time() - float(tags["premed.born"])) > 10  # the clock may have been set
        return other or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def provenance() -> dict[str, str]:
    """Returns tags with the versions of packages and, if known, the commit that premed runs from."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return versions | ({"mlflow.source.git.commit": revision} if (revision := commit()) else {})


def commit() -> str | None:
    """Returns the commit of premed's checkout, with `-dirty` if that has changes; None for an installed package.

    In a job of `premed submit`, whose files have no git history: PREMED_COMMIT.
    """
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # fails if the repository around it is not premed's
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PREMED_COMMIT")
