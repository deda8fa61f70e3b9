"""Writes phantoms in the layouts of real data sets, for the demo and the tests."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from premed.data.phantoms.chest import FINDINGS, chest
from premed.data.phantoms.hippocampus import hippocampus
from premed.errors import UserError
from premed.rng import SampleRng, key, permutation

Mapper = Callable[[Callable[[int], list], Iterable[int]], Iterable[list]]
"""As `map`: what a writer draws its cases with, in this process or in several; the results are in order."""


def write_chestxray14(
    folder: Path | str, num_patients: int, seed: int, size: int = 64, prevalence: float = 0.15, mapper: Mapper = map
) -> Path:
    """Writes chests in NIH's layout: 1-5 pictures per patient, the CSV, two lists by patient (a quarter is test)."""
    folder = create_folder(folder, "Data_Entry_2017_v2020.csv", "num_patients", num_patients, 2, seed)
    (folder / "images").mkdir(exist_ok=True)
    test_patients = set(permutation(key(seed, "test list"), num_patients)[: max(1, num_patients // 4)].tolist())
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    draw = partial(_draw_chests, folder, seed, size, prevalence)
    rows = [row for rows in mapper(draw, range(num_patients)) for row in rows]
    for name, *_, patient in (row[:4] for row in rows):
        lists["test_list.txt" if patient - 1 in test_patients else "train_val_list.txt"].append(name)
    for name, images in lists.items():
        (folder / name).write_text("".join(f"{image}\n" for image in images))
    columns = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    # the commas in brackets make two columns of each for a CSV reader, as in the real file
    columns += ",OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    with open(folder / "Data_Entry_2017_v2020.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return folder


def _draw_chests(folder: Path, seed: int, size: int, prevalence: float, number: int) -> list[list]:
    """Writes the pictures of one patient, and returns their rows of the CSV."""
    rows, patient = [], SampleRng(key(seed, "chest", number))
    age, gender = 20 + patient.integer("age", 65), "F" if patient.chance("female", 0.5) else "M"
    for visit in range(1 + patient.integer("visits", 5)):
        draw = patient.child(visit)
        name = f"{number + 1:08d}_{visit:03d}.png"
        image, findings = chest(draw, size, patient=patient, prevalence=prevalence)
        save_png(image, folder / "images" / name)
        labels = "|".join(label for label in FINDINGS if findings[label]) or "No Finding"
        view = "PA" if draw.chance("view", 0.6) else "AP"
        rows.append([name, labels, visit, number + 1, age, gender, view, size, size, 360 / size, 360 / size])
    return rows


def write_msd(
    folder: Path | str, num_cases: int, seed: int, num_unlabelled: int = 0, shape: Sequence[int] | None = None
) -> Path:
    """Writes hippocampi in the layout of MSD's Task04: `num_cases` with a label, then `num_unlabelled` without.

    The files are in several orientations (RAS, LPS, and with permuted axes), as float32 or int16.
    """
    folder = create_folder(folder, "dataset.json", "num_cases", num_cases + num_unlabelled, 1, seed)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(exist_ok=True)
    entries = []
    for number in range(num_cases + num_unlabelled):
        draw = SampleRng(key(seed, "hippocampus", number))
        image, label, affine = hippocampus(draw, shape)
        name = f"hippocampus_{number + 1:03d}.nii.gz"
        axes = ("RAS", "RAS", "LPS", "ASR")[draw.integer("orientation", 4)]
        if draw.chance("whole numbers", 0.5):
            image = np.round(image).astype(np.int16)
        save_nifti(image, affine, axes, folder / "imagesTr" / name)
        entries.append({"image": f"./imagesTr/{name}"})
        if number < num_cases:
            save_nifti(label, affine, axes, folder / "labelsTr" / name)
            entries[-1]["label"] = f"./labelsTr/{name}"
    about = {"name": "Hippocampus", "description": f"Made-up hippocampi of premed, seed {seed}", "reference": "premed"}
    about |= {"licence": "none needed", "release": "1.0", "tensorImageSize": "3D", "modality": {"0": "MRI"}}
    about |= {"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    about |= {"numTraining": len(entries), "numTest": 0, "training": entries, "test": []}
    (folder / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder


def write_nnunet(
    folder: Path | str, num_cases: int, seed: int, num_unlabelled: int = 0, shape: Sequence[int] | None = None
) -> Path:
    """Writes hippocampi in the layout of nnU-Net's raw data: `num_cases` to train on, `num_unlabelled` in imagesTs."""
    folder = create_folder(folder, "dataset.json", "num_cases", num_cases + num_unlabelled, 1, seed)
    for number in range(num_cases + num_unlabelled):
        image, label, affine = hippocampus(SampleRng(key(seed, "hippocampus", number)), shape)
        name, part = f"hippocampus_{number + 1:03d}", "Tr" if number < num_cases else "Ts"
        files = {f"images{part}/{name}_0000.nii.gz": image} | (
            {f"labelsTr/{name}.nii.gz": label} if number < num_cases else {}
        )
        for path, voxels in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            save_nifti(voxels, affine, "RAS", folder / path)
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Anterior": 1, "Posterior": 2}}
    about |= {"numTraining": num_cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder


def create_folder(folder: Path | str, index: str, field: str, count: int, least: int, seed: int) -> Path:
    """Creates the folder of a phantom data set and marks it with PHANTOMS.txt.

    UserError if `count` is below `least`, or if the folder holds an `index` file that premed did not write.
    """
    folder = Path(folder)
    if count < least:
        raise UserError(f"{field}: {count} is too few: give at least {least}")
    if (folder / index).exists() and not (folder / "PHANTOMS.txt").exists():
        raise UserError(f"{folder}: holds a {index} that premed did not write: name another folder for phantoms")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "PHANTOMS.txt").write_text(
        f"Made-up images drawn by premed with seed {seed}: no patient is behind them.\n"
    )
    return folder


def save_png(image: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(image).save(path)


def save_nifti(voxels: np.ndarray, affine: np.ndarray, axes: str, path: Path) -> None:
    """Writes RAS voxels with their axes in the order and direction of `axes`."""
    stored = nib.Nifti1Image(voxels, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
    stored = stored.as_reoriented(turn.tolist())
    stored.header.set_xyzt_units("mm")
    stored.set_sform(stored.affine, 1)
    stored.set_qform(stored.affine, 1)
    nib.save(stored, path)
