"""Files that describe a data set: reads their JSON, checks the paths that they list, tells layouts apart."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from premed.errors import UserError, printable
from premed.safety.files import MOST_JSON, irregularity, read_text

LOOKED_AT = 20  # listed files, at most, by which layouts are told apart


def read_json(path: Path, missing: str) -> Any:
    """Returns the content of a JSON file. Raises UserError, whose text is `missing` if there is no such file."""
    try:
        return json.loads(read_text(path, MOST_JSON, "leave out what premed does not read", encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(missing) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix its permissions") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): download it again") from None


def table_path(root: Path, file: str, field: str) -> Path:
    """The path of a table or listing that a YAML names: below the root, or an absolute path, which its user wrote.

    Raises UserError for one that leaves the root by `..`, as a YAML that came with a data set might. A link below the
    root may lead anywhere: data sets made of links are common. field: the setting.
    """
    if os.path.isabs(file):
        return Path(file)
    if os.path.normpath(file).split(os.sep)[0] == "..":
        raise UserError(f"{field}: {file} leads out of {root}; name a file below it, or write an absolute path")
    return root / file


def path_error(root: Path, real_root: Path, file: str) -> str:
    """Returns what is wrong with a listed file, and a remedy; else an empty string. real_root: root, links resolved."""
    try:
        is_inside = (root / file).resolve().is_relative_to(real_root)
        with suppress(FileNotFoundError, NotADirectoryError):
            (root / file).stat()  # from Python 3.13 on, `resolve` does not raise for a link to itself
        what = irregularity(root / file)
    except (OSError, ValueError, RuntimeError):  # too long, invalid characters, a link to itself
        return f"{printable(file)[:80]} is not a valid file name; fix the entry"
    if not is_inside:
        return f"{file} leads out of the folder; keep images inside it"
    if what:
        return f"{file} is {what}, not a file; replace it with a regular file"
    if "\\" in file and not os.path.lexists(root / file):
        return f"{file} has a backslash, which is part of a name here; write {file.replace(chr(92), '/')}"
    return ""


def is_nnunet(root: Path, content: Any) -> bool:
    """True if `content`, the dataset.json in `root`, describes nnU-Net's raw layout: one file per channel, CASE_0000.

    Version 2 lists no `training` cases; version 1 lists each by its label's name, which no image has.
    """
    if not isinstance(content, dict):
        return False
    if isinstance(content.get("dataset"), dict):
        return True
    if "training" not in content:
        return "file_ending" in content or next((root / "imagesTr").glob("[!.]*_0000.*"), None) is not None
    images = map(channel_file, listed_images(content))
    return not is_decathlon(root, content) and any(os.path.lexists(root / image) for image in images)


def is_decathlon(root: Path, content: Mapping[str, Any]) -> bool:
    """True if `content` lists images of the decathlon's layout, which are called as it lists them."""
    return any(os.path.lexists(root / image) for image in listed_images(content))


def listed_images(content: Mapping[str, Any]) -> list[str]:
    """Returns the first images that `training` lists."""
    entries = content.get("training")
    images = [entry.get("image") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [image for image in images if isinstance(image, str)][:LOOKED_AT]


def channel_file(image: str) -> str:
    """Returns the name that nnU-Net gives an image's first channel: a.nii.gz is a_0000.nii.gz."""
    base = image.removesuffix(".gz").removesuffix(".nii")
    return f"{base}_0000{image[len(base) :]}"
