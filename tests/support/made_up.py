"""Files that tests make up: DICOM pictures and series."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def dicom(path: Path, pixels: np.ndarray, kind: str, **fields: Any) -> Path:
    """One frame of 12 or 16 bits, with more fields by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.PixelRepresentation = 16, int(pixels.dtype.kind == "i")
    dataset.BitsStored, dataset.HighBit = (16, 15) if dataset.PixelRepresentation else (12, 11)
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def radiograph(path: Path, pixels: np.ndarray, inverted: bool = False, **fields: Any) -> Path:
    """uint16 [H, W] below 4096."""
    shown = {"PhotometricInterpretation": "MONOCHROME1"} if inverted else {}
    return dicom(path, pixels, DigitalXRayImageStorageForPresentation, **shown, **fields)


def ct_series(
    folder: Path,
    values: np.ndarray,
    spacing: tuple[float, float, float] = (2.0, 2.5, 3.0),
    along: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    tilt: float = 0.0,
    order: Any = None,
) -> Path:
    """Hounsfield units int16 [X, Y, Z] as slices. order: the number of each slice's file; tilt: mm of y per slice."""
    row, column = np.array(along, float).reshape(2, 3)
    normal, series = np.cross(row, column), generate_uid(entropy_srcs=[str(folder)])
    for k in range(values.shape[2]):
        number = k if order is None else order[k]
        place = np.array([-50.0, -40.0, 7.0]) + normal * k * spacing[2] + column * k * tilt
        dicom(
            folder / f"slice{number:03d}.dcm",
            (values[..., k].T + 1024).astype(np.int16),
            CTImageStorage,
            SeriesInstanceUID=series,
            ImagePositionPatient=[round(x, 6) for x in place.tolist()],
            ImageOrientationPatient=list(along),
            PixelSpacing=[spacing[1], spacing[0]],
            RescaleSlope=1,
            RescaleIntercept=-1024,
            InstanceNumber=number + 1,
        )
    return folder
