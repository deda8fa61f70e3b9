"""Several machines on one, for tests: each a network namespace with an address, a host name and disks of its own.

They are joined by a bridge, which this machine is on, too. Without root and iproute2 tests are skipped by name.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Machine:
    """`name` is its host name, `address` where the others reach it."""

    name: str
    address: str
    namespace: str

    def inside(self, disks: Mapping[Path, Path]) -> list[str]:
        """The words before a command that runs there. disks: by folder, what it sees in that folder's place."""
        mounts = "".join(f"mount --bind '{own}' '{seen}'; " for seen, own in disks.items())
        script = f"set -e; hostname '{self.name}'; {mounts}exec \"$@\""
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", script, "sh"]


@contextmanager
def machines(*names: str) -> Iterator[Sequence[Machine]]:
    """As many as there are names."""
    if not shutil.which("ip"):
        pytest.skip("iproute2 is not installed: apt-get install iproute2")
    tag, subnet = secrets.token_hex(2), f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
    bridge, made = f"pm{tag}", []
    if os.getuid() or subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True).returncode:
        pytest.skip("network namespaces are root's, who is not allowed them everywhere")
    try:
        ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for number, name in enumerate(names, start=2):
            machine = Machine(name, f"{subnet}.{number}", f"premed-{tag}-{name}")
            ip("netns", "add", machine.namespace)
            made.append(machine)
            ours = f"pm{tag}v{number}"
            ip("link", "add", ours, "type", "veth", "peer", "name", "net0", "netns", machine.namespace)
            ip("link", "set", ours, "master", bridge, "up")
            ip("-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", "net0")
            for network in ("lo", "net0"):
                ip("-n", machine.namespace, "link", "set", network, "up")
        yield made
    finally:
        for machine in made:
            ip("netns", "delete", machine.namespace)
        ip("link", "delete", bridge)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
