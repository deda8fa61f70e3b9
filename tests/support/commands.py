"""`premed …` as people call it, from a shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.suite import REPOSITORY


def shell(line, **more):
    """(exit code, stdout, stderr) of a line of bash in which `premed` is this one."""
    premed = f'premed() {{ "{sys.executable}" -m premed "$@"; }}; set -o pipefail; '
    done = subprocess.run(["bash", "-c", premed + line], env=os.environ | more, capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


HERE = "/mnt/here"
STRANGER = "setpriv --reuid 12345 --regid 12345 --clear-groups env --unset=HOME"
"""The words before a command of a user without an entry in /etc/passwd, and without a HOME."""


def in_namespace(script, folder=None, *, network=True, **more):
    """(exit code, stdout, stderr) of a script of bash in mounts of its own, where `premed` is this one: only root may.

    folder: is at HERE, whoever may reach it elsewhere. network: False leaves it without any, even loopback. more:
    environment. The test is skipped by name where this is not allowed.
    """
    options = ["--mount"] + ([] if network else ["--net"])
    if os.getuid() or subprocess.run(["unshare", *options, "true"], capture_output=True).returncode:
        pytest.skip("namespaces are root's, who is not allowed them everywhere")
    premed = f'set -e; premed() {{ "{sys.executable}" -m premed "$@"; }}; PYTHON="{sys.executable}"; '
    command = ["unshare", *options, "bash", "-c", premed + readable(folder) + script]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "platform"), "PYTHONDONTWRITEBYTECODE": "1"} | more
    done = subprocess.run(command, env=environment, capture_output=True, timeout=290)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def readable(folder):
    """Mounts after which every user may read this Python and premed, and `folder` is at HERE."""
    needed = {Path(sys.base_prefix), Path(sys.prefix), REPOSITORY}
    hidden = {above for each in needed for above in each.parents if not above.stat().st_mode & 0o1}
    hidden = {each for each in hidden if not hidden & set(each.parents)}
    lines = ["mount -t tmpfs -o mode=755 none /mnt"]
    for number, each in enumerate(needed):
        lines.append(f"mkdir /mnt/{number}; mount --bind '{each}' /mnt/{number}")
    lines += [f"mkdir {HERE}; mount --bind '{folder}' {HERE}"] if folder else []
    lines += [f"mount -t tmpfs -o mode=755 none '{each}'" for each in hidden]
    for number, each in enumerate(needed):
        if hidden & set(each.parents):
            lines.append(f"mkdir -p '{each}'; mount --bind /mnt/{number} '{each}'")
    return "; ".join(lines) + "; "
