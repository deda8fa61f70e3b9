"""Any folder of images without labels, for pre-training: pictures (PNG, JPEG, DICOM) or volumes (NIfTI, DICOM series).

No table lists them: all of a kind below the root are used, but for what `exclude` names. A DICOM series is a volume,
wherever its slices lie. Whose an image is, DICOM says (PatientID), or `patient`, a pattern over paths; a share of the
patients is kept for validation (`splits.unlabelled_val`).
"""

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from premed.config.spec import runtime_field
from premed.contracts import Case, Part
from premed.data import splits
from premed.data.io import dicom_tree
from premed.data.io.dicom import is_dicom
from premed.data.io.readers import PICTURES, VOLUMES
from premed.errors import Finding, UserError
from premed.paths import data_root
from premed.tasks.common.classification import Classification
from premed.tasks.common.images import ImageSettings
from premed.tasks.common.patients import PatientPattern, patient_of, several_scans

LABELS = re.compile(r"(labels?|masks?|seg|segmentations?)(Tr|Ts)?", re.IGNORECASE)
"""Folders called so hold label maps."""
FORMATS = {2: f"picture ({', '.join(PICTURES)}, DICOM)", 3: f"volume ({', '.join(VOLUMES)}, DICOM series)"}


class Config(ImageSettings):
    """A folder, and how its images are prepared."""

    name: Literal["unlabelled"] = "unlabelled"
    root: Path | None = runtime_field(None)
    folder: str = runtime_field("unlabelled")
    """The folder below $PREMED_DATA, if no root is set."""
    patient: PatientPattern | None = None
    """A pattern over paths below the root, whose first group is the patient; None: DICOM's PatientID, else each image
    counts as a patient."""
    exclude: tuple[str, ...] = runtime_field(())
    """Paths below the root that are left out, as in [phantoms/*, "*/localiser/*"]. Of a DICOM series, all files or
    none."""


def build(config: Config) -> "Unlabelled":
    return Unlabelled(config)


class Listing(NamedTuple):
    """The images of a folder, and what is said of the rest."""

    cases: list[Case]
    findings: list[Finding]
    patients: set[str]
    """As DICOM names them."""

    def note(self, where: Path, what: str) -> None:
        self.findings.append(Finding("note", str(where), what))


