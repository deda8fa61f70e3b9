"""endpoints.py: what a port is, by real servers on real sockets."""

import base64
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.servers import FLOW, METHODS, RAY, grpc_server, http_server, silent_server
from support.stores import free_port

from premed.execution import endpoints
from premed.execution.endpoints import CLIENT, DASHBOARD, HEAD, MLFLOW, UNKNOWN, Answer


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(endpoints, "PATIENCE", 0.5)


def test_a_dashboard_says_its_version_and_whether_it_asks_for_a_token():
    with http_server(RAY) as port:
        assert endpoints.ask_dashboard(f"http://127.0.0.1:{port}", "abc") == Answer(DASHBOARD, "2.60.0", is_open=True)
    with http_server(RAY, secret="Bearer abc") as port:
        url = f"http://127.0.0.1:{port}"
        assert endpoints.ask_dashboard(url) == Answer(DASHBOARD, is_open=False)
        assert endpoints.ask_dashboard(url, "wrong") == Answer(DASHBOARD, is_open=False, is_accepted=False)
        assert endpoints.ask_dashboard(url, "abc") == Answer(DASHBOARD, "2.60.0", is_open=False, is_accepted=True)


def test_an_mlflow_says_its_version_and_whether_it_asks_for_a_password():
    secret = f"Basic {base64.b64encode(b'me:word').decode()}"
    with http_server(FLOW) as port:
        assert endpoints.ask_mlflow(f"http://127.0.0.1:{port}", secret) == Answer(MLFLOW, "3.17.2", is_open=True)
    with http_server(FLOW, secret=secret) as port:
        url = f"http://127.0.0.1:{port}"
        assert endpoints.ask_mlflow(url) == Answer(MLFLOW, is_open=False)
        assert endpoints.ask_mlflow(url, "Bearer no") == Answer(MLFLOW, is_open=False, is_accepted=False)
        assert endpoints.ask_mlflow(url, secret) == Answer(MLFLOW, "3.17.2", is_open=False, is_accepted=True)
    refused = {"/version": (200, "3.17.2"), "/api/2.0/mlflow/experiments/search": (403, "Invalid Host header")}
    with http_server(refused) as port:
        for given_secret in (None, secret):
            answer = endpoints.ask_mlflow(f"http://127.0.0.1:{port}", given_secret)
            assert answer.problem == "answers, but not as MLflow's server (HTTP status 403: Invalid Host header)"


@pytest.mark.parametrize("status", [401, 403, 302])
def test_a_proxy_before_mlflow_that_refuses_in_its_own_words_is_asked_with_the_password(status):
    pages = FLOW | {"401": (status, "<html>Authorization Required</html>")}
    with http_server(pages, secret="Basic xyz") as port:
        url = f"http://127.0.0.1:{port}"
        assert endpoints.ask_mlflow(url, "Basic xyz") == Answer(MLFLOW, "3.17.2", is_open=False, is_accepted=True)
        if status == 401:
            assert endpoints.ask_mlflow(url) == Answer(MLFLOW, is_open=False)
            assert endpoints.ask_mlflow(url, own_machine=True).kind == UNKNOWN  # of no named service


