"""What `premed predict` and `premed export` refuse before they import torch: a mistake is told at once."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from premed.errors import UserError
from premed.inference.runs import find_stage_run
from premed.tracking.run_store import open_store

EXTRA = {
    "safetensors": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "monai": ("fire", "jsonschema"),
}
"""The packages that a format requires in addition: premed[export]."""


def refuse_prediction(reference: str, images: Sequence[Path], out: Path) -> None:
    """Raises UserError if none of the images is there, `out` is no folder, or `reference` names no network."""
    absent = [path for path in images if not is_there(path)]
    if images and len(absent) == len(images):
        raise no_image_error([not_there(path) for path in absent])
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if find_stage_run(open_store(), reference).tags.get("premed.kind") != "finetune":
        raise UserError(f"{reference}: is a pre-training and cannot predict; name a run that was fine-tuned")


def is_there(path: Path) -> bool:
    """Whether a file or folder exists; one whose name cannot be looked up is found out about later."""
    try:
        return path.exists()
    except OSError:
        return True


def not_there(path: Path) -> str:
    return f"{path}: there is no such file or folder"


def no_image_error(reasons: Sequence[str]) -> UserError:
    """Returns the error for the case that no image is predicted. reasons: a line for each."""
    more = f" (and {len(reasons) - 1} more like it)" if len(reasons) > 1 else ""
    return UserError(f"{reasons[0]}{more}")


def refuse_export(reference: str) -> None:
    """Raises UserError if `reference` names no finished training."""
    find_stage_run(open_store(), reference)


def refuse_options(form: str, to: Path, *, check: Sequence[Path], part: Sequence[str], single_file: bool) -> None:
    """Raises UserError for options of an export that do not fit its format, and for a folder that holds something."""
    if form not in EXTRA:
        raise UserError(f"--format: {form!r} is not one of {', '.join(EXTRA)}")
    if absent := [name for name in EXTRA[form] if find_spec(name) is None]:
        raise UserError(f"--format {form}: needs {', '.join(absent)}: pip install premed[export]")
    if form != "safetensors" and (part or single_file):
        raise UserError(f"--format {form}: contains the complete network; --part and --whole are for safetensors")
    if form == "safetensors" and check:
        raise UserError("--check: compares a graph with torch; safetensors are the weights themselves")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to}: exists and is not empty; name a new folder")
