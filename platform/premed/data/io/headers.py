"""What the header of an image file says of its grid, without its values: of every kind that `readers` reads."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import aff2axcodes
from PIL import Image

from premed.data.io import dicom, dicom_series, geometry, nifti
from premed.data.io.readers import PICTURES, VOLUMES, decoding


class Header(NamedTuple):
    """A file, or a folder of DICOM slices. Of volumes along the axes R, A and S, of pictures height and width."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    """mm from voxel to voxel; () for pictures."""
    channels: int
    orientation: str = ""
    modality: str = ""
    """DICOM's word: CT, MR, DX; empty elsewhere."""
    patient: str = ""
    """DICOM's PatientID."""


def read_header(path: Path) -> Header:
    """Reads a header. Raises UserError like `readers.read_file`."""
    with decoding(path):
        if path.is_dir():
            with dicom.silence_pydicom():
                heads = dicom_series.read_heads(path)
                order, affine = dicom_series.series_geometry(path, heads, {})
            first = heads[order[0]]
            return _volume((int(first.Columns), int(first.Rows), len(order)), affine, first)
        name = path.name.lower()
        if name.endswith(VOLUMES):
            header = nifti.read_header(path)
            return _volume(header.get_data_shape(), nifti.affine_in_mm(header))
        if name.endswith(PICTURES):
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                grey = picture.mode in ("1", "L", "LA") or picture.mode.startswith("I")
                return Header(picture.size[::-1], (), 1 if grey else 3)
        with dicom.silence_pydicom():
            tags = dicom.read_dataset(path, stop_before_pixels=True)
        return Header((int(tags.Rows), int(tags.Columns)), (), int(tags.get("SamplesPerPixel", 1)), "", *_whose(tags))


def _volume(shape: tuple[int, ...], affine: np.ndarray, tags: Any = None) -> Header:
    """The header of a grid [*S] or [*S, C]."""
    size, channels = (*shape, 1, 1)[:3], int(np.prod(shape[3:], initial=1))
    oriented, _, turned = geometry.reorient(np.broadcast_to(np.int8(0), (1, *size)), None, affine, "RAS")
    spacing = tuple(np.linalg.norm(turned[:3, :3], axis=0).tolist())
    codes = "".join(map(str, aff2axcodes(affine)))
    return Header(oriented.shape[1:], spacing, channels, codes, *(_whose(tags) if tags is not None else ()))


def _whose(tags: Any) -> tuple[str, str]:
    """Modality and patient of a DICOM file."""
    return str(tags.get("Modality") or ""), str(tags.get("PatientID") or "")
