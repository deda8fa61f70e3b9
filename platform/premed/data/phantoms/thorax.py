"""Chest phantoms in a folder such as a hospital's: PNG, DICOM or CT volumes, and a table of pneumonia labels.

`chest.py` draws the X-rays; the CT is `torso.py`'s trunk at the height of the lungs.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import from_matvec

from premed.data.phantoms.chest import chest
from premed.data.phantoms.shapes import between, blend, field_of, soft, tube
from premed.data.phantoms.torso import CAVITY, WALL, Body, blob, dome, ring, scan, trunk
from premed.data.phantoms.writers import create_folder, save_nifti, save_png
from premed.errors import UserError
from premed.rng import SampleRng, key

TABLE = "labels.csv"
PNEUMONIC = ("Pneumonia", "Consolidation", "Infiltration")
"""The X-ray findings that the table labels as pneumonia; the other eleven are distractors."""
WATER = 20.0  # Hounsfield units of a filled air space


def thorax(
    draw: SampleRng, shape: Sequence[int] | None = None, prevalence: float = 0.4
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Draws a CT of the chest.

    Returns image [X, Y, Z] int16 in Hounsfield units in RAS order, affine [4, 4] mm, and whether it shows pneumonia:
    filled air spaces, of any size and density down to the invisible. Nodules and effusions are distractors. `shape`
    covers about 400 × 400 × 230 mm; None: 64 × 64 × 48.
    """
    shape = tuple(shape or (64, 64, 48))
    build = np.array([between(draw, "width", 0.88, 1.12), between(draw, "depth", 0.86, 1.14), 1.0])
    build *= between(draw, "stature", 0.93, 1.07)
    flesh = between(draw, "fat", 8, 30)  # mm of subcutaneous fat
    low, high = between(draw, "lowest", 10, 60), between(draw, "highest", 235, 285)  # standard mm
    field = np.array([2 * (max(WALL) + flesh) * build[0] * between(draw, "field", 1.04, 1.16)] * 2 + [0.0])
    field[2] = (high - low) * build[2]
    spacing = field / shape
    middle = np.array([*draw.uniform("middle", 2, -8, 8), (low + high) / 2 * build[2]])
    axes = [
        ((np.arange(n) - (n - 1) / 2) * step + m) / s
        for n, step, m, s in zip(shape, spacing, middle, build, strict=True)
    ]
    warp = np.stack([6.0 * field_of(draw, f"warp {axis}", shape, field, 30) for axis in range(3)])
    contrast = between(draw, "contrast", 0.4, 1.0) if draw.chance("enhanced", 0.5) else 0.05
    edge = 0.6 * float(np.cbrt(np.prod(spacing)))
    patient = Body(draw, axes, warp, np.full(shape, -1000, np.float32), np.zeros(shape, np.uint8), edge, contrast)
    trunk(patient, flesh, field)
    inside = _mediastinum(patient)
    ill = draw.chance("pneumonia", prevalence)
    if draw.chance("effusion", 0.15):
        points = patient.points((slice(None),) * 3)
        depth = between(draw, "effusion depth", 8, 40) - (points[1] + 80)  # the patient is supine: it pools posteriorly
        patient.paint((slice(None),) * 3, np.minimum(inside, depth), between(draw, "effusion density", 0, 25))
    if draw.chance("nodule", 0.25):
        patient.paint((slice(None),) * 3, *_nodule(patient, inside))
    if ill:
        _clouds(patient, inside, field)
    source = middle - (np.array(shape) - 1) / 2 * spacing
    return scan(patient, spacing), from_matvec(np.diag(spacing), source), ill


