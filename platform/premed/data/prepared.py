"""Prepared images on disk, memory-mapped, so that a crop reads only its own voxels.

A file is safetensors: `image` [C, *S], `label` [*S], `locations` [n, dims]; its metadata holds the rest as JSON. Each
array has a checksum, which `Cache.prepare` verifies before a training, and so has the rest.
"""

import errno
import json
import math
import mmap
import os
import struct
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from premed.data.io.image_file import Note
from premed.data.locations import sampled_locations
from premed.data.preprocess import Prepared
from premed.errors import UserError


class PreparedFile:
    """A prepared image on disk; see `PreparedImage`. It holds only a path, so thousands are cheap to keep and pickle.
    A crop may extend beyond the image; it is then padded with stored 0 and label 0."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"PreparedFile({str(self.path)!r})"

    @property
    def channels(self) -> int:
        return header(self.path).arrays["image"].shape[0]

    @property
    def shape(self) -> tuple[int, ...]:  # *S, without channels
        return header(self.path).arrays["image"].shape[1:]

    @property
    def has_label(self) -> bool:
        return "label" in header(self.path).arrays

    def image(self, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> np.ndarray:
        """Float32 [C, *size], in the units that networks take."""
        return self.values(self._crop("image", start, size))

    def stored(self, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> np.ndarray:
        """uint8 or int16 [C, *size]; `values` converts it to the units of `image`."""
        return np.array(self._crop("image", start, size))

    def values(self, stored: np.ndarray) -> np.ndarray:
        """Converts stored numbers [C, ...] to float32 values, after 8-bit augmentation for example."""
        facts, ones = header(self.path).facts, (1,) * (stored.ndim - 1)
        out = stored.astype(np.float32, order="C")  # np.multiply converts in small blocks, and takes longer
        out *= np.array(facts["scale"], np.float32).reshape(-1, *ones)
        out += np.array(facts["offset"], np.float32).reshape(-1, *ones)
        return out

    def label(self, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> np.ndarray:
        """uint8 [*size]. Raises ValueError if the image was prepared without a label."""
        if not self.has_label:
            raise ValueError(f"{self.path}: prepared without a label")
        return np.array(self._crop("label", start, size))

    @property
    def counts(self) -> dict[int, int]:
        """Voxels per label, in ascending order; 0 counts the unlabelled voxels whose stored value is not 0."""
        return {int(label): count for label, (_, _, count) in header(self.path).facts["labels"].items()}

    @property
    def labels_present(self) -> tuple[int, ...]:
        """The labels that occur, without 0."""
        return tuple(label for label in self.counts if label)

    def locations(self, label: int) -> np.ndarray:
        """Up to 5,000 voxels [n, dims] of a label, spread evenly over it; 0: of the voxels that `counts` counts."""
        first, n, _ = header(self.path).facts["labels"].get(str(label), (0, 0, 0))
        return (
            np.array(_array(self.path, "locations")[first : first + n]) if n else np.zeros((0, len(self.shape)), "i2")
        )

    @property
    def affine(self) -> np.ndarray:
        return np.array(header(self.path).facts["affine"])

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm per voxel of the prepared grid (native pixels, for pictures)."""
        return tuple(np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0).tolist())

    @property
    def native_affine(self) -> np.ndarray:
        return np.array(header(self.path).facts["native_affine"])

    @property
    def native_shape(self) -> tuple[int, ...]:
        return tuple(header(self.path).facts["native_shape"])

    @property
    def notes(self) -> list[tuple[int, Note]]:
        """What the headers leave open, see `Prepared.notes`."""
        return _notes(header(self.path))

    def _crop(self, name: str, start: Sequence[int] | None, size: Sequence[int] | None) -> np.ndarray:
        array = _array(self.path, name)
        lead = array.shape[: array.ndim - len(self.shape)]
        if start is None or size is None:
            return array
        low = [max(0, at) for at in start]
        high = [min(n, at + length) for n, at, length in zip(self.shape, start, size, strict=True)]
        inside = (...,) + tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))
        if all(b - a == length for a, b, length in zip(low, high, size, strict=True)):
            return array[inside]
        padded = np.zeros((*lead, *size), array.dtype)
        target = tuple(slice(a - at, max(a, b) - at) for a, b, at in zip(low, high, start, strict=True))
        if all(a < b for a, b in zip(low, high, strict=True)):
            padded[(..., *target)] = array[inside]
        return padded


# The file ------------------------------------------------------------------------------------------------------------


