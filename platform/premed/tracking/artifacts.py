"""Where a run's artifacts are: a folder of this disk, also after its home was moved, or a server's."""

import re
import shlex
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from premed.errors import UserError

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository


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


def refuse_moved(uri: str, artifacts: str | None) -> None:
    """Raises UserError if the run's home was moved: MLflow would write a model where the home was before."""
    recorded, here = local_folder(uri, None), local_folder(uri, artifacts)
    if recorded and here and here != recorded:
        before, now = recorded.parents[2].parent, here.parents[2].parent
        link = shlex.join(["ln", "-s", str(now), str(before)])
        raise UserError(f"MLflow keeps models in {before}, from where this home was moved: {link}")


def repository(uri: str, artifacts: str | None, tracking_uri: str) -> "ArtifactRepository":
    """MLflow's repository of a run's artifacts, wherever they are."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    folder = local_folder(uri, artifacts)
    return get_artifact_repository(folder.as_uri() if folder else uri, tracking_uri=tracking_uri)
