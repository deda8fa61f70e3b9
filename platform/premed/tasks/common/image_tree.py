"""Finds the images below a folder, whatever its layout: pictures, volumes, DICOM series; and classes by folder."""

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from premed.data.io import dicom
from premed.data.io.headers import read_header
from premed.data.io.readers import DICOM, PICTURES, VOLUMES
from premed.errors import UserError
from premed.safety.files import refuse_undecodable

PART_WORDS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "ts", "holdout", "hold-out", "heldout"),
}
"""How data sets call their parts."""
FOLDER_WORDS = {
    *("images", "image", "imgs", "img", "data", "scans", "volumes", "pictures", "files", "png", "jpg", "jpeg", "dicom"),
    *(
        "nifti",
        "raw",
        "labels",
        "label",
        "masks",
        "mask",
        "seg",
        "segmentation",
        "segmentations",
        "imagestr",
        "imagests",
    ),
    *("labelstr", "labelsts", "derivatives", "anat", "func", "dwi"),
}
"""Names of folders that say nothing of a class."""
MOST_CLASSES = 30
NUMBERED = re.compile(r".*\d{2,}|sub-.*|(patient|pat|p|case|subject|study|series|ses|visit)[-_ ]?\d+", re.IGNORECASE)
"""Names of patients, studies and series rather than of classes."""


@dataclass
class Tree:
    """Images by kind, as paths below the root with `/`, sorted."""

    root: Path
    pictures: list[str] = field(default_factory=list)
    """PNG, JPEG, DICOM of one frame."""
    volumes: list[str] = field(default_factory=list)
    """NIfTI, and folders of DICOM slices."""
    links: list[str] = field(default_factory=list)
    """Links to folders, which are not followed."""

    @property
    def names(self) -> list[str]:
        return sorted([*self.pictures, *self.volumes])

    @property
    def unfollowed(self) -> str:
        """What is left out by links, in words; empty if nothing is."""
        if not self.links:
            return ""
        more = (
            f" and {len(self.links) - 1} more are links to folders" if len(self.links) > 1 else " is a link to a folder"
        )
        return f"{min(self.links)}{more}, not followed: copy what is there, or name the folder that it leads to"

    def described(self) -> str:
        kinds = [(self.pictures, "picture"), (self.volumes, "volume")]
        return " and ".join(f"{len(some)} {kind}{'s' * (len(some) > 1)}" for some, kind in kinds if some)


def find_images(root: Path) -> Tree:
    """Returns all images below a folder. Of DICOM without a suffix, one file of each folder is opened to know it.

    Raises UserError for a folder that cannot be read, and for an image whose name is not UTF-8.
    """
    tree = Tree(root)
    for folder, below, files in os.walk(root, onerror=refuse_unreadable):
        below[:] = sorted(name for name in below if name[0] != ".")
        here = Path(folder).relative_to(root).as_posix()
        tree.links += [os.path.normpath(f"{here}/{name}") for name in below if os.path.islink(f"{folder}/{name}")]
        slices = list[str]()
        for file in sorted(name for name in files if name[0] != "."):
            name, lower = file if here == "." else f"{here}/{file}", file.lower()
            if lower.endswith(PICTURES):
                tree.pictures.append(name)
            elif lower.endswith(VOLUMES):
                tree.volumes.append(name)
            elif file != "DICOMDIR" and (lower.endswith(DICOM) or "." not in file):
                slices.append(name)
        known = [name for name in slices if name.lower().endswith(DICOM)] or slices
        first = next((root / name for name in known if (root / name).exists()), None)  # no link to nothing
        if first and dicom.is_dicom(first):
            if len(slices) > 1 and here != "." and is_slice(first):
                tree.volumes.append(here)
            else:
                tree.pictures += [name for name in slices if name in known or dicom.is_dicom(root / name)]
    tree.pictures.sort()
    tree.volumes.sort()
    for name in tree.names:
        refuse_undecodable(root / name)
    return tree


def refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}); its images would be missing")


def is_slice(path: Path) -> bool:
    """True if a DICOM file has a place in a volume; a radiograph has none."""
    try:
        with dicom.silence_pydicom():
            return "ImagePositionPatient" in dicom.read_dataset(path, stop_before_pixels=True)
    except UserError:
        return False


def stem(name: str) -> str:
    """Returns a path without the suffix of an image."""
    for suffix in sorted((*PICTURES, *VOLUMES, *DICOM), key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def part_of(word: str) -> str:
    """Returns the part that a word names; empty if it names none."""
    return next((part for part, words in PART_WORDS.items() if word.lower() in words), "")


@dataclass
class ClassFolders:
    """Images in folders that are called as their classes are: [train/]pneumonia/a.png."""

    classes: dict[str, str]
    """The class of each image."""
    parts: dict[str, str]
    """The part of each image; {} if no folder names parts."""


def class_folders(names: list[str]) -> ClassFolders | None:
    """Returns the classes that folders' names say; None if they say none.

    A class has two images at least, and there are 2 to MOST_CLASSES of them: many folders of few images are patients.
    Above the folders of classes are those of parts alone.
    """
    levels: dict[int, Counter[str]] = defaultdict(Counter)
    for name in names:
        for level, word in enumerate(PurePosixPath(name).parts[:-1]):
            levels[level][word] += 1
    depth = min((len(PurePosixPath(name).parts) - 1 for name in names), default=0)
    part_level = next(
        (n for n in range(depth) if all(part_of(word) for word in levels[n]) and len(levels[n]) > 1), None
    )
    for level in range(depth):
        counts = levels[level]
        if level == part_level or len(counts) == 1:
            continue
        if is_classes(counts):
            split = [PurePosixPath(name).parts for name in names]
            classes = {name: parts[level] for name, parts in zip(names, split, strict=True)}
            parts = {} if part_level is None else {n: part_of(p[part_level]) for n, p in zip(names, split, strict=True)}
            return ClassFolders(classes, parts)
        break  # below folders of patients, names are of visits or views
    return None


def is_classes(counts: Counter[str]) -> bool:
    """True if folders of these names, with so many images each, look like classes."""
    numbered = sum(bool(NUMBERED.fullmatch(word)) for word in counts) > len(counts) / 2
    named = any(word.lower() in FOLDER_WORDS or part_of(word) for word in counts)
    rather_patients = min(counts.values()) < 5 < len(counts)
    fits = 2 <= len(counts) <= MOST_CLASSES and min(counts.values()) > 1
    return fits and not numbered and not named and not rather_patients


def patients_of_dicom(root: Path, names: list[str]) -> dict[str, str]:
    """Returns PatientID by image; {} unless all have one. Opens the header of each file (of a folder, of one)."""
    patients = {}
    for name in names:
        path = root / name
        try:
            if path.is_dir():
                path = next(file for file in dicom.slice_files(path) if dicom.is_dicom(file))
            patients[name] = read_header(path).patient
        except (UserError, StopIteration):
            return {}
    return patients if all(patients.values()) else {}
