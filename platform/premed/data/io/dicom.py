"""Reads DICOM pictures of one frame, as displayed or as measured; `dicom_series` makes a volume of slices.

A tag that cannot be used is refused by its name, or left out with a note where the standard has a default.
"""

import logging
import math
import warnings
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from premed.data.io.image_file import ImageFile, Note, fill
from premed.errors import UserError
from premed.safety.files import irregularity

MOST_PIXELS = 178_956_970  # per picture: Pillow's limit; the largest radiographs have 30 million
DEFLATED = "1.2.840.10008.1.2.1.99"
RESCALE = {"RescaleSlope": 1, "RescaleIntercept": 0}  # and what is taken if one of them is not given
WINDOWS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")  # VOI LUT functions
MEND = "correct or remove it (dcmtk's dcmodify)"

CT_OR_PET = {"CT", "PT", "HU", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.128"}
"""Values of Modality, RescaleType or SOPClassUID."""

GONE = (None, "")  # pydicom's values of an absent and of an empty tag

Notes = dict[Note, None]  # an ordered set, since the slices of a series say the same


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's magic number. Many DICOM files have no suffix."""
    if irregularity(path) or not path.exists():  # a named pipe would be read for ever; a link may lead nowhere
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def slice_files(folder: Path) -> list[Path]:
    """The files of a folder that may be slices of a volume."""
    return sorted(path for path in folder.iterdir() if may_be_slice(path.name) and path.is_file())


def may_be_slice(name: str) -> bool:
    return name[0] != "." and name != "DICOMDIR"


def read(path: Path, shown: bool) -> ImageFile:
    """Reads one frame, [H, W] or [H, W, 3]; the affine is the identity.

    shown: as displayed, uint8, through the file's VOI LUT or first window (full range if it has neither). Otherwise the
    measured grey values, float32, in the units of the rescale slope and intercept (or the modality LUT). MONOCHROME1 is
    inverted either way, so that air is dark, except for measured values of a unit (CT, PET), which are what they are;
    padding pixels get the darkest value of the others.
    """
    notes: Notes = {}
    with silence_pydicom():
        values, padding = pixels(path, read_dataset(path), shown, notes)
    fill(values, padding)
    if padding is not None and padding.all():
        notes[Note("every pixel is padding: it is 0 everywhere; leave it out")] = None
    return ImageFile(values, np.eye(4), padding, tuple(notes))


@contextmanager
def silence_pydicom() -> Iterator[None]:
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


def read_dataset(path: Path, **options: Any) -> Any:
    """A file's tags. UserError if they are not those of one picture. options: as pydicom's dcmread has them."""
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
    for name in RESCALE:
        given = numbers(path, dataset, name, 1)
        if not given and name in dataset:  # some writers add the field without a value
            del dataset[name]
        if given == [0] and name == "RescaleSlope":
            raise UserError(f"{path}: RescaleSlope is 0, so that every value would be the same; {MEND}")
    frames = int((numbers(path, dataset, "NumberOfFrames", 1) or [1])[0]) or 1
    num = int(dataset.Rows) * int(dataset.Columns)
    if frames != 1:
        raise UserError(f"{path}: holds {frames} frames; save the one you need, or the volume as NIfTI (dcm2niix)")
    if num > MOST_PIXELS:
        raise UserError(f"{path}: its header claims {dataset.Rows} × {dataset.Columns} pixels; fix or leave it out")
    return dataset


# Tags ----------------------------------------------------------------------------------------------------------------


def numbers(path: Path, dataset: Any, name: str, count: int | None = None, nan: bool = False) -> list[float]:
    """The numbers of a tag; [] if it is absent or empty.

    nan: they may be NaN. UserError, which names the tag, if they are no numbers, or not `count`.
    """
    with naming(path, name):
        value = dataset.get(name)
        found = [float(each) for each in (value if isinstance(value, MutableSequence) else [value]) if each not in GONE]
        if not all(math.isfinite(each) or (nan and math.isnan(each)) for each in found):
            raise ValueError("not finite")
        if found and count is not None and len(found) != count:
            raise ValueError(f"{len(found)} numbers, {count} expected")
        return found


@contextmanager
def naming(path: Path, *tags: str) -> Iterator[None]:
    """Whatever a library says of a tag's value becomes a UserError that names the tag."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:  # pydicom raises anything
        reason = _one_line(error) or type(error).__name__
        raise UserError(f"{path}: {' or '.join(tags)} cannot be used ({reason}); {MEND}") from None


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


# Pixels --------------------------------------------------------------------------------------------------------------


def pixels(path: Path, dataset: Any, shown: bool, notes: Notes) -> tuple[np.ndarray, np.ndarray | None]:
    """[H, W] or [H, W, 3], uint8 or float32, see `read`; and which of them are padding, None for none."""
    from pydicom.pixels import apply_color_lut

    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        what = "text in the picture, a name perhaps, is learnt from and shown"
        remedy = "have it removed, or set tracking.pictures: none"
        notes[Note(f"BurnedInAnnotation is YES: {what}; {remedy}", reading=False)] = None
    raw = _decode(path, dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        with naming(path, "RedPaletteColorLookupTableDescriptor", "another tag of the palette"):
            raw = apply_color_lut(raw, dataset)
    if raw.ndim == 3:
        return _to_8_bit(raw, dataset) if shown or raw.dtype == np.uint8 else raw.astype(np.float32), None
    padding = _find_padding(path, dataset, raw)
    inverted, values = dataset.PhotometricInterpretation == "MONOCHROME1", _measure(path, dataset, raw, notes)
    if inverted and not shown and _has_unit(dataset):
        what = "its values have a unit (Hounsfield's, or that of PET): they are kept"
        notes[Note(f"MONOCHROME1 says that low values are to be shown bright, and {what}")] = None
        inverted = False
    if shown:
        windowed, low, high = _apply_window(path, dataset, values, padding, notes)
        share = np.clip((windowed - low) / ((high - low) or 1), 0, 1)
        return np.rint(255 * (1 - share if inverted else share)).astype(np.uint8), padding
    if inverted:
        with naming(path, "PixelRepresentation", "BitsStored"):
            signed, bits = int(dataset.PixelRepresentation), int(dataset.BitsStored)
            ends = np.array([-signed << (bits - 1), (1 << (bits - signed)) - 1])  # lowest and highest of the format
        values = _measure(path, dataset, ends, notes).sum(dtype=np.float64) - values
    return values.astype(np.float32), padding


def _decode(path: Path, dataset: Any, **options: Any) -> np.ndarray:
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
        return pixel_array(dataset, **options)
    except RuntimeError as error:  # raised by the decoders' plug-ins
        raise UserError(
            f"{path}: {syntax.name} could not be decoded ({_one_line(error)}); {remedy}, or copy it again"
        ) from None


def _measure(path: Path, dataset: Any, raw: np.ndarray, notes: Notes) -> np.ndarray:
    """Applies the modality LUT, or slope and intercept; of which one that is not given has its default."""
    from pydicom.pixels import apply_modality_lut

    if not dataset.get("ModalityLUTSequence") and len(given := [name for name in RESCALE if name in dataset]) == 1:
        (missing,) = RESCALE.keys() - given
        notes[Note(f"{missing} is absent or empty, {given[0]} is not: {RESCALE[missing]} is taken; add it")] = None
        setattr(dataset, missing, RESCALE[missing])
    with naming(path, "ModalityLUTSequence", *RESCALE):
        return apply_modality_lut(raw, dataset)


def _has_unit(dataset: Any) -> bool:
    """Whether measured values mean something by themselves, however they are to be shown: those of CT and PET."""
    tags = ("Modality", "RescaleType", "SOPClassUID")
    return any(str(dataset.get(name) or "").strip().upper() in CT_OR_PET for name in tags)


def _find_padding(path: Path, dataset: Any, raw: np.ndarray) -> np.ndarray | None:
    """Which of the stored values are padding; None for none.

    Integers are compared modulo 2^Bits Allocated, since some writers give Pixel Padding Value the wrong sign: 63536 is
    -2000. One that Bits Stored cannot hold is looked for in the words as they lie in the file.
    """
    lead = {("f", 4): "Float", ("f", 8): "DoubleFloat"}.get((raw.dtype.kind, raw.dtype.itemsize), "")
    ends = numbers(path, dataset, f"{lead}PixelPaddingValue", 1, nan=bool(lead))
    if not ends:
        return None
    if math.isnan(ends[0]):
        return np.isnan(raw) if np.isnan(raw).any() else None
    ends += numbers(path, dataset, f"{lead}PixelPaddingRangeLimit", 1)
    size, words = raw.dtype.itemsize, raw
    if not lead:
        wrapped = np.array([int(end) % 256**size for end in ends], f"u{size}").view(f"{raw.dtype.kind}{size}")
        ends = [int(end) for end in wrapped]
        with naming(path, "BitsStored"):
            held = _held_by(int(dataset.BitsStored), raw.dtype.kind == "i")
        if not all(end in held for end in ends):
            words = _decode(path, dataset, correct_unused_bits=False)
    padding = (words >= min(ends)) & (words <= max(ends))
    return padding if padding.any() else None


def _held_by(bits: int, signed: bool) -> range:
    """The integers that so many bits can hold."""
    return range(-(1 << (bits - 1)), 1 << (bits - 1)) if signed else range(1 << bits)


def _to_8_bit(colour: np.ndarray, dataset: Any) -> np.ndarray:
    if colour.dtype == np.uint8:
        return colour
    palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
    bits = 16 if palette else int(dataset.BitsStored)
    return (colour >> max(bits - 8, 0)).astype(np.uint8)


# Windows -------------------------------------------------------------------------------------------------------------


def _apply_window(
    path: Path, dataset: Any, values: np.ndarray, padding: np.ndarray | None, notes: Notes
) -> tuple[np.ndarray, float, float]:
    """Applies the file's VOI LUT or window. Returns the values, and those of black and of white.

    Without either, these are the lowest and the highest value that is not padding.
    """
    from pydicom.pixels import apply_voi, apply_windowing

    if dataset.get("VOILUTSequence"):
        with naming(path, "VOILUTSequence"):
            bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
            return apply_voi(np.rint(values).astype(np.int64), dataset), 0, 2**bits - 1
    if _has_window(path, dataset, notes):
        with naming(path, "WindowCenter", "WindowWidth"):
            low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
            return apply_windowing(values, dataset), float(low), float(high)
    some = values if padding is None or padding.all() else values[~padding]
    return values, float(some.min()), float(some.max())


def _has_window(path: Path, dataset: Any, notes: Notes) -> bool:
    """Whether the file has a window that can be used; if it cannot, a note says so."""
    given = {name: numbers(path, dataset, name)[:1] for name in ("WindowCenter", "WindowWidth")}
    if not any(given.values()):
        return False
    instead = "the whole range is shown"
    if missing := [name for name, first in given.items() if not first]:
        notes[Note(f"{missing[0]} is absent or empty: its window is not used, {instead}; {MEND}")] = None
        return False
    function = str(dataset.get("VOILUTFunction") or WINDOWS[0]).strip().upper()
    if function not in WINDOWS:
        raise UserError(f"{path}: VOILUTFunction {function!r} is none of {', '.join(WINDOWS)}; {MEND}")
    dataset.VOILUTFunction = function  # some writers add the field without a value
    (width,) = given["WindowWidth"]
    if width < 1 if function == "LINEAR" else width <= 0:
        least = "1 or more" if function == "LINEAR" else "above 0"
        notes[Note(f"WindowWidth must be {least}: {width:g} is not used, {instead}; {MEND}")] = None
        return False
    return True
