"""Where a run's artifacts are: a folder of this disk, also after its home was moved, or a server's."""

import re
import shutil
import urllib.parse
from pathlib import Path

from premed.errors import UserError


class ArtifactMissing(UserError):
    """A run's file is gone, or cannot be read, while the store itself answers."""


def artifact_location(artifacts: str, experiment: str) -> str:
    """The folder of an experiment's files, below the folder or URI `artifacts`."""
    folder = re.sub(r"[^\w.-]+", "_", experiment)
    if "://" in artifacts:
        return f"{artifacts.rstrip('/')}/{folder}"
    return (Path(artifacts).absolute() / folder).as_uri()


def local_folder(uri: str, artifacts: str | None) -> Path | None:
    """The folder of a run's artifacts, if they are on this machine's disk, whether it exists or not.

    uri: as the run has it. artifacts: the store's folder of artifacts. MLflow keeps absolute paths: if a home was
    moved, what `uri` names is looked for in `artifacts`, at <experiment>/<run>/artifacts.
    """
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("file", ""):
        return None
    recorded = Path(urllib.parse.unquote(parts.path))
    if artifacts is None or "://" in artifacts or recorded.exists() or len(recorded.parts) < 5:
        return recorded
    moved = Path(artifacts, *recorded.parts[-3:])
    return moved if moved.exists() or not recorded.parents[2].exists() else recorded


def copy_into(source: Path, folder: Path) -> Path:
    """Copies a file, or all files of a folder, into `folder`, created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        return Path(shutil.copytree(source, folder, dirs_exist_ok=True))
    return Path(shutil.copy(source, folder))
