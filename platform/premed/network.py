"""Over which of a node's networks its workers speak where they have no GPUs. gloo by itself takes the host name's."""

import os
import socket
from ipaddress import ip_address

import psutil

from premed.errors import UserError

NAME = "GLOO_SOCKET_IFNAME"


def speak_over(address: str, several: bool) -> None:
    """Settles it for this process: what GLOO_SOCKET_IFNAME says, else the network of the node's own address.

    address: under which the cluster knows the node. several: there are workers on other nodes. UserError where the
    variable names no network of this node, or one that ends in it.
    """
    there = {name: {each.address for each in addresses} for name, addresses in psutil.net_if_addrs().items()}
    said = os.environ.get(NAME)
    if said is None:
        if found := next((name for name, addresses in there.items() if address in addresses), None):
            os.environ[NAME] = found
        return
    useful = [name for name, addresses in there.items() if not (several and all(map(is_loopback, addresses)))]
    where = f"{NAME}={said}: node {socket.gethostname()} ({address})"
    mend = f"set it in that node's environment to one of {', '.join(sorted(useful))}, or leave it out"
    for name in said.split(","):
        if name not in there:
            raise UserError(f"{where} has no such network; {mend}")
        if name not in useful:
            raise UserError(f"{where} reaches no other node over it; {mend}")


def is_loopback(address: str) -> bool:
    """Also of what is no IP address: a network has those of its hardware, too."""
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return True
