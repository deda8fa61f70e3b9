"""Where `premed init` reads and writes: settled, or refused, before anything heavy is imported."""

import os
import re
from pathlib import Path

from premed.errors import UserError


def settle(folder: Path, out: Path | None) -> tuple[Path, Path]:
    """Returns the folder of images as an absolute path, and the YAML's. Raises UserError if either cannot be.

    out: None: named after the folder, in the current one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the one that holds the images")
    folder = Path(os.path.abspath(folder))
    out = out or Path(re.sub(r"[^\w.-]+", "_", folder.name).strip("._") or "experiment").with_suffix(".yaml")
    refuse_overwriting(out)
    return folder, out


def refuse_overwriting(path: Path) -> None:
    """Raises UserError if there is such a file, or no folder for it."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; create it")
    if os.path.lexists(path):
        raise UserError(f"{path} exists: remove it, or name another file with --out")