def _mediastinum(patient: Body) -> np.ndarray:
    """Draws mediastinum, lung vessels and lung apices. Returns the level [X, Y, Z], positive inside the lungs."""
    draw, everywhere = patient.draw, (slice(None),) * 3
    points = patient.points(everywhere)
    blood = 45 + 90 * patient.contrast
    wide = between(draw, "mediastinum", 20, 28)
    stem = blob(points, (0, 2, 150), (wide, 62, 400), 2.4)
    heart = blob(points, (-28, 42, 132), (62, 44, 46))
    top = 268 + between(draw, "apex", -14, 10) - np.hypot(points[0] * 0.55, points[1] * 0.6) - points[2]
    inside = np.minimum.reduce([ring(points, CAVITY) + 5, -dome(points), top, -stem, -heart])
    patient.paint(everywhere, np.minimum(ring(points, CAVITY) + 7, -top), 50.0)  # the shoulders
    patient.paint(everywhere, np.minimum(stem, -dome(points)), -20.0)
    aorta = [(-12, -22, 0), (-16, -24, 190), (-4, 4, 222), (12, 22, 190), (10, 20, 150)]
    patient.paint(everywhere, tube(points, aorta, [12, 12, 14, 15, 15]), blood)
    windpipe = tube(points, [(0, -2, 290), (0, -6, 205)], [8.5, 8.5])
    patient.paint(everywhere, windpipe, -990.0)
    for side in (-1, 1):
        hilum = np.array((24 * side, -4, 176))
        for branch in range(6):
            reach = draw.uniform(f"vessel {side} {branch}", 3, -1, 1) * (34, 62, 70)
            end = hilum + (58 * side + reach[0], reach[1], reach[2])
            level = tube(points, [hilum, (hilum + end) / 2 + reach * 0.1, end], [6.0, 3.5, 1.2])
            patient.paint(everywhere, np.minimum(level, inside + 3), blood)
    return inside


def _nodule(patient: Body, inside: np.ndarray) -> tuple[np.ndarray, float]:
    """The level and the density of a round nodule in a lung."""
    centre = _spot(patient, inside, "nodule")
    radius = between(patient.draw, "nodule size", 5, 14)
    points = patient.points((slice(None),) * 3)
    return np.minimum(blob(points, centre, (radius,) * 3), inside), between(patient.draw, "nodule density", 10, 70)


def _clouds(patient: Body, inside: np.ndarray, field: np.ndarray) -> None:
    """Draws one to three uneven, partly filled regions: ground glass as well as consolidation."""
    draw, points = patient.draw, patient.points((slice(None),) * 3)
    lumps = field_of(draw, "lumps", patient.image.shape, field, between(draw, "lump size", 8, 22))
    for number in range(1 + draw.integer("clouds", 3)):
        cloud = draw.child(f"cloud {number}")
        centre, radius = _spot(patient, inside, f"cloud {number}"), between(cloud, "radius", 16, 52)
        level = np.minimum(blob(points, centre, (radius, radius * 1.1, radius)) + 7 * lumps, inside)
        filled = between(cloud, "filled", 0.25, 0.95) * soft(level, 6.0) * soft(lumps + 0.6, 1.2)
        patient.image[:] = blend(patient.image, np.maximum(patient.image, WATER), filled)


def _spot(patient: Body, inside: np.ndarray, name: str) -> np.ndarray:
    """A random point in a lung, in standard mm."""
    deep = np.flatnonzero(inside > 6) if (inside > 6).any() else np.array([int(inside.argmax())])
    at = np.unravel_index(int(deep[patient.draw.integer(f"{name} spot", len(deep))]), inside.shape)
    return patient.points((slice(None),) * 3)[:, *at]


# Folders -------------------------------------------------------------------------------------------------------------


