"""The layout of the Medical Segmentation Decathlon: parses a folder's `dataset.json`."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from premed.contracts import Case
from premed.errors import Finding, UserError
from premed.tasks.common.files import is_nnunet, path_error, read_json
from premed.tasks.common.labels import Labels, parse_labels
from premed.tasks.common.patients import patient_of, patients_alike, several_scans

PARTS: tuple[Literal["training", "test"], ...] = ("training", "test")
PATIENT_FIELDS = ("patient", "patient_id", "patientID", "subject", "subject_id")
"""Fields of an entry that are likely to name its patient."""


class ListedCase(NamedTuple):
    """A case, and the list of `dataset.json` that contains it."""

    case: Case
    part: Literal["training", "test"]

    @property
    def on_disk(self) -> bool:
        """True if all of its files exist."""
        return all(path.is_file() for path in self.case.files)


class Listing(NamedTuple):
    """The entries of `training` and `test`, in the file's order, and their faults."""

    cases: list[ListedCase]
    missing_unlabelled: list[Path]
    """Unlabelled images of `test` that are not on disk: the decathlon also lists images that were not downloaded."""
    faults: list[Finding]


def case_names(content: Mapping[str, Any]) -> dict[str, str]:
    """Returns the case name of each listed image: its file name without suffix, or its path where file names repeat."""
    entries = [entry for part in PARTS for entry in entries_of(content, part)]
    images = [entry.get("image") if isinstance(entry, dict) else entry for entry in entries]
    paths = {image: os.path.normpath(image) for image in images if isinstance(image, str)}
    counts = Counter(stem(PurePath(path).name) for path in set(paths.values()))
    return {
        image: stem(path) if counts[stem(PurePath(path).name)] > 1 else stem(PurePath(path).name)
        for image, path in paths.items()
    }


def entries_of(content: Mapping[str, Any], part: str) -> list[Any]:
    """Returns the entries that the file lists under `part`; none if that is not a list."""
    return entries if isinstance(entries := content.get(part), list) else []


def stem(name: str) -> str:
    """Returns a file name without .nii or .nii.gz, in small letters or capitals."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", name, count=1, flags=re.IGNORECASE)


class Decathlon:
    """A folder with a `dataset.json`, which is parsed once, when first used. Raises UserError if it is invalid."""

    def __init__(self, root: Path, patient: str | None = None):
        """patient: `task.patient`, a `PatientRule`."""
        self.root, self.listing, self.real_root = root, root / "dataset.json", root.resolve()
        self.patient = patient

    @cached_property
    def content(self) -> dict[str, Any]:
        missing = f"{self.listing} is missing: task.root must be a folder in the decathlon's layout"
        content = read_json(self.listing, missing)
        if not isinstance(content, dict):
            raise UserError(f"{self.listing}: must be an object with `labels`, `modality` and `training`")
        if is_nnunet(self.root, content):
            what = "is of nnU-Net's raw layout (a file per channel: CASE_0000.nii.gz)"
            raise UserError(f"{self.listing}: {what}; set task.name=nnunet")
        return content

    @cached_property
    def names(self) -> dict[str, str]:
        return case_names(self.content)

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return len(self.channel_names)

    @cached_property
    def channel_names(self) -> tuple[str, ...]:
        """The names of an image's channels, in the file's order."""
        channels = self.content.get("modality", self.content.get("channel_names"))
        if not isinstance(channels, dict) or not channels:
            raise UserError(f"{self.listing}: `modality` must name each channel, as in {{0: MRI}}")
        return tuple(map(str, channels.values()))

    @cached_property
    def labels(self) -> Labels:
        """What the values of label maps mean."""
        return parse_labels(self.listing, self.content.get("labels"))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.labels.classes

    @cached_property
    def entries(self) -> Listing:
        """All entries. Of several cases with one name the first is kept, and the others are faults."""
        cases: dict[str, ListedCase] = {}
        missing_unlabelled, faults = list[Path](), list[Finding]()
        if not self.content.keys() & PARTS:
            faults.append(Finding.of(self.no_labels()))
        for part in PARTS:
            entries = self.content.get(part, [])
            if not isinstance(entries, list):
                what = f"`{part}` must be a list of {{image: …, label: …}}, not {json.dumps(entries)[:40]}"
                faults.append(Finding("error", str(self.listing), what))
                continue
            for entry in entries:
                try:
                    case = self.case(entry)
                except UserError as error:
                    faults.append(Finding.of(error))
                    continue
                if part == "test" and case.label is None and not case.image[0].is_file():
                    missing_unlabelled.append(case.image[0])
                elif case.name in cases:
                    faults.append(Finding("error", str(self.listing), f"{case.name} is listed twice; keep one"))
                else:
                    cases[case.name] = ListedCase(case, part)
        if self.patient is not None:
            named = (each.case.patient for each in cases.values())
            faults += [Finding("error", str(self.listing), what) for what in patients_alike(named)]
        return Listing(list(cases.values()), missing_unlabelled, faults)

    def patient_notes(self) -> Iterator[Finding]:
        """Yields a note if nothing says whose the images are, and the file suggests that a patient has several."""
        if self.patient is not None:
            return
        entries = [entry for part in PARTS for entry in entries_of(self.content, part) if isinstance(entry, dict)]
        if named := [field for field in PATIENT_FIELDS if any(field in entry for entry in entries)]:
            what = f"entries have a field {named[0]!r}, and each image counts as a patient: set task.patient={named[0]}"
            yield Finding("note", str(self.listing), what)
        elif what := several_scans(each.case.name for each in self.entries.cases):
            yield Finding("note", str(self.listing), what)

    def no_labels(self) -> UserError:
        """The error for a folder without a labelled case, where labels are needed."""
        if "training" not in self.content:
            return UserError(f"{self.listing}: `training` is missing: list each case there, as {{image: …, label: …}}")
        return UserError(f"{self.listing}: no entry has a label; these images can only be pre-trained on")

    def case(self, entry: object) -> Case:
        """Returns the case of one entry. Raises UserError if the entry is invalid."""
        entry = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise UserError(f"{self.listing}: {entry!r} names no image; an entry must be {{image: …, label: …}}")
        if not isinstance(entry.get("label") or "", str):
            raise UserError(f"{self.listing}: {entry!r} names no label file; an entry must be {{image: …, label: …}}")
        image = self.resolve(entry["image"])
        label = self.resolve(entry["label"]) if entry.get("label") else None
        name = self.names[entry["image"]]
        return Case(name, patient_of(self.patient, name, entry), (image,), label)

    def resolve(self, file: str) -> Path:
        """Returns the path of a listed file. Raises UserError if it is outside the folder."""
        if wrong := path_error(self.root, self.real_root, file):
            raise UserError(f"{self.listing}: {wrong}")
        return self.root / file
