"""Folders of images as hospitals and downloads have them, for `premed init`."""

import csv
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from support.made_up import ct_series

from premed.data.phantoms import abdomen, brain, thorax, writers
from premed.data.phantoms.hippocampus import hippocampus
from premed.rng import SampleRng, key

rng = np.random.default_rng(0)


def table(path: Path, rows: Sequence[Sequence[object]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def picture(path: Path, bright: int = 0, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(bright, bright + 100, size).astype(np.uint8)).save(path)


def volume(path: Path, values: np.ndarray, spacing: Sequence[float] = (1, 1, 1)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*spacing, 1.0])), path)


def scan(path: Path, label: Path | None = None, number: int = 0) -> None:
    """A made-up hippocampus, and its label map."""
    image, labels, affine = hippocampus(SampleRng(key(number, "scan")), (18, 20, 16))
    for file, values in ((path, image), (label, labels)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, affine), file)


def nnunet(root: Path) -> None:
    writers.write_nnunet(root, 8, 0, num_unlabelled=2, shape=(24, 24, 24))


def msd(root: Path) -> None:
    writers.write_msd(root, 8, 0, num_unlabelled=2, shape=(24, 24, 24))


def brats(root: Path) -> None:
    brain.write_brats(root, 8, 0, shape=(24, 24, 24))


def btcv(root: Path) -> None:
    abdomen.write_btcv(root, 30, 0, shape=(24, 24, 24))


def chestxray14(root: Path) -> None:
    writers.write_chestxray14(root, 16, 0, size=32)


def pngs(root: Path) -> None:
    thorax.write_images(root, 12, 0, "png", 32)


def dicoms(root: Path) -> None:
    thorax.write_images(root, 12, 0, "dicom", 32)


def niftis(root: Path) -> None:
    thorax.write_images(root, 10, 0, "nifti", 24)


def series(root: Path) -> None:
    """CT series of DICOM slices in folders of classes."""
    for number in range(8):
        values = rng.integers(-1000, 400, (12, 14, 6)).astype(np.int16)
        ct_series(root / ("covid" if number % 2 else "normal") / f"p{number:02d}", values, PatientID=f"P{number}")


def kaggle(root: Path) -> None:
    """train/NORMAL/a.png: folders of parts and of classes, without a patient, and a val of two pictures."""
    for part, num in (("train", 6), ("test", 3)):
        for number in range(num):
            picture(root / part / "NORMAL" / f"IM-{part}-{number:04d}.png")
            picture(root / part / "PNEUMONIA" / f"person{part}{number}.jpeg", 100)


def bare_names(root: Path) -> None:
    """A table with `;` whose names lack folder and suffix, findings separated by `|`, and one image without a row."""
    findings = ("No Finding", "Mass|Effusion", "Mass", "Effusion")
    rows = [[f"x{n:03d}", f"p{n // 2}", 20 + n, "MF"[n % 2], findings[n // 2 % 4]] for n in range(16)]
    table(root / "findings.csv", [["Image Index", "Patient ID", "Age", "Sex", "Finding Labels"], *rows], ";")
    for number in range(17):
        picture(root / "pictures" / f"x{number:03d}.png", 5 * number)


def bids_diagnoses(root: Path) -> None:
    """A scan of each subject, some of two sessions; participants.tsv has age, sex and a diagnosis."""
    rows = [[f"sub-{n:02d}", 60 + n, "MF"[n % 2], ("AD", "CN")[n // 2 % 2]] for n in range(10)]
    table(root / "participants.tsv", [["participant_id", "age", "sex", "diagnosis"], *rows], "\t")
    (root / "dataset_description.json").write_text('{"Name": "made up"}')
    for number in range(10):
        for session in ("1", "2")[: 1 + number % 2]:
            name = f"sub-{number:02d}_ses-{session}"
            scan(root / f"sub-{number:02d}/ses-{session}/anat/{name}_T1w.nii.gz", number=10 * number + int(session))
            if number == 0:
                scan(root / f"sub-{number:02d}/ses-{session}/anat/{name}_T2w.nii.gz")


def bids_masks(root: Path) -> None:
    """Label maps among the derivatives: lesions of seven subjects, and the brain of all eight."""
    table(root / "participants.tsv", [["participant_id", "age"], *[[f"sub-{n:02d}", 60 + n] for n in range(8)]], "\t")
    for number in range(8):
        name, below = f"sub-{number:02d}", root / f"derivatives/manual/sub-{number:02d}/anat"
        mask = below / f"{name}_label-lesion_mask.nii.gz"
        scan(root / name / "anat" / f"{name}_T1w.nii.gz", mask if number < 7 else None, number)
        volume(root / f"derivatives/prep/{name}/anat/{name}_desc-brain_mask.nii.gz", np.ones((18, 20, 16), np.uint8))


def side_by_side(root: Path) -> None:
    """images/ and labels/ without a list, and two images without a label map."""
    for number in range(8):
        label = root / "labels" / f"case{number:02d}.nii.gz"
        scan(root / "images" / f"case{number:02d}.nii.gz", label if number < 6 else None, number)


def case_folders(root: Path) -> None:
    """A folder for each case, with a file for each channel and one of the labels."""
    for number in range(6):
        case = root / f"UCSF_{number:03d}"
        scan(case / f"UCSF_{number:03d}_t1.nii.gz", case / f"UCSF_{number:03d}_seg.nii.gz", number)
        scan(case / f"UCSF_{number:03d}_flair.nii.gz", None, number)
