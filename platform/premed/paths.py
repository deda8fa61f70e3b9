"""Where state and data live: PREMED_HOME and PREMED_DATA."""

import os
from pathlib import Path

from premed.errors import UserError

UPLOADS = "working_dir_files"  # where Ray unpacks what came with a job, below its session's runtime_resources/
DATA = "${PREMED_DATA}"  # as YAMLs write it


def home() -> Path:
    """The folder of everything premed keeps: $PREMED_HOME, else ./.premed.

    UserError where a Ray job would lose it. One whose runs go to a server (MLFLOW_TRACKING_URI) may do without: what is
    then kept here can be made again (`storage` asks for the rest).
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
    """The same, made where it is not there. UserError where it cannot be."""
    try:
        home().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = f"PREMED_HOME: {home()} cannot be made ({error.strerror}); name a folder you may write"
        raise UserError(told) from None
    return home()


def storage(where: str | None) -> str:
    """Where checkpoints and results go, as a URL or an absolute path: `train.storage`, else $PREMED_HOME/checkpoints.

    UserError where a Ray job would lose them.
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
    """Whether this process is a Ray job's: its job manager says so by this variable."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def persistent_path(name: str, where: str) -> Path:
    """`where` as an absolute path; UserError, naming the field, where that is in a Ray job's upload."""
    path = Path(where).absolute()
    if in_job() and UPLOADS in Path(os.path.normpath(path)).parts:
        raise UserError(f"{name}: {where} is in the Ray job's upload, which is thrown away; name a path outside")
    return path


def data_root(root: Path | None, folder: str) -> Path:
    """A data set's folder: `task.root`, which a run records as `portable` has it, or $PREMED_DATA/<folder>."""
    wanted = f"{DATA}/{folder}" if root is None else str(root)
    if DATA in wanted and not os.environ.get("PREMED_DATA"):
        said = "not set" if root is None else wanted
        inside = wanted.removeprefix(f"{DATA}/")
        raise UserError(f"task.root is {said}: set it, or PREMED_DATA to the folder that holds {inside}/")
    root = expand_path(Path(wanted)).absolute()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: point task.root (or PREMED_DATA) at the data set")
    return root


def expand_path(path: Path) -> Path:
    """A path that a YAML names, which may have ~ and ${PREMED_DATA}, or another such variable, in it."""
    return Path(os.path.expandvars(path)).expanduser()


def portable_path(path: Path) -> str:
    """`path` as a run records it, below ${PREMED_DATA}, so that no machine's paths are kept."""
    data = os.environ.get("PREMED_DATA")
    if data and path.absolute().is_relative_to(Path(data).absolute()):
        return str(Path(DATA) / path.absolute().relative_to(Path(data).absolute()))
    return f"{DATA}/{path.name}"
