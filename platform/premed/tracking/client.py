"""MLflow's client: its URIs, its errors, and what it accepts as names, text and numbers."""

import importlib.util
import logging
import math
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from premed.errors import UserError
from premed.paths import expand_path, home, sqlite_file, sqlite_url

if TYPE_CHECKING:
    from mlflow import MlflowClient

# By default MLflow waits four minutes for a dead server. No telemetry may leave a hospital.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # a server that forwards an upload is silent for as long as that takes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_CONNECT_SECONDS = 5
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

    for name in ("alembic", "mlflow.store.db.utils"):  # a new database logs every table
        logging.getLogger(name).setLevel(logging.WARNING)
    file = sqlite_file(uri)
    # if two processes create the tables of one file at once, MLflow (3.17) leaves a broken database
    with FileLock(f"{file}.lock") if file else nullcontext():
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    if file and (misread := Path(uri.removeprefix("sqlite:///")).parent) != file.parent:
        with suppress(OSError):  # MLflow (3.17) makes the folder of a quoted path as if it were not quoted
            misread.rmdir()
    return client


def connect_or_raise(uri: str) -> "MlflowClient":
    """Returns a client of the store at `uri`. Raises UserError, within seconds, if that does not answer."""
    where = f"MLFLOW_TRACKING_URI={masked(uri)}"
    try:
        if uri.startswith("http"):
            _reach(uri)
        client = connect(uri)
        client.search_experiments(max_results=1)
        return client
    except ImportError as error:
        raise UserError(f"{where} needs a package: pip install {error.name}") from error
    except Exception as error:
        code = getattr(error, "error_code", "")
        if code in ("PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"):
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            raise UserError(f"{where} denies access: {remedy}") from error
        if uri.startswith("http"):
            raise UserError(f"{where} does not answer: start it or unset the variable") from error
        reason = masked(str(error).strip().partition("\n")[0])
        raise UserError(f"{where} cannot be opened: {reason}") from error


def _reach(uri: str) -> None:
    """Opens and closes a connection: an unroutable address would block a request for much longer."""
    parts = urllib.parse.urlsplit(uri)
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()


def artifact_location(artifacts: str, experiment: str) -> str:
    """The folder of an experiment's files, below the folder or URI `artifacts`."""
    folder = re.sub(r"[^\w.-]+", "_", experiment)
    if "://" in artifacts:
        return f"{artifacts.rstrip('/')}/{folder}"
    return (Path(artifacts).absolute() / folder).as_uri()


def on_disk(uri: str, path: str) -> Path | None:
    """The file or folder `path` below an artifact URI, if it is on this machine's disk."""
    parts = urllib.parse.urlsplit(uri)
    local = Path(urllib.parse.unquote(parts.path)) / path
    return local if parts.scheme in ("file", "") and local.exists() else None


def masked(text: str) -> str:
    """`text` without the passwords of the URIs in it."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)


def transient(error: Exception) -> bool:
    """Whether the same call may succeed later: after an outage, or once someone has corrected a password."""
    if (response := getattr(error, "response", None)) is not None:  # requests.HTTPError: the answer to an upload
        return response.status_code in (401, 403, 408, 409, 429) or response.status_code >= 500
    if code := getattr(error, "error_code", None):  # MlflowException
        return code not in _REFUSED or lost_race(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return False
    return not isinstance(error, (TypeError, ValueError, LookupError, AttributeError, AssertionError))


def lost_race(error: Exception) -> bool:
    """Whether another client inserted the same row first: when called again, MLflow (3.17) finds that row.

    MLflow queries before it inserts; of two clients that log one dataset at once, one gets the error of a bad request.
    """
    return re.search("UniqueViolation|UNIQUE constraint|Duplicate entry", str(error)) is not None


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, with names joined by dots; mappings in a list are numbered."""
    for name, value in nested.items():
        if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            value = {str(number): each for number, each in enumerate(value)}
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def valid_name(name: str) -> str:
    """A name that MLflow accepts: a class may be called "Spleen (left)"."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]


def truncated(value: Any) -> str:
    """Text cut to 5000 characters, less than MLflow stores of a parameter (6000) and of a tag (8000)."""
    text = str(value)
    return text if len(text) <= 5000 else text[:4999] + "…"


def json_cell(value: Any) -> Any:
    """A table's cell in JSON: NumPy's numbers as Python's, undefined ones as null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """`items` in lists of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


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
