"""Joins the Ray cluster at RAY_ADDRESS, or starts one on this machine. What Ray says of a mistake is one line here."""

import logging
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import premed
from premed.errors import UserError
from premed.paths import obstacle

PATIENCE = 10  # seconds in which a cluster's head must accept a connection; Ray by itself tries for many minutes
LONGEST_SOCKET = 107  # bytes, Linux' limit for the path of a socket
SOCKET = "/ray/session_2026-11-28_12-00-00_000000_4194304/sockets/plasma_store"  # of Ray, below its folder
TOKEN_REMEDY = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to its token's file"

CODE = Path(premed.__file__).parents[1]
"""The folder that premed is imported from."""
MALLOC = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""glibc's settings for workers that train on CPUs, read when a process starts. Ray Train trains in a thread, and what a
thread frees of its own arena goes back to the kernel, whatever `keep_freed_memory` says: the main arena serves all, in
huge pages. A step of UNETR had 300,000 page faults without these."""

# read when Ray is imported: a thread that outlives the command's Ray would start another one by its next call
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")


def connect() -> None:
    """Connects this process to Ray. Raises UserError, within seconds, that names the variable that is wrong."""
    address = cluster_address()
    refuse_missing_token()
    if address == "local":
        refuse_unfit_folder()
        refuse_no_loopback()
        provide_token()
        stay_on_loopback()
    else:
        knock(address)
    import ray

    # otherwise Ray warns of more processes than CPUs, and most of ours only wait
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "32")
    # a Ray of the command's own ends with it: nobody looks at its dashboard, whose processes take seconds to start
    dashboard = False if address == "local" else None
    try:
        with own_signals(), malloc_of_workers():
            ray.init(
                address=address,
                job_config=job_config(),
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=dashboard,
            )
    except Exception as error:
        raise explained(error, address) from error


def job_config() -> Any:
    """A Ray job whose workers import nothing from the folder where the command was started, unless premed lies there.

    Ray puts that folder before Python's own, so that a statistics.py of the user's ended the tracker, and a random.py
    would be used without a word. None, which is Ray's own way, for a job that `premed submit` sent, with its folder.
    """
    from ray.job_config import JobConfig

    is_sent = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if is_sent or os.environ.get("RAY_ADDRESS", "").startswith("ray://") or Path.cwd() == CODE:
        return None
    return JobConfig(_client_job=True)  # all that this changes for a job without a runtime environment


@contextmanager
def malloc_of_workers() -> Iterator[None]:
    """Processes that start meanwhile have MALLOC, but for what the user set. This process stays as it is."""
    added = {name: value for name, value in MALLOC.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


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
    if not asks_for_token() or ray_token():
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    where = f"RAY_AUTH_TOKEN_PATH={named}" if named else f"RAY_AUTH_MODE=token: {token_file()}"
    remedy = "run `ray get-auth-token --generate`, or set RAY_AUTH_TOKEN_PATH to the cluster's token"
    raise UserError(f"{where} holds no token; {remedy}")


def asks_for_token() -> bool:
    """Whether RAY_AUTH_MODE has Ray send a token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def sent_token() -> str | None:
    """The token that Ray sends to the cluster that RAY_ADDRESS names: without RAY_AUTH_MODE=token none, though there
    may be one."""
    return ray_token() if asks_for_token() else None


def token_file() -> Path:
    """Where Ray looks for the token, unless RAY_AUTH_TOKEN holds it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))


def ray_token() -> str | None:
    """The token by which Ray in this environment identifies itself; None if there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    try:
        return token_file().read_text().strip() or None
    except (OSError, ValueError):  # no such file, or it is no text
        return None


def provide_token() -> None:
    """Gives a Ray of this command's own a token, which only this user may read, unless RAY_AUTH_MODE is set.

    Ray itself would write a file that everybody may read. One that it wrote earlier is closed; a file that
    RAY_AUTH_TOKEN_PATH names stays as it is. A home that may not be written to gets none.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    file = token_file()  # where there is one, Ray requires it
    if ray_token() is None and obstacle(file.parent):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif ray_token() is None:
        with suppress(FileExistsError):  # another command was faster; or the file is empty
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
                opened.write(secrets.token_hex(32))
        if ray_token() is None:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif "RAY_AUTH_TOKEN_PATH" not in os.environ:
        with suppress(OSError):  # no such file: RAY_AUTH_TOKEN holds it; or another user's
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)


def stay_on_loopback() -> None:
    """Has a Ray of this command's own listen on 127.0.0.1 alone: by itself, seven of its ports are on every interface,
    and its pages of metrics ask for no token.

    This is how Ray starts on Windows and macOS. Read when Ray is imported.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def temporary_folder() -> tuple[str, str]:
    """The variable that says where Ray has its sessions, and the folder in which it makes its own, `ray`."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if folder := os.environ.get(name):
            return name, folder
    return "RAY_TMPDIR", "/tmp"


def refuse_unfit_folder() -> None:
    """Raises UserError if Ray's temporary folder cannot hold a session: its sockets' paths may have 107 bytes.

    A folder called ray that belongs to another user is one that cannot: /tmp/ray where somebody else's Ray has run.
    """
    name, folder = temporary_folder()
    where = f"{name}={folder}" if os.environ.get(name) else folder
    longest = LONGEST_SOCKET - len(SOCKET)
    remedy = "set RAY_TMPDIR to a folder" if name == "TMPDIR" else "name a folder"
    if len(os.fsencode(folder)) > longest:
        raise UserError(f"{where} is too long for Ray's sockets; {remedy} of at most {longest} bytes")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{where} cannot be created ({error.strerror}); {remedy} that you may write to") from None
    own = Path(folder) / "ray"
    if not os.access(own if own.is_dir() else folder, os.W_OK | os.X_OK):
        if own.is_dir():
            raise UserError(f"{own} may not be written to; set RAY_TMPDIR to a folder of your own, as /tmp/ray-$USER")
        raise UserError(f"{where} may not be written to; {remedy} that you may write to")


def refuse_no_loopback() -> None:
    """Raises UserError on a machine without 127.0.0.1, over which Ray's processes speak: Ray would wait for minutes."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=PATIENCE).close()
    except OSError as error:
        remedy = "bring it up (`ip link set lo up`), or set train.workers=0, which needs no Ray"
        raise UserError(f"127.0.0.1 cannot be reached ({error.strerror or 'no answer'}): {remedy}") from None


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