def test_a_question_without_a_secret_takes_none_from_netrc_or_the_address(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password word")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    received = list[str]()
    with http_server(FLOW, received=received) as port:
        assert endpoints.ask_mlflow(f"http://him:other@127.0.0.1:{port}").is_open
    assert set(received) == {""}


@pytest.mark.parametrize(("ask", "kind", "version"), [("ask_head", HEAD, "2.60.0"), ("ask_client", CLIENT, "")])
def test_a_head_and_ray_client_say_whether_they_ask_for_a_token(ask, kind, version):
    ask = getattr(endpoints, ask)
    with grpc_server(METHODS) as port:
        assert ask(f"127.0.0.1:{port}", "abc") == Answer(kind, version, is_open=True)
    with grpc_server(METHODS, token="abc") as port:
        assert ask(f"127.0.0.1:{port}") == Answer(kind, is_open=False)
        assert ask(f"127.0.0.1:{port}", "wrong") == Answer(kind, is_open=False, is_accepted=False)
        assert ask(f"127.0.0.1:{port}", "abc") == Answer(kind, version, is_open=False, is_accepted=True)


def test_other_programs_are_not_taken_for_ray_or_mlflow():
    page = {"/version": (200, "<html>login</html>"), "/api/2.0/mlflow/experiments/search": (200, "<html>login</html>")}
    with http_server(page) as port, grpc_server({"/other.Service/Call": b""}) as rpc:
        for answer in (
            endpoints.ask_mlflow(f"http://127.0.0.1:{port}"),
            endpoints.ask_dashboard(f"http://127.0.0.1:{port}"),
            endpoints.ask_head(f"127.0.0.1:{rpc}"),
        ):
            assert answer.kind == UNKNOWN and "answers, but not as" in answer.problem
        for answer in (
            endpoints.ask_head(f"127.0.0.1:{port}"),
            endpoints.ask_dashboard(f"http://127.0.0.1:{rpc}"),
            endpoints.ask_mlflow(f"http://127.0.0.1:{rpc}"),
        ):
            assert answer.kind == "" and answer.problem


def test_ports_that_refuse_or_never_answer_are_told_apart_and_cost_their_limit_once():
    free, began = free_port(), time.monotonic()
    with silent_server() as silent:
        questions = {
            (port, ask): lambda port=port, ask=ask: getattr(endpoints, ask)(
                f"{'http://' if ask in ('ask_dashboard', 'ask_mlflow') else ''}127.0.0.1:{port}"
            )
            for port in (free, silent)
            for ask in ("ask_dashboard", "ask_mlflow", "ask_head", "ask_client")
        }
        answers = endpoints.within(questions, 5)
    assert len(answers) == 8 and time.monotonic() - began < 5 + 1
    for (port, ask), answer in answers.items():
        assert answer.kind == "" and answer.is_open is None
        if port == silent:
            assert answer.problem == "no answer in 0.5 s"
        elif ask in ("ask_dashboard", "ask_mlflow"):
            assert answer.problem == "Connection refused"


def test_who_does_not_come_back_is_not_waited_for():
    began = time.monotonic()
    assert endpoints.within({"slow": lambda: time.sleep(60), "quick": lambda: 1}, 0.1) == {"quick": 1}
    assert time.monotonic() - began < 10


def test_a_question_that_fails_is_an_answer_and_no_traceback(capfd):
    answers = endpoints.within({"bad": lambda: int("http://me:word@host"), "good": lambda: 1})
    assert answers["good"] == 1 and "word" not in answers["bad"].problem
    assert answers["bad"].problem.startswith("invalid literal for int()") and capfd.readouterr() == ("", "")


def test_a_proxy_in_the_way_is_named(monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{(proxy := free_port())}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with http_server(FLOW) as port:
        answer = endpoints.ask_mlflow(f"http://127.0.0.1:{port}")
        assert answer.problem == f"Connection refused, through the proxy http://127.0.0.1:{proxy}"
        assert endpoints.ask_mlflow(f"http://127.0.0.1:{port}", own_machine=True).is_open


def test_what_this_machine_listens_on_is_found_with_its_address():
    with socket.create_server(("0.0.0.0", 0)) as all4, socket.create_server(("127.0.0.1", 0)) as local:
        ports = {each.getsockname()[1]: "" for each in (all4, local)}
        found = endpoints.listening(ports)
        assert sorted(found) == sorted(each.getsockname()[:2] for each in (all4, local))
    assert endpoints.listening({free_port(): ""}) == []


@given(st.ip_addresses())
def test_an_address_that_is_listened_on_is_reached_by_a_host_of_its_kind(address):
    host = endpoints.reachable(str(address))
    assert host.startswith("[") == (address.version == 6)
    assert host.strip("[]") == str(address) or (address.is_unspecified and host in ("127.0.0.1", "[::1]"))


def test_loopback_is_told_from_what_others_reach():
    assert all(map(endpoints.is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1")))
    assert not any(map(endpoints.is_loopback, ("0.0.0.0", "::", "10.0.0.7", "fe80::1%eth0", "::ffff:10.0.0.7")))
