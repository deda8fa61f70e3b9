"""Finds images in files and folders, and prepares them one at a time, outside any task's lists."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from premed.config.image_processing import Preprocessing
from premed.contracts import Case, Sample
from premed.data.io.dicom import is_dicom, slice_files
from premed.data.io.readers import DICOM, PICTURES, VOLUMES
from premed.data.prepared import PreparedFile, write
from premed.data.preprocess import prepare
from premed.errors import UserError
from premed.inference.refusals import no_image_error, not_there


class Input(NamedTuple):
    """An image to predict."""

    path: Path
    name: str  # of its label map, without the suffix; the relative path for images in a folder
    more: tuple[Path, ...] = ()  # the files of its other channels


def find_images(images: Sequence[Path], dims: int, out: Path) -> tuple[list[Input], list[dict[str, str]]]:
    """Returns the images of the arguments, in order, without duplicates; and arguments without images, and why."""
    unique: dict[Path, Input] = {}
    failed: list[dict[str, str]] = []
    kind = "picture (.png, .jpg, DICOM)" if dims == 2 else "volume (.nii, .nii.gz, a folder of DICOM slices)"
    for path in images:
        try:
            if not path.exists():
                failed.append({"path": str(path), "why": not_there(path)})
            elif path.is_dir():
                num_failed = len(failed)
                below = list(images_in(path, dims, out.absolute(), failed))
                if not below and len(failed) == num_failed:
                    failed.append({"path": str(path), "why": f"{path}: contains no {kind}; name another folder"})
                for each in below:
                    name = stem(each.relative_to(path)) if each != path else path.absolute().name
                    unique.setdefault(Path(os.path.abspath(each)), Input(each, name))
            else:
                unique.setdefault(Path(os.path.abspath(path)), Input(path, stem(Path(path.name))))
        except OSError as error:  # a name that is too long, say
            failed.append(unreadable(path, error))
    return list(unique.values()), failed


def unreadable(path: Path, error: OSError) -> dict[str, str]:
    """Returns the entry of a file or folder that cannot be opened in the list of those that failed."""
    return {
        "path": str(path),
        "why": f"{path}: cannot be read ({error.strerror or error}); fix its name or permissions",
    }


def images_in(
    folder: Path, dims: int, out: Path, failed: list[dict[str, str]], above: Sequence[str] = ()
) -> Iterator[Path]:
    """Yields all images in a folder and its subfolders, alphabetically, without the predictions in `out`.

    Adds subfolders that cannot be read to `failed`. above: the folders that it is in, which no link leads back to.
    """
    if folder.absolute() == out or (real := os.path.realpath(folder)) in above:
        return
    try:
        is_series = dims == 3 and any(
            path.name.lower().endswith(DICOM) or is_dicom_without_suffix(path) for path in slice_files(folder)
        )
        paths = sorted(folder.iterdir())
    except OSError as error:
        failed.append(unreadable(folder, error))
        return
    if is_series:
        yield folder  # one volume
        return
    for path in paths:
        name = path.name.lower()
        if name[0] == ".":
            continue
        try:
            is_folder = path.is_dir()
        except OSError as error:
            failed.append(unreadable(path, error))
            continue
        if is_folder:
            yield from images_in(path, dims, out, failed, [*above, real])
        elif name.endswith(VOLUMES if dims == 3 else (*PICTURES, *DICOM)) or (
            dims == 2 and is_dicom_without_suffix(path)
        ):
            yield path


def is_dicom_without_suffix(path: Path) -> bool:
    """True for a DICOM file without suffix."""
    with suppress(OSError):
        return not path.suffix.strip(".0123456789") and is_dicom(path)
    return False


def stem(path: Path) -> str:
    """Returns a path without an image's suffix."""
    name = str(path)
    suffix = next(
        (end for end in (*sorted(VOLUMES, key=len, reverse=True), *PICTURES, *DICOM) if name.lower().endswith(end)), ""
    )
    return name[: len(name) - len(suffix)]


def join_channels(wanted: Sequence[Input], task: Any) -> tuple[list[Input], list[dict[str, str]]]:
    """Joins CASE_0000, CASE_0001, … to one image CASE, for a task whose channels are files; other names stay.

    Returns the images, in order, and cases without all of the task's channels, and why. Raises UserError for a channel
    that two files have.
    """
    if not getattr(task, "channel_files", False):
        return [*wanted], []
    cases: dict[Path, dict[int, Input]] = {}
    joined, failed = [], []
    for each in wanted:
        found = re.fullmatch(r"(.+)_(\d{4})", each.name)
        is_channel = found and (task.channels > 1 or int(found[2]) == 0)
        case, number = (each.path.parent / found[1], int(found[2])) if found and is_channel else (each.path, -1)
        if (same := cases.setdefault(case, {}).setdefault(number, each)) is not each:  # as case_0000.nii beside .nii.gz
            raise UserError(f"{same.path} and {each.path} are one channel of {case}; keep one of them in its folder")
    for case, files in cases.items():
        numbers = sorted(files)
        first, *more = (files[number] for number in numbers)
        if numbers == [-1]:
            joined.append(first)
        elif numbers == [*range(task.channels)]:
            joined.append(Input(first.path, first.name.removesuffix("_0000"), tuple(each.path for each in more)))
        else:
            there = ", ".join(f"{number:04d}" for number in numbers)
            what = (
                f"has the channels {there}, and the network takes 0000 to {task.channels - 1:04d}; add or remove files"
            )
            failed.append({"path": str(first.path), "why": f"{case}: {what}"})
    return joined, failed


def nothing_left(failed: Sequence[dict[str, str]]) -> UserError:
    """Returns the error for the case that no image was predicted."""
    return no_image_error([each["why"] for each in failed])


@contextmanager
def prepare_sample(path: Path, preprocessing: Preprocessing, more: Sequence[Path] = ()) -> Iterator[Sample]:
    """Yields an image, preprocessed as in training; its file is deleted when the context ends.

    more: the files of its other channels.
    """
    try:
        prepared = prepare([path, *more], None, preprocessing)
    except MemoryError:
        raise UserError(f"{path}: does not fit in memory; make it smaller or use a larger machine") from None
    with TemporaryDirectory() as folder:
        file = Path(folder) / "image.safetensors"
        write(file, prepared)
        del prepared  # from here on, it is read from the file
        yield Sample(Case(str(path), str(path), (path, *more)), PreparedFile(file))
