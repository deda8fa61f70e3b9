"""Where state and data live: PREMED_HOME and PREMED_DATA."""

import os
from pathlib import Path

from premed.spec import UserError


def home() -> Path:
    """The folder of everything premed keeps: $PREMED_HOME, else ./.premed."""
    path = os.environ.get("PREMED_HOME")
    if not path and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise UserError(
            "PREMED_HOME is not set: a Ray job's working directory is thrown away; set it to a path outside"
        )
    return Path(path or ".premed").absolute()


def data_root(root: Path | None, folder: str) -> Path:
    """A data set's folder: `task.root`, or $PREMED_DATA/<folder>."""
    if root is None:
        data = os.environ.get("PREMED_DATA")
        if not data:
            raise UserError(f"task.root is not set: set it, or PREMED_DATA to the folder that holds {folder}/")
        root = Path(data) / folder
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: point task.root (or PREMED_DATA) at the data set")
    return root


def portable(path: Path) -> str:
    """`path` as a run records it, below ${PREMED_DATA}, so that no machine's paths are kept."""
    data = os.environ.get("PREMED_DATA")
    if data and path.absolute().is_relative_to(Path(data).absolute()):
        return str(Path("${PREMED_DATA}") / path.absolute().relative_to(Path(data).absolute()))
    return "${PREMED_DATA}/" + path.name
