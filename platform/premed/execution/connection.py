"""Joins the Ray cluster at RAY_ADDRESS, or starts one on this machine. What Ray says of a mistake is one line here."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from premed.errors import UserError

PATIENCE = 10  # seconds in which a cluster's head must accept a connection; Ray by itself tries for many minutes
LONGEST_SOCKET = 107  # bytes, Linux' limit for the path of a socket
SOCKET = "/ray/session_2026-11-28_12-00-00_000000_4194304/sockets/plasma_store"  # of Ray, below its folder
TOKEN_REMEDY = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to its token's file"

# read when Ray is imported: a thread that outlives the command's Ray would start another one by its next call
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")


def connect() -> None:
    """Connects this process to Ray. Raises UserError, within seconds, that names the variable that is wrong."""
    address = cluster_address()
    refuse_missing_token()
    if address == "local":
        refuse_unfit_folder()
    else:
        knock(address)
    import ray

    # otherwise Ray warns of more processes than CPUs, and most of ours only wait
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "32")
    try:
        with own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise explained(error, address) from error


def cluster_address() -> str:
    """RAY_ADDRESS as `ray.init` takes it; without it `local`: never a cluster that happens to run on this machine.

    Raises UserError for what is no address of a cluster.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return "local"
    if address == "auto":
        return address
    if re.match(r"https?://", address):
        raise UserError(
            f"RAY_ADDRESS={address} is a dashboard's, to which `premed submit` sends jobs; unset it to run on this "
            "machine, or name the head as HOST:6379"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"RAY_ADDRESS={address} is no address of a cluster: write HOST:PORT, as in 10.0.0.7:6379")
    return address


def knock(address: str) -> None:
    """Opens and closes a connection to the head. Raises UserError if none is made within PATIENCE seconds."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except socket.gaierror:
        raise UserError(f"RAY_ADDRESS={address}: there is no host {host}; fix it, or unset the variable") from None
    except OSError as error:
        reason = error.strerror or f"no answer in {PATIENCE} s"
        raise UserError(
            f"RAY_ADDRESS={address} does not answer ({reason}): start that cluster or unset the variable"
        ) from None


def refuse_missing_token() -> None:
    """Raises UserError if RAY_AUTH_MODE asks for a token and none is found where Ray looks for it."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named or "~/.ray/auth_token").expanduser()
    try:
        found = bool(file.read_text().strip())
    except OSError:
        found = False
    if not found:
        where = f"RAY_AUTH_TOKEN_PATH={named}" if named else f"RAY_AUTH_MODE=token: {file}"
        remedy = "run `ray get-auth-token --generate`, or set RAY_AUTH_TOKEN_PATH to the cluster's token"
        raise UserError(f"{where} holds no token; {remedy}")


def refuse_unfit_folder() -> None:
    """Raises UserError if RAY_TMPDIR cannot hold a session: its sockets' paths may have 107 bytes."""
    if not (folder := os.environ.get("RAY_TMPDIR")):
        return
    longest = LONGEST_SOCKET - len(SOCKET)
    if len(os.fsencode(folder)) > longest:
        raise UserError(f"RAY_TMPDIR={folder} is too long for Ray's sockets; name a folder of at most {longest} bytes")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"RAY_TMPDIR={folder} cannot be created ({error.strerror}); name another folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"RAY_TMPDIR={folder} may not be written to; name another folder")


def explained(error: Exception, address: str) -> UserError:
    """One line for whatever `ray.init` raised."""
    where = "Ray on this machine" if address == "local" else f"RAY_ADDRESS={address}"
    chain = f"{error} {error.__cause__} {error.__context__}"
    if "InvalidAuthToken" in chain or "AuthenticationError" in type(error).__name__:
        return UserError(f"{where} requires a token: {TOKEN_REMEDY}")
    if isinstance(error, (ConnectionError, TimeoutError)) and address != "local":
        return UserError(f"{where} does not answer: start that cluster or unset the variable")
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")
    settings = ", ".join(sorted(name for name in os.environ if name.startswith("RAY_") and name != "RAY_ADDRESS"))
    remedy = f"check {settings}" if settings else "try `ray start --head`"
    return UserError(f"{where} could not be used ({reason}); {remedy}")


@contextmanager
def own_signals() -> Iterator[None]:
    """Restores the handlers of Ctrl-C and SIGTERM, which Ray replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
