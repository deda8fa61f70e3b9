"""Reads NIfTI-1 and NIfTI-2: values as float32, the affine in millimetres, and notes on what the header leaves open.

The affine is nibabel's choice: the sform if its code is not 0, else the qform if its code is not 0, else pixdim alone.
It is converted to millimetres by `xyzt_units`, as ITK does. The values are voxel * scl_slope + scl_inter.
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
from nibabel.orientations import aff2axcodes

from premed.data.io import geometry
from premed.data.io.image_file import ImageFile, Note
from premed.data.io.memory import refuse_beyond_memory
from premed.errors import UserError

MOST_EXTENSIONS = 2**26  # bytes between a NIfTI header and its voxels
DEFLATE = 1032  # deflate's highest ratio; if a header claims more, it is wrong or the file truncated
MOST_TAIL = 2**20  # bytes that may follow the last voxel
UNITS = {1: ("metre", 1e3), 3: ("micron", 1e-3)}  # of xyzt_units: mm per unit; 2 is mm, and so is 0, unknown
MOST_CODE = 5  # of sform and qform


def read(path: Path) -> ImageFile:
    """Reads a file, zipped or not, whatever its suffix. UserError if it is damaged or its header cannot be used."""
    with _open(path) as (file, zipped):
        block = file.read(540)
        kind, end = _check_header(path, block, path.stat().st_size * (DEFLATE if zipped else 1))
        raw = kind.header_class(block[: kind.header_class.sizeof_hdr], check=False)
        shape = raw.get_data_shape()  # stored, as float32, and once more where it is turned or resampled
        refuse_beyond_memory(path, shape, math.prod(map(int, shape)) * (raw.get_data_dtype().itemsize + 8))
        header = raw.copy()
        header.check_fix()  # nibabel corrects what can be: `_corrections` says what was
        affine = _affine(path, header)
        with np.errstate(all="ignore"):  # of fields that hold anything and are not used
            notes = *_corrections(raw, header), *_units(header), *_contradictions(raw, header), *_scaling(path, header)
        image = kind.from_file_map({"image": FileHolder(fileobj=file)}, mmap=False)
        with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite and are refused
            values = image.get_fdata(caching="unchanged", dtype=np.float32)
        file.seek(end)
        if zipped and len(file.read(MOST_TAIL)) == MOST_TAIL:  # reading to the end also verifies gzip's checksum
            raise UserError(f"{path}: unpacks to far more than its header says; copy it again")
    return ImageFile(values, affine, notes=tuple(map(Note, notes)))


def read_header(path: Path) -> nibabel.Nifti1Header:
    """Returns the header, corrected as nibabel corrects it; UserError if it is damaged."""
    with _open(path) as (file, zipped):
        kind, _ = _check_header(path, file.read(540), path.stat().st_size * (DEFLATE if zipped else 1))
        return kind.from_file_map({"image": FileHolder(fileobj=file)}, mmap=False).header


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, bool]]:
    """Yields the open file, unpacked, and whether it is gzip; nibabel logs nothing meanwhile."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"  # not by suffix: browsers unpack a download and keep its name
    with LoggingOutputSuppressor(), gzip.open(path) if zipped else open(path, "rb") as file:
        yield file, zipped


def mm_per_unit(header: Any) -> float:
    """Millimetres in the unit that a NIfTI header's affine, pixdim and offsets are in."""
    return UNITS.get(int(header["xyzt_units"]) % 8, ("mm", 1.0))[1]


def affine_in_mm(header: Any) -> np.ndarray:
    """The affine of a NIfTI header in millimetres; `header.get_best_affine()` has the same in the header's own unit."""
    return _in_mm(header.get_best_affine(), header)


def _in_mm(affine: np.ndarray, header: Any) -> np.ndarray:
    affine = np.array(affine, np.float64)
    affine[:3] *= mm_per_unit(header)
    return affine


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
    geometry.check_size(path, shape)
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: holds {dtype}, not plain numbers; convert it to int16 or float32")
    if not 0 <= offset <= MOST_EXTENSIONS:
        raise UserError(f"{path}: its header puts the voxels at byte {offset}; fix the header or copy it again")
    end = offset + math.prod(shape) * dtype.itemsize
    if end > most:
        raise UserError(f"{path}: truncated (its header asks for {end} bytes, it holds {most} at most); copy it again")
    return kind, end


def _affine(path: Path, header: Any) -> np.ndarray:
    """The affine in mm. UserError if the header has none that can be used."""
    try:
        affine = affine_in_mm(header)
    except ValueError as error:  # of quaternions that are no rotation
        raise UserError(f"{path}: its qform cannot be used ({error}); fix the header") from None
    if not np.isfinite(affine).all() or not np.linalg.cond(affine[:3, :3]) < 1e6:
        raise UserError(f"{path}: its affine cannot be inverted; fix the header")
    return affine


# What the header leaves open -----------------------------------------------------------------------------------------


