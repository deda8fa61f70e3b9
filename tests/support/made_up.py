"""Files that tests make up: NIfTI with any header, DICOM pictures and series."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def nifti(path: Path, stored: np.ndarray, order: str = "<", version: int = 1, **fields: Any) -> Path:
    """A file with these voxels and header fields, as they are: nothing is checked, nothing else is set.

    sform: four rows or three, for srow_x, srow_y and srow_z.
    """
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(endianness=order)
    header.set_data_dtype(stored.dtype.newbyteorder(order))
    header["dim"][: stored.ndim + 1] = stored.ndim, *stored.shape
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    if "sform" in fields:
        header["srow_x"], header["srow_y"], header["srow_z"] = np.asarray(fields.pop("sform"))[:3]
    for name, value in fields.items():
        header[name].flat[: np.size(value)] = value  # of pixdim, often the first four alone
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.binaryblock + bytes(4) + stored.astype(stored.dtype.newbyteorder(order)).tobytes(order="F"))
    return path


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
        if isinstance(value, DataElement):  # with a VR that pydicom would not choose
            dataset.add(value)
        else:
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
    **fields: Any,
) -> Path:
    """Hounsfield units int16 [X, Y, Z] as slices. order: the number of each slice's file; tilt: mm of y per slice.

    fields: more tags, the same in each slice, or others.
    """
    row, column = np.array(along, float).reshape(2, 3)
    normal, series = np.cross(row, column), generate_uid(entropy_srcs=[str(folder)])
    for k in range(values.shape[2]):
        number = k if order is None else order[k]
        place = np.array([-50.0, -40.0, 7.0]) + normal * k * spacing[2] + column * k * tilt
        tags = {
            "SeriesInstanceUID": series,
            "ImagePositionPatient": [round(x, 6) for x in place.tolist()],
            "ImageOrientationPatient": list(along),
            "PixelSpacing": [spacing[1], spacing[0]],
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            "InstanceNumber": number + 1,
        }
        stored = (values[..., k].T + 1024).astype(np.int16)
        dicom(folder / f"slice{number:03d}.dcm", stored, CTImageStorage, **tags | fields)
    return folder
