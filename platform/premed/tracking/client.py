"""MLflow's client: its URIs, its errors, and what it shows a server."""

import base64
import configparser
import importlib.util
import logging
import math
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from premed.errors import UserError, first_line
from premed.paths import expand_path, home, sqlite_file, sqlite_url
from premed.tracking import database

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CONNECT_SECONDS, _ANSWER_SECONDS = 5, 10
# By default MLflow waits four minutes for a dead server. No telemetry may leave a hospital.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # a server that forwards an upload is silent for as long as that takes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PGCONNECT_TIMEOUT": str(_ANSWER_SECONDS),  # libpq's: by itself it waits without end for a PostgreSQL that hangs
}
LONGEST_REQUEST = "2 minutes"
"""What a request that is tried twice may take."""
_QUESTION = "/api/2.0/mlflow/experiments/search?max_results=1"
POSTGRES = ("postgresql", "postgres")
_REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "NOT_IMPLEMENTED"}
_REFUSED |= {"RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}


def resolve_uri(uri: str) -> tuple[str, Path | None]:
    """Returns the URI in a form that any process can use, and, if it is a file, its folder, created if missing.

    Raises UserError for URIs that MLflow no longer supports or that lack a driver.
    """
    scheme = uri.partition(":")[0]
    if scheme == "sqlite":
        path = sqlite_file(uri)
        path = path and expand_path(path, "MLFLOW_TRACKING_URI").absolute()
        if path is None or path.is_dir():
            raise UserError(f"MLFLOW_TRACKING_URI={uri} names no file: write sqlite:///path/to/mlflow.db")
        path.parent.mkdir(parents=True, exist_ok=True)
        return sqlite_url(path), path.parent
    if scheme in POSTGRES:
        return with_driver(uri, "MLFLOW_TRACKING_URI="), None
    if scheme == "file" or "://" not in uri and scheme != "databricks":
        folder = urllib.parse.unquote(urllib.parse.urlsplit(uri).path) if scheme == "file" else uri
        remedy = sqlite_url(expand_path(folder, "MLFLOW_TRACKING_URI").absolute() / "mlflow.db")
        raise UserError(f"MLFLOW_TRACKING_URI={uri} is a folder, which MLflow no longer supports: write {remedy}")
    return uri.rstrip("/"), None


def with_driver(url: str, field: str) -> str:
    """Returns a database's URL with the installed driver: for a bare postgresql:// SQLAlchemy takes psycopg2 only.

    Raises UserError, beginning with `field`, if none is installed.
    """
    scheme, _, rest = url.partition(":")
    if scheme not in POSTGRES:
        return url
    drivers = [name for name in ("psycopg2", "psycopg") if importlib.util.find_spec(name)]
    if not drivers:
        raise UserError(f"{field}{masked(url)} needs a driver: pip install psycopg2-binary")
    return f"postgresql+{drivers[0]}:{rest}"


def connect(uri: str) -> "MlflowClient":
    """Returns a client of the store at `uri`. Creates the tables of a database; sends nothing to an MLflow server."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)  # a new database logs every table
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback per error, which is raised, too
    file = sqlite_file(uri)
    # if two processes create the tables of one file at once, MLflow (3.17) leaves a broken database
    with only_creator(file) if file else nullcontext():
        if file and not file.exists():
            database.create(file)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    if file and (misread := Path(uri.removeprefix("sqlite:///")).parent) != file.parent:
        with suppress(OSError):  # MLflow (3.17) makes the folder of a quoted path as if it were not quoted
            misread.rmdir()
    return client


@contextmanager
def only_creator(file: Path) -> Iterator[None]:
    """Keeps other processes from creating this database meanwhile.

    One that is there already may be read without: its folder, or the lock, may be somebody else's or read-only.
    """
    lock = FileLock(f"{file}.lock")
    try:
        lock.acquire()
    except OSError:
        if not file.exists():
            raise
    try:
        yield
    finally:
        lock.release()


def connect_or_raise(uri: str) -> "MlflowClient":
    """Returns a client of the store at `uri`. Raises UserError, within seconds, if that does not answer."""
    where = f"MLFLOW_TRACKING_URI={masked(uri)}"
    try:
        reach(uri)
        if file := sqlite_file(uri):
            database.wait_unlocked(file)
        client = connect(uri)
        client.search_experiments(max_results=1)
        return client
    except UserError:
        raise
    except Silent as error:
        raise UserError(f"{where} does not answer ({error}): restart it or unset the variable") from None
    except ImportError as error:
        raise UserError(f"{where} needs a package: pip install {error.name}") from error
    except Exception as error:
        code = getattr(error, "error_code", "")
        if code in ("PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"):
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            raise UserError(f"{where} denies access: {remedy}") from error
        if uri.startswith("http"):
            raise UserError(f"{where} does not answer: start it or unset the variable") from error
        if reason := database.diagnosis(error, uri):
            raise UserError(reason) from error
        reason = masked(str(error).strip().partition("\n")[0])
        raise UserError(f"{where} cannot be opened: {reason}") from error


class Silent(ConnectionError):
    """A server took the connection and did not answer."""


def reach(uri: str, seconds: float = _ANSWER_SECONDS) -> None:
    """Has any answer within so many seconds: MLflow's own requests would wait minutes for a server that is silent.

    Asks MLflow's server, or a PostgreSQL that is used without one, which MLflow would try ten times in 100 seconds.
    An unroutable address is found first, by a connection without a request. Any status is an answer. The question is
    one for which the server must ask its database: /health answers also where that hangs. Raises OSError.
    """
    if uri.startswith(POSTGRES):
        _log_in(uri, seconds)
    if not uri.startswith("http"):
        return
    parts = urllib.parse.urlsplit(uri)
    host = parts.hostname or ""
    if parts.scheme not in urllib.request.getproxies() or urllib.request.proxy_bypass(host):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    import requests

    header = credentials(uri)
    options: dict[str, Any] = certificates() | {"headers": {"Authorization": header} if header else {}}
    try:
        requests.get(uri + _QUESTION, timeout=(_CONNECT_SECONDS, seconds), allow_redirects=False, **options)
    except requests.Timeout:
        raise Silent(f"it accepts connections, and sent no answer for {seconds:g} s") from None


def _log_in(uri: str, seconds: float) -> None:
    """Connects to a PostgreSQL once. Raises OSError if that fails."""
    import sqlalchemy
    from sqlalchemy.exc import OperationalError

    engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": math.ceil(seconds)})
    try:
        engine.connect().close()
    except OperationalError as error:
        if re.search("timeout|timed out", str(error)):
            raise Silent(f"it accepts connections, and sent no answer for {seconds:g} s") from None
        raise ConnectionError(f"{error.orig}".strip().partition("\n")[0]) from None
    finally:
        engine.dispose()


def certificates() -> dict[str, Any]:
    """By which certificates MLflow's client knows a server, and which one it shows: `verify` and `cert` of requests.

    Raises UserError for variables that MLflow refuses, and for files that are not there.
    """
    trusted, own = "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH"
    for name in (trusted, own):
        if (path := os.environ.get(name)) and not os.path.exists(path):
            raise UserError(f"{name}={path}: is not there; correct or unset the variable")
    verify: str | bool = os.environ.get(trusted) or True
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        if verify is not True:
            raise UserError(f"MLFLOW_TRACKING_INSECURE_TLS: does not go with {trusted}; unset one of them")
        verify = False
    return {"verify": verify, "cert": os.environ.get(own) or None}


def credentials(uri: str) -> str | None:
    """The header (Authorization) that MLflow's client sends to a server: a password or a token; None if there is none.

    As MLflow (3.17) looks for them, without importing it, and as requests puts others in their place: ~/.netrc before
    the password in the URI, that before the environment, that before ~/.mlflow/credentials.
    """
    from requests.utils import get_auth_from_url, get_netrc_auth

    for user, password in (get_netrc_auth(uri) or ("", ""), get_auth_from_url(uri)):
        if user or password:
            return _basic(user, password, "latin-1")
    file = configparser.ConfigParser()
    file.read(os.path.expanduser("~/.mlflow/credentials"))
    user, password = (
        os.environ.get(name) or file.get("mlflow", name.lower(), fallback=None)
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    )
    if user and password:
        return _basic(user, password, "utf-8")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return f"Bearer {token}" if token else None


def _basic(user: str, password: str, encoding: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode(encoding)).decode()}"


def masked(text: str) -> str:
    """`text` without the passwords of the URIs in it."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)


def transient(error: Exception) -> bool:
    """Whether the same call may succeed later: after an outage, or once someone has corrected a password."""
    if (response := getattr(error, "response", None)) is not None:  # requests.HTTPError: the answer to an upload
        return response.status_code in (401, 403, 408, 409, 429) or response.status_code >= 500
    if code := getattr(
        error, "error_code", None
    ):  # MlflowException; of a damaged file it has the code of a bad request
        return code not in _REFUSED or lost_race(error) or database.is_lasting(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return False
    return not isinstance(error, (TypeError, ValueError, LookupError, AttributeError, AssertionError))


def unreachable(error: BaseException, uri: str) -> str:
    """Why MLflow cannot be used now, in one line."""
    reason = database.diagnosis(error, uri)
    return reason or f"MLflow does not answer ({masked(first_line(error))[:200]})"


def is_deleted(error: BaseException) -> bool:
    """Whether MLflow refused a call because its run was deleted, in the UI say."""
    return "must be in the 'active' state" in str(error) and "deleted" in str(error)


def is_unknown(error: BaseException) -> bool:
    """Whether MLflow refused a call because it has no such run, not even a deleted one."""
    return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"


def lost_race(error: Exception) -> bool:
    """Whether another client inserted the same row first: when called again, MLflow (3.17) finds that row.

    MLflow queries before it inserts; of two clients that log one dataset at once, one gets the error of a bad request.
    """
    return re.search("UniqueViolation|UNIQUE constraint|Duplicate entry", str(error)) is not None


def locate_store() -> tuple[str, str | None]:
    """Returns the tracking URI, MLFLOW_TRACKING_URI or else `mlflow.db` in PREMED_HOME, and the folder of its artifacts
    (None: a server decides)."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(home() / "mlflow.db")
    return uri, str(home() / "artifacts") if uri.startswith("sqlite") else None


def require_store() -> tuple[str, str | None]:
    """The same as `locate_store`. Raises UserError if it is a file that does not exist yet."""
    uri, artifacts = locate_store()
    file = sqlite_file(uri)
    if file and not (file := expand_path(file, "MLFLOW_TRACKING_URI").absolute()).is_file():
        raise UserError(f"{file} does not exist yet: run an experiment first, or set PREMED_HOME")
    return uri, artifacts