def write_images(
    folder: Path | str,
    num_patients: int,
    seed: int,
    kind: str = "png",
    size: int = 64,
    num_unlabelled: int = 0,
) -> Path:
    """Writes chests and `labels.csv`: path, patient, pneumonia (1 or 0). The task splits the patients into parts.

    kind: `png` and `dicom`, X-rays [size, size], one to three per patient (DICOM: 12 bits, some MONOCHROME1, some files
    without a suffix); `nifti`, one CT [size, size, 3/4 size] per patient, in several orientations. About a third show
    pneumonia. num_unlabelled: further patients, with empty labels.
    """
    if kind not in WRITERS:
        raise UserError(f"kind: {kind} is none of {', '.join(WRITERS)}")
    folder = create_folder(folder, TABLE, "num_patients", num_patients, 2, seed)
    rows = []
    for number in range(num_patients + num_unlabelled):
        patient = f"p{number + 1:04d}"
        for path, ill in WRITERS[kind](folder, patient, SampleRng(key(seed, "clinic", number)), size):
            rows.append([path, patient, int(ill) if number < num_patients else ""])
    with open(folder / TABLE, "w", newline="") as file:
        csv.writer(file).writerows([["path", "patient", "pneumonia"], *rows])
    return folder


def radiographs(draw: SampleRng, size: int) -> Iterator[tuple[int, np.ndarray, bool]]:
    """A patient's X-rays: number of the visit, [size, size] uint8, and whether it shows pneumonia."""
    for visit in range(1 + draw.integer("visits", 3)):
        image, findings = chest(draw.child(visit), size, patient=draw)
        yield visit, image, any(findings[name] for name in PNEUMONIC)


def _pngs(folder: Path, patient: str, draw: SampleRng, size: int) -> Iterator[tuple[str, bool]]:
    for visit, image, ill in radiographs(draw, size):
        path = f"images/{patient}_{visit}.png"
        (folder / path).parent.mkdir(exist_ok=True)
        save_png(image, folder / path)
        yield path, ill


def _dicoms(folder: Path, patient: str, draw: SampleRng, size: int) -> Iterator[tuple[str, bool]]:
    """X-rays as DICOM, which differ as detectors do: photometric interpretation, slope, window, suffix."""
    inverted, no_suffix = draw.chance("MONOCHROME1", 0.4), draw.chance("no suffix", 0.3)
    slope, intercept = ((1.0, 0.0), (0.5, -100.0), (2.0, 10.0))[draw.integer("detector", 3)]
    for visit, image, ill in radiographs(draw, size):
        path = f"studies/{patient}/{visit}/IM0001{'' if no_suffix else '.dcm'}"
        share = image.astype(np.float32) / 255
        stored = np.rint(300 + 3000 * (1 - share if inverted else share)).astype(np.uint16)
        centre, width = slope * 1800 + intercept, slope * 3000
        fields = {"PatientID": patient, "Modality": "DX", "ImagerPixelSpacing": [360 / size] * 2}
        fields |= {"PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2"}
        fields |= {"RescaleSlope": slope, "RescaleIntercept": intercept, "WindowCenter": centre, "WindowWidth": width}
        save_dicom(stored, folder / path, fields)
        yield path, ill


def _volumes(folder: Path, patient: str, draw: SampleRng, size: int) -> Iterator[tuple[str, bool]]:
    image, affine, ill = thorax(draw, (size, size, size * 3 // 4))
    path = f"volumes/{patient}.nii.gz"
    (folder / path).parent.mkdir(exist_ok=True)
    save_nifti(image, affine, ("LAS", "LPS", "RAS", "LPI")[draw.integer("orientation", 4)], folder / path)
    yield path, ill


WRITERS: dict[str, Callable[[Path, str, SampleRng, int], Iterator[tuple[str, bool]]]] = {
    "png": _pngs,
    "dicom": _dicoms,
    "nifti": _volumes,
}


def save_dicom(pixels: np.ndarray, path: Path, fields: Mapping[str, Any]) -> None:
    """Writes 12-bit grey values [H, W] uint16 as a digital X-ray with further `fields`; reproducible bytes."""
    from pydicom import dcmwrite
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[pixels.tobytes().hex()])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *pixels.shape, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, dataset, enforce_file_format=True)
