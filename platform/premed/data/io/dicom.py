"""Reads DICOM: one picture, as displayed or as measured, or a folder of slices as one volume."""

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from premed.data.io import geometry
from premed.errors import UserError

MOST_PIXELS = 178_956_970  # per picture: Pillow's limit; the largest radiographs have 30 million
DEFLATED = "1.2.840.10008.1.2.1.99"
EVEN = 0.05  # tolerated deviation of a slice's position, as a fraction of the slice distance
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes grow to the left and the back


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's magic number. Many DICOM files have no suffix."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def slice_files(folder: Path) -> list[Path]:
    """The files of a folder that may be slices of a volume."""
    return sorted(
        path for path in folder.iterdir() if path.name[0] != "." and path.name != "DICOMDIR" and path.is_file()
    )


def read_picture(path: Path, shown: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns one frame, [H, W] or [H, W, 3], and the identity as its affine.

    shown: as displayed, uint8, through the file's VOI LUT or first window (full range if it has neither). Otherwise the
    measured grey values, float32, in the units of the rescale slope and intercept (or the modality LUT). MONOCHROME1 is
    inverted either way, so that air is dark; padding pixels get the darkest value of the others.
    """
    with _silence_pydicom():
        return _pixels(path, _dataset(path), shown), np.eye(4)


def read_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a folder of slices as a volume [X, Y, Z] float32, rescaled (CT: Hounsfield units), and its affine in RAS.

    Slices are sorted by ImagePositionPatient. UserError if they are not one series of equal, evenly spaced slices.
    """
    with _silence_pydicom():
        files = [path for path in slice_files(folder) if path.suffix.lower() == ".dcm" or is_dicom(path)]
        heads = {path: _dataset(path, stop_before_pixels=True) for path in files}
        if len(heads) < 2:
            raise UserError(f"{folder}: holds {len(heads)} DICOM slice(s), not a volume; put one whole series there")
        order, affine = _series_geometry(folder, heads)
        first = heads[order[0]]
        shape = (int(first.Columns), int(first.Rows), len(order))
        if np.prod(shape, dtype=object) > geometry.MAX_VOXELS:
            raise UserError(f"{folder}: its headers claim the shape {shape}; fix or leave out the folder")
        values = np.empty(shape, np.float32)
        for number, path in enumerate(order):
            plane = _pixels(path, _dataset(path), shown=False)
            if plane.ndim != 2:
                raise UserError(f"{path}: a colour picture, not a slice of a volume; move it out of the folder")
            values[..., number] = plane.T
        return values, affine


@contextmanager
def _silence_pydicom():
    """Silences pydicom, whose warnings about harmless deviations would flood the terminal for large series."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _dataset(path: Path, **options: Any) -> Any:
    import pydicom
    from pydicom.filereader import read_file_meta_info

    if not is_dicom(path):
        raise UserError(f"{path}: not DICOM (no DICM mark); convert it with dcmtk's dcmconv, or leave it out")
    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax is None:
        raise UserError(f"{path}: names no transfer syntax; convert it with dcmtk's dcmconv")
    if syntax == DEFLATED:  # its size is unknown before it is inflated
        raise UserError(f"{path}: a deflated data set; inflate it with dcmtk's dcmconv +te")
    dataset = pydicom.dcmread(path, **options)
    if not dataset.get("Rows") or not dataset.get("Columns"):
        kind = getattr(dataset.get("SOPClassUID"), "name", "of an unnamed kind")
        raise UserError(f"{path}: holds no picture ({_one_line(kind)}); leave it out, or copy it again if it should")
    for name in ("RescaleSlope", "RescaleIntercept"):
        if dataset.get(name, 0) in (None, ""):  # some writers add the field without a value
            del dataset[name]
    frames, pixels = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows) * int(dataset.Columns)
    if frames != 1:
        raise UserError(f"{path}: holds {frames} frames; save the one you need, or the volume as NIfTI (dcm2niix)")
    if pixels > MOST_PIXELS:
        raise UserError(f"{path}: its header claims {dataset.Rows} × {dataset.Columns} pixels; fix or leave it out")
    return dataset


def _pixels(path: Path, dataset: Any, shown: bool) -> np.ndarray:
    """[H, W] or [H, W, 3], uint8 or float32; see `read_picture`."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    raw = _decode(path, dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        raw = apply_color_lut(raw, dataset)
    if raw.ndim == 3:
        return _to_8_bit(raw, dataset) if shown or raw.dtype == np.uint8 else raw.astype(np.float32)
    inverted, values = dataset.PhotometricInterpretation == "MONOCHROME1", apply_modality_lut(raw, dataset)
    if shown:
        windowed, low, high = _apply_window(values, dataset)
        share = np.clip((windowed - low) / ((high - low) or 1), 0, 1)
        values = np.rint(255 * (1 - share if inverted else share)).astype(np.uint8)
    else:
        if inverted:
            signed, bits = int(dataset.PixelRepresentation), int(dataset.BitsStored)
            ends = np.array(
                [-signed << (bits - 1), (1 << (bits - signed)) - 1]
            )  # lowest and highest value of the file's format
            values = apply_modality_lut(ends, dataset).sum(dtype=np.float64) - values
        values = values.astype(np.float32)
    if (edge := dataset.get("PixelPaddingValue")) not in (None, ""):
        low, high = sorted((int(edge), int(dataset.get("PixelPaddingRangeLimit", edge))))
        padding = (raw >= low) & (raw <= high)
        values[padding] = values[~padding].min() if not padding.all() else 0
    return values


def _decode(path: Path, dataset: Any) -> np.ndarray:
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    remedy = "decompress it (gdcmconv --raw IN OUT) or pip install 'pylibjpeg[all]'"
    try:
        ready = not syntax.is_compressed or get_decoder(syntax).is_available
    except NotImplementedError:
        ready = False
    if not ready:
        raise UserError(f"{path}: compressed as {syntax.name}, which cannot be decoded here; {remedy}")
    try:
        return pixel_array(dataset)
    except RuntimeError as error:  # raised by the decoders' plug-ins
        raise UserError(
            f"{path}: {syntax.name} could not be decoded ({_one_line(error)}); {remedy}, or copy it again"
        ) from None


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _to_8_bit(colour: np.ndarray, dataset: Any) -> np.ndarray:
    if colour.dtype == np.uint8:
        return colour
    palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
    bits = 16 if palette else int(dataset.BitsStored)
    return (colour >> max(bits - 8, 0)).astype(np.uint8)


def _apply_window(values: np.ndarray, dataset: Any) -> tuple[np.ndarray, float, float]:
    """Applies the file's VOI LUT or window. Returns the values, and those of black and of white."""
    from pydicom.pixels import apply_voi, apply_windowing

    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(np.rint(values).astype(np.int64), dataset), 0, 2**bits - 1
    if dataset.get("WindowWidth") and dataset.get("WindowCenter") not in (None, ""):
        low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
        return apply_windowing(values, dataset), float(low), float(high)
    return values, float(values.min()), float(values.max())


# Slices --------------------------------------------------------------------------------------------------------------


def _series_geometry(folder: Path, heads: dict[Path, Any]) -> tuple[list[Path], np.ndarray]:
    """The slices sorted along the volume, and the affine. UserError if they do not make up a volume."""
    names = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
    for path, head in heads.items():
        if missing := [name for name in names if not head.get(name)]:
            raise UserError(f"{path}: has no {missing[0]}, so it is no slice of a volume; move it out of the folder")
    first, *others = heads
    for path in others:
        if different := _difference(heads[first], heads[path]):
            raise UserError(f"{path}: {different} is not that of {first.name}; keep one series in one folder")
    along, down = np.array(heads[first].ImageOrientationPatient, float).reshape(2, 3)
    places = {path: np.array(head.ImagePositionPatient, float) for path, head in heads.items()}
    order = sorted(heads, key=lambda path: float(places[path] @ np.cross(along, down)))
    track = np.stack([places[path] for path in order])
    step = (track[-1] - track[0]) / (len(order) - 1)  # not always perpendicular to the slices: tilted gantries
    deviation = np.linalg.norm(track - (track[0] + np.arange(len(order))[:, None] * step), axis=1)
    gaps = np.linalg.norm(np.diff(track, axis=0), axis=1)
    if (at := int(gaps.argmin())) is not None and gaps[at] <= EVEN * np.median(gaps):
        raise UserError(f"{order[at + 1]}: lies where {order[at].name} lies; keep one phase or echo in one folder")
    if deviation.max() > EVEN * np.linalg.norm(step):
        at = int(np.abs(gaps - np.median(gaps)).argmax())
        gap = f"{gaps[at]:.3g} mm behind {order[at].name}, where {np.median(gaps):.3g} mm are usual"
        raise UserError(f"{order[at + 1]}: lies {gap}; a slice is missing or out of place in {folder.name}")
    height, width = map(float, heads[first].PixelSpacing)  # of a row, of a column
    affine = np.eye(4)
    affine[:3] = np.stack([along * width, down * height, step, track[0]], axis=1)
    return order, TO_RAS @ affine


def _difference(head: Any, other: Any) -> str:
    """The name of the first field that differs between two slices and must not; "" if none does."""
    for name in ("SeriesInstanceUID", "Rows", "Columns"):
        if head.get(name) != other.get(name):
            return name
    for name in ("PixelSpacing", "ImageOrientationPatient"):
        if not np.allclose(np.array(head[name].value, float), np.array(other[name].value, float), rtol=0, atol=1e-3):
            return name
    return ""
