"""Where pages, figures and pictures cannot be written: told before what draws them is imported, and before any work."""

from pathlib import Path
from urllib.parse import urlsplit

from premed.errors import UserError


def refuse_page(path: Path, ui: str | None = None) -> None:
    """Raises UserError if the page's folder does not exist or `ui` is not a URL."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"--html {path}: its folder does not exist; create it")
    if ui is not None and (urlsplit(ui).scheme not in ("http", "https") or not urlsplit(ui).netloc):
        raise UserError(f"--ui {ui}: is not a URL; write it as premed ui prints it: http://127.0.0.1:5000")


def refuse_figures(folder: Path) -> None:
    """Raises UserError if `folder` cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--figures {folder}: cannot be made ({error.strerror}); name another folder") from None


def refuse_picture(path: Path) -> None:
    """Raises UserError if the picture of a plan cannot be written there."""
    if path.suffix not in (".svg", ".png"):
        raise UserError(f"--picture {path}: write a name that ends in .svg or .png")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--picture {path}: its folder does not exist; create it")