class _Array(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


class _Head(NamedTuple):
    arrays: dict[str, _Array]
    facts: dict[str, Any]


_DTYPES = {"U8": np.dtype(np.uint8), "I16": np.dtype("<i2"), "I32": np.dtype("<i4")}


@lru_cache(maxsize=256)
def header(path: Path) -> _Head:
    """The header. Raises UserError if the file is missing, incomplete or damaged."""
    try:
        return _read_head(path)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise UserError(
            f"{path}: cannot be used ({what}); run the same command again, which prepares it anew"
        ) from None


def _read_head(path: Path) -> _Head:
    """Reads and checks the header. Raises OSError or ValueError if the file is missing, incomplete or damaged."""
    try:
        return _parse_head(path)
    except OSError:
        raise
    except Exception as error:  # a bit that turned may make anything of a number or of a comma
        raise ValueError(f"damaged ({type(error).__name__})") from None


def _parse_head(path: Path) -> _Head:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", (file.read(8) + bytes(8))[:8])
        total = os.fstat(file.fileno()).st_size
        if length > total:
            raise ValueError("truncated")
        header = json.loads(file.read(length))
    facts = json.loads(header.pop("__metadata__")["premed"])
    own = facts["crc32"].pop("facts")
    if own != checksum(json.dumps(facts).encode()) or facts["crc32"].keys() != header.keys():
        raise ValueError("damaged")
    end = 8 + length + max(item["data_offsets"][1] for item in header.values())
    if total != end:
        raise ValueError("truncated")
    arrays = {
        name: _Array(_DTYPES[item["dtype"]], tuple(item["shape"]), 8 + length + item["data_offsets"][0])
        for name, item in header.items()
    }
    for name, (dtype, shape, _) in arrays.items():
        first, last = header[name]["data_offsets"]
        if math.prod(shape) * dtype.itemsize != last - first:
            raise ValueError("damaged")
    return _Head(arrays, facts)


def _array(path: Path, name: str) -> np.ndarray:
    return _map(path, header(path).arrays[name])


def _map(path: Path, array: _Array) -> np.ndarray:
    """Mapped anew each time, so that no file stays open: 16 µs. Up to 256 KiB, as of pictures, are read: 6 to 21 µs."""
    num = math.prod(array.shape)
    file = os.open(path, os.O_RDONLY)
    try:
        if num * array.dtype.itemsize > 1 << 18:
            content = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
            return np.frombuffer(content, array.dtype, num, array.offset).reshape(array.shape)
        read = np.empty(array.shape, array.dtype)
        if os.preadv(file, [read.data], array.offset) < read.nbytes:
            raise ValueError("truncated")
        return read
    finally:
        os.close(file)


def with_checksums(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """`facts` with the checksums of the arrays, and with its own."""
    sums = {name: checksum(array) for name, array in arrays.items()}
    return facts | {"crc32": sums | {"facts": checksum(json.dumps(facts | {"crc32": sums}).encode())}}


def checksum(content: np.ndarray | bytes) -> int:
    return zlib.crc32(np.ascontiguousarray(content).data if isinstance(content, np.ndarray) else content)


def read_notes(path: Path, verify: bool = False) -> list[tuple[int, Note]] | None:
    """The notes of a file, see `PreparedFile.notes`; None if it does not exist, or its header is damaged.

    verify: reads the arrays, too, and returns None if one is not as it was written. A bit of a disk may turn.
    """
    try:
        head = _read_head(path)
        sums = {name: checksum(_map(path, array)) for name, array in head.arrays.items() if verify}
    except (OSError, ValueError):
        return None
    return None if verify and sums != head.facts["crc32"] else _notes(head)


def _notes(head: _Head) -> list[tuple[int, Note]]:
    return [(number, Note(*note)) for number, note in head.facts["notes"]]


def write(path: Path, prepared: Prepared, num_left: int = 1) -> None:
    """Writes the file atomically: to a temporary name, then renamed, so that readers never see a partial file.

    Raises UserError if the disk is full or the folder not writable. num_left: images still to be written, for the
    message about the disk space needed.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays, labels = {"image": prepared.image}, {}
    if prepared.label is not None:
        arrays["label"] = prepared.label
        arrays["locations"], labels = sampled_locations(prepared)
    facts = {
        "scale": prepared.scale.tolist(),
        "offset": prepared.offset.tolist(),
        "affine": prepared.affine.tolist(),
        "native_affine": prepared.native_affine.tolist(),
        "native_shape": prepared.native_shape,
        "labels": labels,
        "notes": prepared.notes,
    }
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, temporary, {"premed": json.dumps(with_checksums(facts, arrays))})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
        raise _refusal(path.parent.parent, error, megabytes * num_left) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _refusal(root: Path, error: Exception, megabytes: float) -> UserError:
    # safetensors wraps the system's error; only its text has the error number
    codes = (errno.ENOSPC, errno.EDQUOT)
    if getattr(error, "errno", None) in codes or any(f"os error {code}" in str(error) for code in codes):
        return UserError(
            f"{root}: the disk is full (about {megabytes:.1f} MB more are needed); make room or move PREMED_HOME"
        )
    return UserError(f"{root}: cannot be written ({error}); fix its permissions or move PREMED_HOME")
