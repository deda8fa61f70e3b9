"""Made-up CTs with 13 labelled organs, as premed and its peers read them."""

from pathlib import Path

import numpy as np

from premed.config.image_processing import Preprocessing
from premed.contracts import Case
from premed.data.phantoms.abdomen import abdomen
from premed.data.phantoms.writers import save_nifti
from premed.rng import SampleRng, key

WINDOW = (-175.0, 250.0)  # Hounsfield units: SelfMedMAE's for BTCV
PREPROCESSING = Preprocessing(dims=3, window=WINDOW, normalise="window")


def ct(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """An image [*shape] float32, WINDOW to [0, 1], and its label map [*shape] uint8."""
    image, label, _ = abdomen(SampleRng(key("bench", "ct")), shape)
    low, high = WINDOW
    return ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32), label


def write_ct(folder: Path, shape: tuple[int, ...]) -> Case:
    """Writes an image and its label map as NIfTI, of 1.5 mm."""
    image, label, _ = abdomen(SampleRng(key("bench", "ct")), shape)
    paths = folder / "image.nii.gz", folder / "label.nii.gz"
    for path, voxels in zip(paths, (image, label), strict=True):
        save_nifti(voxels, np.diag([1.5, 1.5, 1.5, 1]), "RAS", path)
    return Case("ct", "ct", (paths[0],), paths[1])
