"""Reads image files: PNG and JPEG, NIfTI, DICOM. Returns [*S] or [*S, C], uint8 or float32, and an affine.

Files are not trusted: sizes are checked before memory is allocated, nothing is unpickled, and whatever a decoder raises
on a damaged file becomes a UserError of one line that names the file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image, ImageOps

from premed.data.io import dicom, dicom_series, dicom_tree, geometry, nifti
from premed.data.io.image_file import ImageFile
from premed.errors import UserError
from premed.safety.files import refuse_irregular

PICTURES, VOLUMES, DICOM = (".png", ".jpg", ".jpeg"), (".nii", ".nii.gz"), (".dcm",)
"""Suffixes. DICOM may also have none, and a folder is a volume of DICOM slices."""

LARGEST = 1e30  # differences and squares of larger values overflow float32


def read_image(path: Path, shown: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of a file or a folder of DICOM slices, [*S] or [*S, C], uint8 or float32; and the affine.

    shown: reads DICOM pictures as displayed, uint8, rather than as measured. Raises UserError, which names the file and
    the fix, for any fault.
    """
    return read_finite(path, shown)[:2]


def read_finite(path: Path, shown: bool = False) -> ImageFile:
    """Like `read_image`, with what the file declares to be padding and with notes on its header."""
    file = read_file(path, shown)
    if what := not_finite(file.values):
        raise UserError(f"{path}: {what}")
    return file


def not_finite(values: np.ndarray) -> str:
    """What is wrong with values that are NaN or infinite, and what to do; "" if none is.

    NaN is not taken for padding, as DICOM's Pixel Padding Value is: no field of NIfTI says so, a failed computation
    leaves NaN, too, and which value the background has depends on what was measured.
    """
    if values.dtype == np.uint8 or not (bad := np.count_nonzero(~(np.abs(values) < LARGEST))):
        return ""
    mend = "if they are background, write its value in their place (numpy.nan_to_num, nan=0; of a CT, nan=-1000)"
    return f"{bad} values are NaN or infinite; {mend}, else fix the file"


def read_values(path: Path, shown: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Like `read_image`, but accepts NaN and infinite values."""
    return read_file(path, shown)[:2]


def read_file(path: Path, shown: bool = False) -> ImageFile:
    """Like `read_finite`, but accepts NaN and infinite values, which `premed data check` reports by itself."""
    with decoding(path):
        file = _read(path, shown)
    if file.values.size == 0:
        raise UserError(f"{path}: holds no values; copy it again")
    return file


def read_header(path: Path) -> nibabel.Nifti1Header:
    """Returns the header of a NIfTI file, which may be NIfTI-2's; reads it as `read_image` does, without the values.

    Not `nibabel.load`, which refuses files that `read_image` reads (a gzip named .nii, a plain file named .nii.gz).
    Raises UserError like `read_image`.
    """
    with decoding(path):
        return nifti.read_header(path)


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into a UserError that names the file."""
    try:
        if not path.exists() and not dicom_tree.is_series(path):
            raise UserError(f"{path}: there is no such file")
        refuse_irregular(path)
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


def _read(path: Path, shown: bool) -> ImageFile:
    if dicom_tree.is_series(path):
        return dicom_series.read(path)
    name = path.name.lower()
    if name.endswith(VOLUMES):
        return nifti.read(path)
    if name.endswith(PICTURES):
        return ImageFile(_read_picture(path), np.eye(4))
    if name.endswith(DICOM) or dicom.is_dicom(path):
        return dicom.read(path, shown)
    suffixes = ", ".join((*PICTURES, *VOLUMES, *DICOM))
    raise UserError(f"{path}: not a kind of image that can be read; these can: {suffixes}, a folder of DICOM slices")


# PNG and JPEG --------------------------------------------------------------------------------------------------------


def _read_picture(path: Path) -> np.ndarray:
    """Returns [H, W] or [H, W, 3]: uint8, or float32 if 16-bit. Palettes become colours; transparency is dropped."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            geometry.check_size(path, picture.size)
            if picture.format == "PNG" and getattr(picture, "n_frames", 1) > 1:
                raise UserError(f"{path}: an animation of {picture.n_frames} pictures; save the one you need")  # type: ignore[attr-defined]
            deep = any(";16" in str(tile[3]) for tile in picture.tile)
            if deep and not picture.mode.startswith("I"):
                return _read_16_bit_colour(path)  # Pillow would keep the upper 8 bits only
            if picture.format != "PNG":
                picture = ImageOps.exif_transpose(picture)  # rotated as viewers do
            if picture.mode in ("1", "LA"):
                picture = picture.convert("L")
            grey = picture.mode.startswith("I") or picture.mode == "L"
            values = np.asarray(picture if grey else picture.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}; make it smaller") from None
    return values if values.dtype == np.uint8 else values.astype(np.float32)


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