def _corrections(raw: Any, header: Any) -> Iterator[str]:
    """What nibabel changed of the header's geometry, so that the file can be read at all."""
    for name in ("sform_code", "qform_code"):
        if raw[name] != header[name]:
            what = f"it is taken as 0, and the {name[:5]} is not used; fix the header"
            yield f"{name} {raw[name]} is not one of NIfTI's, 0 to {MOST_CODE}: {what}"
    if raw["xyzt_units"] % 8 > 3:
        yield f"xyzt_units {raw['xyzt_units']} has no unit of length: its grid is taken to be in mm"
    used = slice(1, 1 + min(3, len(raw.get_data_shape())))
    if header["sform_code"] == 0 and (raw["pixdim"][used] != header["pixdim"][used]).any():
        read, taken = (_sizes(each["pixdim"][used]) for each in (raw, header))
        yield f"pixdim has lengths that are not above 0: {read} is taken as {taken}; fix the header"


def _units(header: Any) -> Iterator[str]:
    name, scale = UNITS.get(int(header["xyzt_units"]) % 8, ("mm", 1.0))
    if name != "mm":
        sizes = _sizes(np.linalg.norm(header.get_best_affine()[:3, :3], axis=0) * scale)
        what = f"its grid is converted to mm, voxels are {sizes} mm"
        yield f"its unit of length is the {name}: {what}; if that is wrong, set xyzt_units to 2 (mm)"


def _contradictions(raw: Any, header: Any) -> Iterator[str]:
    """Whether sform, qform and pixdim say different things, or nothing."""
    sform, qform, shape = int(header["sform_code"]), int(header["qform_code"]), header.get_data_shape()
    if sform == qform == 0 and len(shape) > 2:
        rule = "as nibabel does, the first axis is taken to run to the left; set qform_code or sform_code"
        yield f"it has neither sform nor qform, so that left and right are not known: {rule}"
    if sform == 0:  # then qform and pixdim are used, and nothing repeats them
        return
    used = _in_mm(header.get_sform(), header)
    if qform:
        try:
            other = _in_mm(header.get_qform(), header)
        except ValueError:
            other = np.full((4, 4), np.nan)
        if not np.isfinite(other).all():
            yield f"its qform (code {qform}) cannot be used: the sform is used"
        elif differences := _differences(used, other, shape):
            choice = "the sform is used; if the qform is right, set sform_code to 0"
            yield f"sform (code {sform}) and qform (code {qform}) contradict each other: {differences}; {choice}"
        return
    sizes = np.abs(raw["pixdim"][1:4].astype(np.float64)) * mm_per_unit(header)
    lengths = np.linalg.norm(used[:3, :3], axis=0)
    given = np.isfinite(sizes) & (sizes > 0)  # 0: not given
    apart = np.abs(sizes - lengths) * geometry.extent(shape)
    if (apart[given] > geometry.tolerance(used)).any():
        what = f"voxels of {_sizes(lengths)} against {_sizes(sizes)} mm"
        choice = "the sform is used; if pixdim is right, correct the sform"
        yield f"sform and pixdim contradict each other: {what}; {choice}"


def _differences(used: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> str:
    """How two affines of a grid differ, in words; "" if they are the same."""
    limit = geometry.tolerance(used)
    if geometry.corner_gap(used, other, shape) <= limit:
        return ""
    lengths, others = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (used, other))
    axes, turned = used[:3, :3] / lengths, other[:3, :3] / np.where(others > 0, others, 1)
    differences = []
    if (np.abs(lengths - others) * geometry.extent(shape)).max() > limit:
        differences.append(f"voxels of {_sizes(lengths)} against {_sizes(others)} mm")
    if (np.linalg.norm(axes - turned, axis=0) * lengths * geometry.extent(shape)).max() > limit:
        codes = ["".join(map(str, aff2axcodes(affine))) for affine in (used, other)]
        angle = np.rad2deg(np.arccos(np.clip((axes * turned).sum(axis=0).min(), -1, 1)))
        differences.append(
            f"axes {codes[0]} against {codes[1]}" if codes[0] != codes[1] else f"axes {angle:.2g}° apart"
        )
    if (origin := float(np.linalg.norm(used[:3, 3] - other[:3, 3]))) > limit:
        differences.append(f"first voxels {origin:.3g} mm apart")
    return ", ".join(differences) or f"{geometry.corner_gap(used, other, shape):.2g} mm apart at the far corner"


def _scaling(path: Path, header: Any) -> Iterator[str]:
    """scl_slope and scl_inter. UserError if voxels are to be scaled, and by what is not known."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isfinite(slope) and slope != 0:
        if not math.isfinite(inter):
            raise UserError(f"{path}: its scl_slope is {slope:g} and its scl_inter {inter:g}; fix the header")
    elif math.isinf(slope) or (math.isfinite(inter) and inter != 0):
        what = f"scl_inter {inter:g} is not added, as NIfTI defines; if it should be, set scl_slope to 1"
        yield f"its scl_slope is {slope:g}: voxels are taken as stored, {what}"


def _sizes(sizes: np.ndarray) -> str:
    return " × ".join(f"{size:.4g}" for size in sizes.tolist())
