"""Which network workers speak over: the node's own, or what was said, if that is there and leads anywhere."""

import os

import psutil
import pytest

from premed.errors import UserError
from premed.network import NAME, is_loopback, speak_over


@pytest.fixture
def said(monkeypatch):
    """Says which network it is to be; None: nobody does."""

    def say(name):
        monkeypatch.setenv(NAME, name or "")
        if name is None:
            monkeypatch.delenv(NAME)

    return say


@pytest.mark.parametrize("several", [True, False])
def test_the_network_of_the_node_s_address_is_taken(said, several):
    there = {name: each for name, all_ in psutil.net_if_addrs().items() for each in [a.address for a in all_]}
    for name, address in there.items():
        said(None)
        speak_over(address, several)
        assert address in [each.address for each in psutil.net_if_addrs()[os.environ[NAME]]], name


def test_an_address_that_is_no_network_s_own_is_left_to_gloo(said):
    said(None)
    speak_over("203.0.113.9", True)
    assert NAME not in os.environ


def test_what_was_said_stays(said):
    said("lo")
    speak_over("127.0.0.1", False)
    assert os.environ[NAME] == "lo"


@pytest.mark.parametrize(
    ("name", "why"), [("eth9", "has no such network"), ("lo,eth9", "reaches no other"), ("lo", "reaches no other node")]
)
def test_a_network_that_is_not_there_or_leads_nowhere_is_refused(said, name, why):
    said(name)
    where, mend = rf"^{NAME}={name}: node \S+ \(10.0.0.1\)", "set it in .* one of .*, or leave it out$"
    with pytest.raises(UserError, match=f"{where} {why}.*; {mend}"):
        speak_over("10.0.0.1", True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("::1", True), ("fe80::1%eth0", False), ("10.1.2.3", False), ("00:00:00:00:00:00", True)],
)
def test_an_address_of_this_machine_alone_is_known(address, expected):
    assert is_loopback(address) == expected
