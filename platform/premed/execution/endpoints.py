"""Asks a port what it is: Ray's dashboard, Ray's head, Ray Client or MLflow, of which version, and whether it wants a
token; and a database of MLflow whether it opens.

Each is asked the cheapest question that only its own kind answers, first without a secret and then with the given one,
which only a service that the environment names may see: any program can listen on a port. That changes nothing, and
neither Ray nor MLflow is imported, which would take seconds.
"""

import json
import re
import sqlite3
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil

from premed.errors import first_line
from premed.execution.connection import PATIENCE
from premed.tracking.client import certificates, masked

AGAIN = 0.5  # seconds before a call that found no connection is made once more
UNKNOWN = "another program"
DASHBOARD, HEAD, CLIENT, MLFLOW = "Ray's dashboard", "Ray's head", "Ray Client", "MLflow"


@dataclass(frozen=True)
class Answer:
    """What a port is."""

    kind: str
    """DASHBOARD, HEAD, CLIENT or MLFLOW; UNKNOWN for what answers otherwise; empty if nothing answers."""
    version: str = ""
    is_open: bool | None = None
    """Whether it answered without a token or password. None: not known."""
    is_accepted: bool | None = None
    """Whether it answered the given token or password. None: it was not asked with one."""
    problem: str = ""


def within(questions: Mapping[Any, Callable[[], Any]], seconds: float = PATIENCE) -> dict[Any, Any]:
    """The answers that came within so many seconds, side by side: a host's name alone may take longer to look up.

    The answer of a question that raises is an Answer with that problem.
    """
    answers: dict[Any, Any] = {}

    def ask(key: Any, question: Callable[[], Any]) -> None:
        try:
            answers[key] = question()
        except Exception as error:  # noqa: BLE001 - one question's failure is no other's, and no traceback
            answers[key] = Answer("", problem=masked(first_line(error)))

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in questions.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds + 1  # each question has its own limit, and a moment to say so
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(answers)


def late() -> Answer:
    return Answer("", problem=f"no answer in {PATIENCE:g} s")


# ---- HTTP


def ask_dashboard(url: str, token: str | None = None, own_machine: bool = False) -> Answer:
    """url: http://HOST:8265. token: what it is asked with if it wants one. own_machine: proxies are left out."""
    open_answer = get(f"{url}/api/version", own_machine=own_machine)
    if open_answer.problem:
        return Answer("", problem=open_answer.problem)
    if version := open_answer.json.get("ray_version"):
        return Answer(DASHBOARD, version, is_open=True)
    if open_answer.status != 401 or "authentication token" not in open_answer.text:
        return Answer(UNKNOWN, problem=f"answers, but not as Ray's dashboard (HTTP status {open_answer.status})")
    if token is None:
        return Answer(DASHBOARD, is_open=False)
    reply = get(f"{url}/api/version", f"Bearer {token}", own_machine)
    return Answer(DASHBOARD, reply.json.get("ray_version", ""), is_open=False, is_accepted=reply.status == 200)


def ask_mlflow(url: str, secret: str | None = None, own_machine: bool = False) -> Answer:
    """url: a tracking URI, http(s)://…. secret: the header that it is asked with if it refuses (`client.credentials`).
    own_machine: whether proxies are left out, and what refuses without a word of MLflow is another program.

    A proxy before MLflow may refuse in its own words, and by another status than 401.
    """
    tls = {} if own_machine else certificates()
    search = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
    reply = get(search, "", own_machine, **tls)
    if reply.problem:
        return Answer("", problem=reply.problem)
    asks, accepted = reply.status == 401 and (not own_machine or "mlflow" in reply.text.lower()), None
    if reply.status != 200 and secret:
        again = get(search, secret, own_machine, **tls)
        accepted = again.status == 200
        asks, reply = asks or accepted, again if accepted else reply
    version = mlflow_version(url, secret or "" if asks else "", own_machine, **tls)
    if reply.status == 200 and (version or "experiments" in reply.json):
        return Answer(MLFLOW, version, is_open=not asks, is_accepted=accepted)
    if asks and not accepted:
        return Answer(MLFLOW, version, is_open=False, is_accepted=accepted)
    first_line = reply.text.strip().splitlines()[:1] if version else []  # as "Invalid Host header - …"
    reason = ": ".join([f"HTTP status {reply.status}", *first_line])
    return Answer(MLFLOW if version else UNKNOWN, version, problem=f"answers, but not as MLflow's server ({reason})")


def mlflow_version(url: str, secret: str, own_machine: bool, **tls: Any) -> str:
    """The version of an MLflow server; empty if it does not say."""
    version = get(f"{url}/version", secret, own_machine, **tls).text.strip()
    return version if re.fullmatch(r"\d+\.\d+\.\S+", version) else ""


@dataclass(frozen=True)
class Page:
    """What came back for a URL: a status and a text, or a problem."""

    status: int = 0
    text: str = ""
    problem: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """The text's JSON object; empty if it is none."""
        try:
            value = json.loads(self.text)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {"": value}