class Unlabelled(Classification):
    """Images [C, *roi] without labels."""

    classes: tuple[str, ...] = ()

    def __init__(self, config: Config):
        self.config, self.dims, self.channels, self.roi = config, config.dims, config.channels, config.roi
        self.preprocessing = config.preprocessing()
        self.root = data_root(config.root, config.folder)
        self.name = self.root.name

    def images(self) -> list[Case]:
        if not self.listing.cases:
            more = f" ({self.listing.findings[0].what})" if self.listing.findings else ""
            what = f"holds no {FORMATS[self.dims]}{more}"
            raise UserError(f"{self.root}: {what}; fix task.root, or task.dims and task.roi")
        return self.listing.cases

    def split(self, part: Part) -> list[Case]:
        raise UserError(
            f"{self.root}: its images have no labels, so they serve pre-training alone; leave finetune out, or name a "
            "task that has labels, with this one under pretrain.sources"
        )

    def check(self, test: bool = True) -> Iterator[Finding]:
        cases = self.images()
        yield from self.listing.findings
        patients = {case.patient for case in cases}
        if len(patients) < 2:
            only = f"all {len(cases)} images are of one patient, {patients.pop()!r}" if len(cases) > 1 else "is 1 image"
            what = f"{only}, so that none is left for validation; add some, or set task.patient (a pattern over paths)"
            yield Finding("error", str(self.root), what)
        elif self.config.patient is None and not any(self.listing.patients):
            yield Finding("note", str(self.root), "nothing says whose the images are, so each counts as a patient")
            if what := several_scans(case.name for case in cases):
                yield Finding("note", str(self.root), what)
        val = splits.unlabelled_val(patients)
        what = f"validation is on {sum(case.patient in val for case in cases)} of {len(cases)} images without labels"
        yield Finding("note", str(self.root), what)

    # Files -----------------------------------------------------------------------------------------------------------

    @cached_property
    def listing(self) -> Listing:
        """Looks through the folder: names, and of DICOM a few headers of each folder."""
        listing = Listing([], [], set())
        kinds, others = (PICTURES, VOLUMES) if self.dims == 2 else (VOLUMES, PICTURES)
        num_others = 0
        unreadable: list[OSError] = []
        for where, below, names in os.walk(self.root, onerror=unreadable.append):
            folder = Path(where)
            below[:] = sorted(name for name in below if name[0] != ".")
            for link in (folder / name for name in below if (folder / name).is_symlink()):
                listing.note(link, "is a link to a folder and not followed; set task.root there to use it")
            listed = [folder / name for name in sorted(names) if name[0] != "."]
            files = [path for path in listed if not self.excluded(path)]
            if files and folder != self.root and LABELS.fullmatch(folder.name):
                what = "is called as folders of label maps are; leave it out by task.exclude, or rename it"
                listing.findings.append(Finding("error", where, what))
            images = [path for path in files if path.name.lower().endswith(kinds)]
            listing.cases.extend(self.case(path) for path in images)
            num_others += sum(path.name.lower().endswith(others) for path in files)
            rest = [path for path in listed if not path.name.lower().endswith((*PICTURES, *VOLUMES))]
            self.add_dicom(listing, folder, rest, set(files), unreadable)
        for error in unreadable:
            what = f"cannot be read ({error.strerror}); change its permissions, or leave it out by task.exclude"
            listing.findings.append(Finding("error", str(error.filename), what))
        if num_others:
            what = f"{num_others} {'volumes' if self.dims == 2 else 'pictures'} are not used: task.dims is {self.dims}"
            listing.note(self.root, what)
        return listing

    def add_dicom(
        self, listing: Listing, folder: Path, files: Sequence[Path], kept: set[Path], unreadable: list[OSError]
    ) -> None:
        """Adds the DICOM among a folder's files to the listing. kept: the files that `exclude` does not name."""
        dicom = []
        for path in files:
            try:
                if path.name != "DICOMDIR" and (path.suffix.lower() == ".dcm" or is_dicom(path)):
                    dicom.append(path)
            except OSError as error:
                if path in kept:
                    unreadable.append(error)
        for series in self.series(folder, dicom, kept) if not kept.isdisjoint(dicom) else ():
            named = [path for path in series.files if path not in kept]
            if self.excluded(series.path) or len(named) == len(series.files):
                continue
            if named:  # the reader takes all files of a series, and one that lacks some is another image
                what = f"task.exclude names {len(named)} of its {len(series.files)} slices ({named[0].name}, …)"
                remedy = "move these out of the folder, or name all of them"
                listing.findings.append(Finding("error", str(series.path), f"{what}, which are one volume; {remedy}"))
                continue
            if what := self.left_out(series):
                listing.note(series.path, what)
                continue
            listing.patients.add(series.head.patient)
            listing.cases.append(self.case(series.path, series.head.patient))

    def excluded(self, path: Path) -> bool:
        name = path.relative_to(self.root).as_posix()
        return any(fnmatchcase(name, pattern) for pattern in self.config.exclude)

    def series(self, folder: Path, files: Sequence[Path], kept: set[Path]) -> list[dicom_tree.Series]:
        """The volumes of a folder of DICOM files, or its pictures, one a file.

        If `exclude` names some of the files, each series has its own name, as only some may be left out.
        """
        if self.dims == 3:
            return dicom_tree.series_in(folder, files) if kept.issuperset(files) else dicom_tree.each_series(folder)
        files = [path for path in files if path in kept]
        if self.config.patient is not None:
            return [dicom_tree.Series(path, (path,), dicom_tree.Head("", "", 1, False)) for path in files]
        return [dicom_tree.Series(path, (path,), dicom_tree.read_head(path)) for path in files]

    def left_out(self, series: dicom_tree.Series) -> str:
        """Why a series is not used; "" if it is. One file of several frames is left to the reader, which refuses it."""
        if not series.head.frames:
            return "holds no picture (a report, a plan, …); it is not used"
        if self.dims == 3 and series.head.frames == 1 and len(series.files) < 2:
            return "holds one slice, which is no volume; it is not used"
        return "is a localiser by its ImageType; it is not used" if series.head.localiser and self.dims == 3 else ""

    def case(self, path: Path, patient: str = "") -> Case:
        name = path.relative_to(self.root).as_posix() if path != self.root else self.root.name
        return Case(name, patient_of(self.config.patient, name) if self.config.patient else patient or name, (path,))
