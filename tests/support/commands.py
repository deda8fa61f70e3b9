"""`premed …` as people call it, from a shell."""

import os
import subprocess
import sys

import pytest


def shell(line, **more):
    """(exit code, stdout, stderr) of a line of bash in which `premed` is this one."""
    premed = f'premed() {{ "{sys.executable}" -m premed "$@"; }}; set -o pipefail; '
    done = subprocess.run(["bash", "-c", premed + line], env=os.environ | more, capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def in_namespace(script, *, network=True, **more):
    """(exit code, stdout, stderr) of a script of sh in mounts of its own, where `premed` is this one: only root may.

    network: False leaves it without any, even loopback. The test is skipped by name where that is not allowed.
    """
    options = ["--mount"] + ([] if network else ["--net"])
    if os.getuid() or subprocess.run(["unshare", *options, "true"], capture_output=True).returncode:
        pytest.skip("namespaces are root's, who is not allowed them everywhere")
    premed = f'set -e; premed() {{ "{sys.executable}" -m premed "$@"; }}; '
    command = ["unshare", *options, "bash", "-c", premed + script]
    done = subprocess.run(command, env=os.environ | more, capture_output=True, timeout=200)
    return done.returncode, done.stdout.decode(), done.stderr.decode()
