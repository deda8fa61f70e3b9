"""The network interface over which CPU workers speak to each other: gloo's own choice may reach no other node."""

import os
import socket
from typing import Any

import psutil

from premed.errors import UserError
from premed.execution.endpoints import is_loopback

INTERFACE = "GLOO_SOCKET_IFNAME"


def torch_config(timeout: int, choose: bool) -> Any:
    """A TorchConfig with which, if `choose`, each worker chooses its network interface before the process group starts.

    timeout: seconds after which a rank that waits for another gives up.
    """
    import ray
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            addresses = worker_group.execute(ray.util.get_node_ip_address)
            worker_group.execute(lambda: choose_interface(ray.util.get_node_ip_address(), len(set(addresses)) > 1))
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return (Config if choose else TorchConfig)(timeout_s=timeout)


def choose_interface(address: str, several_nodes: bool) -> None:
    """Sets GLOO_SOCKET_IFNAME of this process, unless it is set: to loopback if all workers are on this node, which no
    other machine reaches; else to the interface that has the node's address.

    Without it, gloo takes the interface of the host name, which may reach no other node. address: the node's in the
    cluster. several_nodes: the workers are on more than one. Raises UserError if the variable names an interface that
    this node does not have, or that reaches no other node.
    """
    interfaces = {name: {each.address for each in addresses} for name, addresses in psutil.net_if_addrs().items()}
    chosen = os.environ.get(INTERFACE)
    if chosen is None:
        own = address if several_nodes else "127.0.0.1"
        if name := next((name for name, addresses in interfaces.items() if own in addresses), None):
            os.environ[INTERFACE] = name
        return
    useful = [
        name for name, addresses in interfaces.items() if not (several_nodes and all(map(is_loopback, addresses)))
    ]
    where = f"{INTERFACE}={chosen}: node {socket.gethostname()} ({address})"
    remedy = f"set it in that node's environment to one of {', '.join(sorted(useful))}, or leave it out"
    for name in chosen.split(","):
        if name not in interfaces:
            raise UserError(f"{where} has no such interface; {remedy}")
        if name not in useful:
            raise UserError(f"{where} reaches no other node over it; {remedy}")
