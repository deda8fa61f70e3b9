"""Reads image files: PNG and JPEG, NIfTI, DICOM. Returns [*S] or [*S, C], uint8 or float32, and an affine.

Files are not trusted: sizes are checked before memory is allocated, nothing is unpickled, and whatever a decoder raises
on a damaged file becomes a UserError of one line that names the file.
"""

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.fileholders import FileHolder
from nibabel.imageglobals import LoggingOutputSuppressor
from PIL import Image, ImageOps

from premed.data.io import dicom, geometry
from premed.errors import UserError

PICTURES, VOLUMES, DICOM = (".png", ".jpg", ".jpeg"), (".nii", ".nii.gz"), (".dcm",)
"""Suffixes. DICOM may also have none, and a folder is a volume of DICOM slices."""

MOST_EXTENSIONS = 2**26  # bytes between a NIfTI header and its voxels
DEFLATE = 1032  # deflate's highest ratio; if a header claims more, it is wrong or the file truncated
MOST_TAIL = 2**20  # bytes that may follow the last voxel
LARGEST = 1e30  # differences and squares of larger values overflow float32


def read_image(path: Path, shown: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of a file or a folder of DICOM slices, [*S] or [*S, C], uint8 or float32; and the affine.

    shown: reads DICOM pictures as displayed, uint8, rather than as measured. Raises UserError, which names the file and
    the fix, for any fault.
    """
    values, affine = read_values(path, shown)
    if values.dtype != np.uint8 and (bad := np.count_nonzero(~(np.abs(values) < LARGEST))):
        raise UserError(f"{path}: {bad} values are NaN or infinite; fix the file")
    return values, affine


def read_values(path: Path, shown: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Like `read_image`, but accepts NaN and infinite values, which `premed data check` reports by itself."""
    with _decoding(path):
        values, affine = _read(path, shown)
    if values.size == 0:
        raise UserError(f"{path}: holds no values; copy it again")
    return values, affine


def read_header(path: Path) -> nibabel.Nifti1Header:
    """Returns the header of a NIfTI file, which may be NIfTI-2's; reads it as `read_image` does, without the values.

    Not `nibabel.load`, which refuses files that `read_image` reads (a gzip named .nii, a plain file named .nii.gz).
    Raises UserError like `read_image`.
    """
    with _decoding(path), _open_nifti(path) as (image, *_):
        return image.header


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into a UserError that names the file."""
    try:
        if not path.exists():
            raise UserError(f"{path}: there is no such file")
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes); copy it again")
        yield
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{path}: cannot be read (permission denied); change its permissions") from None
    except MemoryError:
        raise UserError(f"{path}: does not fit in memory; make it smaller or take a larger machine") from None
    except Exception as error:  # decoders may raise anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: damaged, truncated or not an image ({reason}); copy it again") from None


def _read(path: Path, shown: bool) -> tuple[np.ndarray, np.ndarray]:
    if path.is_dir():
        return dicom.read_series(path)
    name = path.name.lower()
    if name.endswith(VOLUMES):
        return _read_nifti(path)
    if name.endswith(PICTURES):
        return _read_picture(path)
    if name.endswith(DICOM) or dicom.is_dicom(path):
        return dicom.read_picture(path, shown)
    suffixes = ", ".join((*PICTURES, *VOLUMES, *DICOM))
    raise UserError(f"{path}: not a kind of image that can be read; these can: {suffixes}, a folder of DICOM slices")


# Pictures ------------------------------------------------------------------------------------------------------------


def _read_picture(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns [H, W] or [H, W, 3]: uint8, or float32 if 16-bit. Palettes become colours; transparency is dropped."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            _check_size(path, picture.size)
            if picture.format == "PNG" and getattr(picture, "n_frames", 1) > 1:
                raise UserError(f"{path}: an animation of {picture.n_frames} pictures; save the one you need")  # type: ignore[attr-defined]
            deep = any(";16" in str(tile[3]) for tile in picture.tile)
            if deep and not picture.mode.startswith("I"):
                return _read_16_bit_colour(path), np.eye(4)  # Pillow would keep the upper 8 bits only
            if picture.format != "PNG":
                picture = ImageOps.exif_transpose(picture)  # rotated as viewers do
            if picture.mode in ("1", "LA"):
                picture = picture.convert("L")
            grey = picture.mode.startswith("I") or picture.mode == "L"
            values = np.asarray(picture if grey else picture.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}; make it smaller") from None
    return values if values.dtype == np.uint8 else values.astype(np.float32), np.eye(4)


def _read_16_bit_colour(path: Path) -> np.ndarray:
    """Reads a 16-bit PNG in colour or with transparency, which is dropped: [H, W] or [H, W, 3] float32.

    Pillow keeps only the upper byte of each value; read as little-endian, it keeps the lower one.
    """

    def bytes_as(raw_mode: str) -> np.ndarray:
        with Image.open(path, formats=("PNG",)) as picture:
            picture.tile = [tile._replace(args=raw_mode) for tile in picture.tile]
            return np.asarray(picture).astype(np.float32)

    with Image.open(path, formats=("PNG",)) as picture:
        mode = str(picture.tile[0][3]).partition(";")[0]
    if mode == "LA":
        pairs = bytes_as("RGBA")
        return 256 * pairs[..., 0] + pairs[..., 1]
    return (256 * bytes_as(f"{mode};16B") + bytes_as(f"{mode};16L"))[..., :3]


# NIfTI ---------------------------------------------------------------------------------------------------------------


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with _open_nifti(path) as (image, file, zipped, end):
        affine = np.asarray(image.affine, np.float64)
        if not np.isfinite(affine).all() or not np.linalg.cond(affine[:3, :3]) < 1e6:
            raise UserError(f"{path}: its affine cannot be inverted; fix the header")
        with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite and are refused
            values = image.get_fdata(caching="unchanged", dtype=np.float32)
        file.seek(end)
        if zipped and len(file.read(MOST_TAIL)) == MOST_TAIL:  # reading to the end also verifies gzip's checksum
            raise UserError(f"{path}: unpacks to far more than its header says; copy it again")
    return values, affine


@contextmanager
def _open_nifti(path: Path) -> Iterator[tuple[Any, Any, bool, int]]:
    """Yields the image, without its values; the open file; whether that is gzip; the byte at which its values end."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"  # not by suffix: browsers unpack a download and keep its name
    with LoggingOutputSuppressor(), gzip.open(path) if zipped else open(path, "rb") as file:
        kind, end = _check_header(path, file.read(540), path.stat().st_size * (DEFLATE if zipped else 1))
        yield kind.from_file_map({"image": FileHolder(fileobj=file)}, mmap=False), file, zipped, end


def _check_header(path: Path, block: bytes, most: int) -> tuple[Any, int]:
    """Checks the header `block`. Returns the NIfTI class (1 or 2) and the byte at which the voxels end.

    most: the bytes that the file can hold, unpacked. UserError if the header is implausible.
    """
    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    kind = kinds.get(int.from_bytes(block[:4], "little")) or kinds.get(int.from_bytes(block[:4], "big"))
    if kind is None or len(block) < kind.header_class.sizeof_hdr:
        raise UserError(f"{path}: damaged, truncated or not NIfTI; copy it again")
    header = kind.header_class(block[: kind.header_class.sizeof_hdr], check=False)
    shape, dtype, offset = header.get_data_shape(), np.dtype(header.get_data_dtype()), header.get_data_offset()
    _check_size(path, shape)
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: holds {dtype}, not plain numbers; convert it to int16 or float32")
    if not 0 <= offset <= MOST_EXTENSIONS:
        raise UserError(f"{path}: its header puts the voxels at byte {offset}; fix the header or copy it again")
    end = offset + math.prod(shape) * dtype.itemsize
    if end > most:
        raise UserError(f"{path}: truncated (its header asks for {end} bytes, it holds {most} at most); copy it again")
    return kind, end


def _check_size(path: Path, shape: tuple[int, ...]) -> None:
    if any(n < 1 for n in shape) or not 0 < math.prod(map(int, shape)) <= geometry.MAX_VOXELS:
        raise UserError(f"{path}: its header claims the shape {tuple(shape)}; fix or leave out the file")
