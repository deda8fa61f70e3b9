"""The folders of state and data: PREMED_HOME and PREMED_DATA."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from premed.errors import UserError

UPLOADS = "working_dir_files"  # Ray unpacks a job's upload there, below its session's runtime_resources/
DATA = "${PREMED_DATA}"  # as written in YAMLs


def home() -> Path:
    """The folder of premed's state: $PREMED_HOME, else ./.premed.

    Raises UserError in a Ray job that would lose it. A job that tracks its runs on a server (MLFLOW_TRACKING_URI) does
    not need it: the rest of the folder can be rebuilt, except checkpoints, which `storage` checks.
    """
    path = os.environ.get("PREMED_HOME")
    if path:
        return persistent_path("PREMED_HOME", path)
    if in_job() and os.environ.get("MLFLOW_TRACKING_URI", "sqlite").startswith("sqlite"):
        raise UserError(
            "PREMED_HOME is not set: a Ray job's working directory is thrown away; set it to a path outside"
        )
    return Path(".premed").absolute()


def ensure_home() -> Path:
    """Creates the folder of `home` if it is missing, and returns it. Raises UserError if it cannot be written to."""
    try:
        home().mkdir(mode=0o700, parents=True, exist_ok=True)  # names and images are in there
    except OSError as error:
        message = f"PREMED_HOME: {home()} cannot be created ({error.strerror}); name a folder that you may write to"
        raise UserError(message) from None
    if reason := obstacle(home()):
        raise UserError(f"PREMED_HOME: {home()} {reason}; name a folder that you may write to")
    return home()


def settle_user_home() -> None:
    """Sets HOME where the user has none, as in a container whose user has no entry in /etc/passwd, to Docker's: `/`.

    MLflow, Ray and others refuse to start without; those that would write there write elsewhere, or not.
    """
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/"


def obstacle(folder: Path) -> str | None:
    """Why files cannot be written in a folder, or it cannot be created. Nothing is left there."""
    above = folder
    while not os.path.exists(above) and above != above.parent:
        above = above.parent
    try:
        with TemporaryFile(dir=above):
            return None
    except OSError as error:
        return f"cannot be {'written to' if above == folder else 'created'} ({error.strerror})"


@contextmanager
def writing(what: object, remedy: str = "name another file") -> Iterator[None]:
    """Raises UserError where a file that the user named cannot be written within the context.

    what: the file or folder, after its option where it has one. remedy: what to do.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror or error}); {remedy}") from None


def storage(where: str | None) -> str:
    """The place of checkpoints and results, a URL or an absolute path: `train.storage`, else $PREMED_HOME/checkpoints.

    Raises UserError in a Ray job that would lose them.
    """
    if where is not None:
        return where if "://" in where else str(persistent_path("train.storage", where))
    folder = home() / "checkpoints"
    if in_job() and not os.environ.get("PREMED_HOME"):
        raise UserError(
            "train.storage is not set, nor PREMED_HOME: a Ray job's working directory is thrown away; set one of them "
            "to a path outside"
        )
    return str(folder)


def in_job() -> bool:
    """Whether this process belongs to a Ray job, whose job manager sets this variable."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def persistent_path(name: str, where: str) -> Path:
    """Returns `where` as an absolute path. Raises UserError, which names the field, if it is in a Ray job's upload."""
    path = expand_path(where, name).absolute()
    if in_job() and UPLOADS in Path(os.path.normpath(path)).parts:
        raise UserError(f"{name}: {where} is in the Ray job's upload, which is thrown away; name a path outside")
    return path


def data_root(root: Path | None, folder: str) -> Path:
    """The folder of a data set: `task.root`, possibly as `portable_path` records it, or $PREMED_DATA/<folder>.

    Raises UserError if it is not a folder, or if it needs PREMED_DATA and that is not set.
    """
    path = f"{DATA}/{folder}" if root is None else str(root)
    if DATA in path and not os.environ.get("PREMED_DATA"):
        value = "not set" if root is None else path
        inside = path.removeprefix(f"{DATA}/")
        raise UserError(f"task.root is {value}: set it, or PREMED_DATA to the folder that holds {inside}/")
    root = expand_path(path, "task.root").absolute()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: point task.root (or PREMED_DATA) at the data set")
    return root


def expand_path(path: str | Path, field: str) -> Path:
    """Expands ~ and environment variables such as ${PREMED_DATA} in a path that a user wrote into `field`.

    Raises UserError for a variable that is not set and for an unknown user: the shell would have made the path another.
    """
    for name in re.findall(r"\$\{(\w+)\}|\$(\w+)", str(path)):
        if (variable := name[0] or name[1]) not in os.environ:
            raise UserError(f"{field}: {path} needs the variable {variable}; set it, or write the path")
    try:
        return Path(os.path.expandvars(path)).expanduser()
    except RuntimeError:
        raise UserError(f"{field}: {path} begins with a user that is not known here; write the path") from None


def sqlite_url(file: Path) -> str:
    """The URL by which SQLAlchemy, and so MLflow and Optuna, opens this SQLite file.

    Raises UserError if the path has a ?, % or # and the installed SQLAlchemy (before 2.1) cannot be told so.
    """
    if not any(sign in str(file) for sign in "%?#"):
        return f"sqlite:///{file}"
    quoted = f"sqlite:///{re.sub('[%?#]', lambda sign: f'%{ord(sign[0]):02X}', str(file))}"
    if sqlite_file(quoted) != file:
        raise UserError(f"{file}: a database's URL cannot hold the ?, % or # in it; name another folder")
    return quoted


def sqlite_file(url: str) -> Path | None:
    """The file of a URL sqlite:///…, as SQLAlchemy reads it; None if the URL names none."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        path = make_url(url).database if url.startswith("sqlite:///") else None
    except ArgumentError:
        path = None
    return Path(path) if path else None


def portable_path(path: Path) -> str:
    """`path` relative to ${PREMED_DATA}, as runs record it, so that they hold no paths of a machine."""
    data = os.environ.get("PREMED_DATA")
    if data and path.absolute().is_relative_to(base := Path(data).expanduser().absolute()):
        return str(Path(DATA) / path.absolute().relative_to(base))
    return f"{DATA}/{path.name}"
