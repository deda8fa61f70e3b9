"""Where a run comes from: the host and process that write it, premed's commit, package versions."""

import getpass
import os
import socket
import subprocess
from collections.abc import Mapping
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
        "premed.born": born(os.getpid()),  # process ids are reused
    }


def gone(tags: dict[str, str]) -> bool:
    """Whether the process of these `process_tags` has ended. False for another host, of which nothing is known."""
    if tags.get("premed.host") != host() or "premed.pid" not in tags:
        return False
    try:
        process = psutil.Process(int(tags["premed.pid"]))
        if ":" in tags["premed.born"]:
            other = born(process.pid) != tags["premed.born"]
        else:  # written by the clock, which may have been set since: by an older version, or without /proc
            other = abs(process.create_time() - float(tags["premed.born"])) > 10
        return other or process.status() == psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return True
    except (LookupError, ValueError, psutil.AccessDenied):  # tags that somebody changed: its heartbeat tells
        return False


def born(pid: int) -> str:
    """When a process began: the boot and its clock's ticks since then, which do not depend on the clock on the wall.

    Without /proc: seconds since 1970.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.Process(pid).create_time():.2f}"
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a command's name may hold anything
    return f"{boot}:{fields[19]}"  # proc_pid_stat(5): starttime is field 22, the second behind the name is 3


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


def run_tags(digest: str, kind: str, parent: str | None, tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a new run: `tags` first, for MLflow's UI keeps this order."""
    own = {"premed.digest": digest, "premed.kind": kind, "mlflow.source.name": "premed"}
    with suppress(OSError, KeyError):  # a container's user may have no name
        own["mlflow.user"] = getpass.getuser()
    return {**tags, **own, **process_tags(), **({"mlflow.parentRunId": parent} if parent else {})}
