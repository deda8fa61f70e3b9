"""Which network interface workers use: the node's own, or what the environment names, if that reaches other nodes."""

import os

import psutil
import pytest

from premed.errors import UserError
from premed.execution.endpoints import is_loopback
from premed.execution.network_interface import INTERFACE, choose_interface


@pytest.fixture
def environment(monkeypatch):
    """Sets the variable; None: it is not set."""

    def set_to(name):
        monkeypatch.setenv(INTERFACE, name or "")
        if name is None:
            monkeypatch.delenv(INTERFACE)

    return set_to


def test_workers_of_one_node_speak_over_loopback(environment):
    loopback = {name for name, all_ in psutil.net_if_addrs().items() if "127.0.0.1" in [each.address for each in all_]}
    for address in ("127.0.0.1", "203.0.113.9"):
        environment(None)
        choose_interface(address, several_nodes=False)
        assert {os.environ[INTERFACE]} == loopback


def test_the_network_of_the_node_s_address_is_taken(environment):
    there = {name: each for name, all_ in psutil.net_if_addrs().items() for each in [a.address for a in all_]}
    for name, address in there.items():
        environment(None)
        choose_interface(address, several_nodes=True)
        assert address in [each.address for each in psutil.net_if_addrs()[os.environ[INTERFACE]]], name


def test_an_address_that_is_no_network_s_own_is_left_to_gloo(environment):
    environment(None)
    choose_interface("203.0.113.9", True)
    assert INTERFACE not in os.environ


def test_what_the_environment_names_stays(environment):
    environment("lo")
    choose_interface("127.0.0.1", False)
    assert os.environ[INTERFACE] == "lo"


@pytest.mark.parametrize(
    ("name", "why"),
    [("eth9", "has no such interface"), ("lo,eth9", "reaches no other"), ("lo", "reaches no other node")],
)
def test_a_network_that_is_not_there_or_leads_nowhere_is_refused(environment, name, why):
    environment(name)
    where, remedy = rf"^{INTERFACE}={name}: node \S+ \(10.0.0.1\)", "set it in .* one of .*, or leave it out$"
    with pytest.raises(UserError, match=f"{where} {why}.*; {remedy}"):
        choose_interface("10.0.0.1", True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("::1", True), ("fe80::1%eth0", False), ("10.1.2.3", False), ("00:00:00:00:00:00", True)],
)
def test_an_address_of_this_machine_alone_is_known(address, expected):
    assert is_loopback(address) == expected