def get(url: str, authorization: str = "", own_machine: bool = False, **tls: Any) -> Page:
    """The answer to a GET, of any status, without following redirects (to a login, say).

    By the library that Ray's and MLflow's clients use, so that proxies and certificates are theirs. Nothing but
    `authorization` is sent as a secret. tls: `verify` and `cert` of requests.
    """
    import requests

    with requests.Session() as session:
        session.trust_env = not own_machine
        session.auth = lambda request: request  # else requests takes a password from ~/.netrc or the URL
        session.headers.update({"Authorization": authorization} if authorization else {})
        try:
            with session.get(url, timeout=PATIENCE, allow_redirects=False, stream=True, **tls) as answer:
                text = next(answer.iter_content(100_000), b"")
            return Page(answer.status_code, text.decode(errors="replace"))
        except requests.Timeout:
            return Page(problem=late().problem + through_proxy(url, own_machine))
        except requests.RequestException as error:
            return Page(problem=reason(str(error)) + through_proxy(url, own_machine))


def reason(text: str) -> str:
    """The innermost reason in an error of requests, which are nested."""
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)|(certificate verify failed: [\w -]+)", text)
    if found:
        return (found[1] or found[2]).strip()
    return "speaks no HTTP" if re.search("BadStatusLine|Connection aborted|ProtocolError", text) else text[-200:]


def through_proxy(url: str, own_machine: bool) -> str:
    """The proxy that stands between, for a message; empty if none."""
    parts = urllib.parse.urlsplit(url)
    if own_machine or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    return f", through the proxy {masked(proxy)}" if proxy else ""


# ---- gRPC

CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive", b""
PING = "/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06"  # ClusterInfoRequest(type=PING)


def ask_head(address: str, token: str | None = None) -> Answer:
    """address: HOST:6379, the port of Ray's GCS. token: what it is asked with if it wants one."""
    return ask_grpc(HEAD, address, token, *CHECK_ALIVE)


def ask_client(address: str, token: str | None = None) -> Answer:
    """address: HOST:10001, the port of Ray Client's server. token: what it is asked with if it wants one."""
    return ask_grpc(CLIENT, address, token, *PING)


def ask_grpc(kind: str, address: str, token: str | None, method: str, request: bytes) -> Answer:
    status, reply = call(address, method, request)
    if status == "UNAUTHENTICATED":
        if token is None:
            return Answer(kind, is_open=False)
        status, reply = call(address, method, request, token)
        return Answer(kind, ray_version(reply), is_open=False, is_accepted=status == "OK")
    if status == "OK":
        return Answer(kind, ray_version(reply), is_open=True)
    if status == "UNIMPLEMENTED":
        return Answer(UNKNOWN, problem=f"answers, but not as {kind}")
    return Answer("", problem=late().problem if status == "DEADLINE_EXCEEDED" else f"does not speak as {kind} does")


def call(address: str, method: str, request: bytes, token: str = "") -> tuple[str, bytes]:
    """The name of gRPC's status, and the reply where it is OK.

    A call that finds no connection is made once more: a lost one looks like a program of another kind.
    """
    status, reply = call_once(address, method, request, token)
    if status == "UNAVAILABLE":
        time.sleep(AGAIN)
        status, reply = call_once(address, method, request, token)
    return status, reply


def call_once(address: str, method: str, request: bytes, token: str) -> tuple[str, bytes]:
    import grpc

    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            return "OK", channel.unary_unary(method)(request, timeout=PATIENCE, metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name, b""  # type: ignore[attr-defined] - every error of a call has one


def ray_version(reply: bytes) -> str:
    """Ray's version in a CheckAliveReply: field 2, a string, in protobuf a tag (0x12), the length and the text."""
    found = re.search(rb"\x12(.)(\d+\.\d+\.[\w.+-]*)", reply, re.DOTALL)
    return found[2][: found[1][0]].decode() if found else ""


# ---- databases


def ask_file(file: Path) -> Answer:
    """Whether MLflow's SQLite file can be read."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=PATIENCE / 2)) as base:
            base.execute("SELECT version_num FROM alembic_version").fetchone()
        return Answer(MLFLOW, is_accepted=True)
    except sqlite3.Error as error:
        return Answer("", problem=f"cannot be read ({error}); restore it, or name another PREMED_HOME")


def ask_database(uri: str) -> Answer:
    """Whether a PostgreSQL answers, and takes the password."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(uri, connect_args={"connect_timeout": int(PATIENCE)})
        with engine.connect():
            return Answer(MLFLOW, is_accepted=True)
    except SQLAlchemyError as error:
        reason = masked(str(getattr(error, "orig", None) or error).strip().partition("\n")[0])
        return Answer("", problem=f"cannot be opened ({reason}); start it, or correct the address and the password")


# ---- this machine's ports


def listening(ports: Mapping[int, str]) -> list[tuple[str, int]]:
    """(address, port) of those of the ports that some process of this machine listens on."""
    found = {
        (each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)
        for each in psutil.net_connections("tcp")
        if each.laddr and each.status == psutil.CONN_LISTEN and each.laddr.port in ports
    }
    return sorted(found, key=lambda each: (each[1], each[0]))


def is_loopback(address: str) -> bool:
    """True also for what is not an IP address: over a hardware address alone no other machine is reached."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return True
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def reachable(address: str) -> str:
    """The host by which this machine reaches an address that it listens on."""
    plain = ip_address(address.partition("%")[0])
    if plain.is_unspecified:
        return "127.0.0.1" if plain.version == 4 else "[::1]"
    return address if plain.version == 4 else f"[{address}]"
