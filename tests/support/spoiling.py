"""Ways to spoil the files of a folder of images."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file

Spoil = Callable[[Path], None]


def cut(name: str, share: float) -> Spoil:
    return lambda root: (root / name).write_bytes(
        (root / name).read_bytes()[: int(share * (root / name).stat().st_size)]
    )


def written(name: str, content: bytes) -> Spoil:
    return lambda root: (root / name).write_bytes(content) and None


def bytes_at(name: str, place: int, content: bytes, zipped: bool = False) -> Spoil:
    """Overwrites bytes; of what is zipped, inside."""

    def spoil(root: Path) -> None:
        whole = bytearray((gzip.open if zipped else open)(root / name, "rb").read())
        at = place if place >= 0 else len(whole) + place
        whole[at : at + len(content)] = content
        (root / name).write_bytes(gzip.compress(whole) if zipped else whole)

    return spoil


def saved_as(name: str, kind: str) -> Spoil:
    return lambda root: Image.open(root / name).convert("L").save(root / name, format=kind)


def deep(root: Path) -> None:
    Image.fromarray(np.asarray(Image.open(root / "1.png").convert("L")).astype(np.uint16) * 257).save(root / "1.png")


def coloured(name: str) -> Spoil:
    def spoil(root: Path) -> None:
        grey = np.asarray(Image.open(root / name).convert("L"))
        Image.fromarray(np.stack([grey, 255 - grey, grey], -1)).save(root / name)

    return spoil


def a_folder(name: str) -> Spoil:
    def spoil(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return spoil


def swapped(name: str, other: str) -> Spoil:
    """Another of pydicom's files in its place."""
    return lambda root: shutil.copy(str(get_testdata_file(other, download=False)), root / name) and None


def fields(name: str, **changed) -> Spoil:
    def spoil(root: Path) -> None:
        dataset = pydicom.dcmread(root / name)
        for field, value in changed.items():
            setattr(dataset, field, value)
        dataset.save_as(root / name)

    return spoil


def voxels(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    def spoil(root: Path) -> None:
        image = nibabel.load(root / name)
        nibabel.save(
            nibabel.Nifti1Image(change(np.asarray(image.dataobj)), image.affine),
            root / name,
        )

    return spoil


def not_a_number(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float32)
    values[3, 3, 3] = np.nan
    return values


def line(number: int, text: str) -> Spoil:
    """Another line in the table; number 1 is the header."""

    def spoil(root: Path) -> None:
        lines = (root / "labels.csv").read_text().splitlines()
        lines[number - 1] = text
        (root / "labels.csv").write_text("\n".join(lines) + "\n")

    return spoil


def semicolons(root: Path) -> None:
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace(",", ";"))


def flat(root: Path) -> None:
    bytes_at("1.nii.gz", 254, b"\1\0", zipped=True)(root)  # the affine is in the rows that follow
    bytes_at("1.nii.gz", 312, bytes(16), zipped=True)(root)


def linked(root: Path) -> None:
    (root / "1.png").unlink()
    (root / "1.png").symlink_to("/etc/hostname")


def about(**changed) -> Spoil:
    def spoil(root: Path) -> None:
        path = root / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return spoil


def of_entry(change: Callable[[dict], dict]) -> Spoil:
    def spoil(root: Path) -> None:
        entries = json.loads((root / "dataset.json").read_text())["training"]
        about(training=[change(entries[0]), *entries[1:]])(root)

    return spoil


def of_label(change: Callable[[Path], None]) -> Spoil:
    return lambda root: change(sorted((root / "labelsTr").iterdir())[0])
