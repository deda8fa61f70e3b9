"""Any folder of pictures (PNG, JPEG, DICOM) or volumes (NIfTI, folders of DICOM slices), and a CSV that describes it.

One row per image: its path, whose it is, its labels; perhaps its part. Splits are by patient: as a column deals them,
as `split` lists them, or 60/15/25 by `split_seed`. Rows without labels serve pre-training only.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pandas import Series
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from premed.config.spec import Spec, runtime_field
from premed.config.transforms import Preprocessing
from premed.contracts import Case, Part
from premed.data import splits
from premed.data.io.readers import DICOM, PICTURES, VOLUMES
from premed.errors import Finding, UserError
from premed.paths import data_root
from premed.rng import key
from premed.tasks.common import table as listing
from premed.tasks.common.classification import Classification


class Columns(Spec):
    """The table's names for what it holds beside the labels."""

    path: str = "path"
    """A file below the root, or a folder of DICOM slices."""
    patient: str | None = None
    """None: `patient`, where there is such a column; else each image counts as a patient."""
    part: str | None = None
    """None: `part`, where there is such a column; an empty name: no column deals the parts."""


class Config(Spec):
    """`labels` or `label` says what is asked. Units are the field's: pixels or voxels for roi, mm for spacing."""

    name: Literal["images"] = "images"
    root: Path | None = runtime_field(None)
    folder: str = runtime_field("images")
    """Below $PREMED_DATA, where no root is set."""
    table: str = runtime_field("labels.csv")
    """A CSV in UTF-8, below the root."""
    delimiter: str = runtime_field(",", min_length=1, max_length=1)
    columns: Columns = Columns()
    labels: tuple[str, ...] | None = Field(None, min_length=1)
    """One column per class: 1 yes, 0 no, empty not known."""
    label: str | None = None
    """One column that names each image's class; with a `separator`, any number of them. Empty: no label."""
    separator: str | None = Field(None, min_length=1)
    none: str | None = None
    """With a separator: the name that stands for no class at all (No Finding)."""
    classes: tuple[str, ...] | None = Field(None, min_length=1)
    """What `label` may hold, in this order; None: what it holds, sorted."""
    unknown: tuple[str, ...] = ()
    """What means not known, beside the empty cell (CheXpert's -1.0)."""
    dims: Literal[2, 3] = 2
    channels: PositiveInt = 1
    """3 for colours."""
    roi: tuple[PositiveInt, ...] = (224, 224)
    """What the network sees: height and width, or three axes."""
    stored: tuple[PositiveInt, PositiveInt] | None = None
    """2D: pictures are resized to this, and the roi cut out of it; None: the roi itself."""
    equalize: bool = False
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """3D: None keeps each image's own."""
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    crop_foreground: bool = False
    normalise: Literal["grey", "window", "zscore", "zscore_nonzero"] | None = None
    """None: grey for pictures (8 bit, DICOM as screens show it), zscore for volumes."""
    split_seed: int = 0
    shares: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.6, 0.15, 0.25)
    """Of the labelled patients: train, val, test. Where a column names no val, val is carved from train alike."""
    split: dict[Part, tuple[str, ...]] | None = None
    """Patients per part, in place of a column and of the dealing."""
    parts: dict[Part, tuple[str, ...]] = {"train": ("train",), "val": ("val",), "test": ("test",)}
    """The column's words for the parts."""
    partial: bool = False
    """Images that are not on disk are left out rather than refused."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if (self.labels is None) == (self.label is None):
            raise ValueError("set labels (one column per class) or label (one column of names), and not both")
        if self.label is None and (self.separator or self.none or self.classes):
            raise ValueError("separator, none and classes go with label: one column of names")
        if self.none and not self.separator:
            raise ValueError("none goes with a separator; without one, it is a class like the others")
        if len(self.roi) != self.dims:
            raise ValueError(f"roi: {list(self.roi)} has not {self.dims} numbers")
        if self.stored and any(n < size for n, size in zip(self.stored, self.roi, strict=False)):
            raise ValueError(f"stored: {list(self.stored)} is smaller than roi {list(self.roi)}")
        if self.stored and self.dims == 3:
            raise ValueError("stored is for dims: 2")
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares: {list(self.shares)} do not add up to 1")
        self.preprocessing()
        return self

    def preprocessing(self) -> Preprocessing:
        """The preprocessing these fields ask for."""
        return Preprocessing(
            dims=self.dims,
            channels=self.channels,
            size=(self.stored or self.roi) if self.dims == 2 else None,  # type: ignore[arg-type]
            equalize=self.equalize,
            spacing=self.spacing,
            window=self.window,
            percentiles=self.percentiles,
            crop_foreground=self.crop_foreground,
            normalise=self.normalise or ("grey" if self.dims == 2 else "zscore"),
        )


def build(config: Config) -> "Images":
    """The task; its table is read at once, for the classes."""
    return Images(config)


class Images(Classification):
    """Images [C, *roi]; scored by the mean AUC, or by the accuracy where each has one of more than two classes."""

    def __init__(self, config: Config):
        self.config, self.dims, self.channels, self.roi = config, config.dims, config.channels, config.roi
        self.preprocessing = config.preprocessing()
        self.exclusive = config.label is not None and config.separator is None
        self.root = data_root(config.root, config.folder)
        self.name = self.root.name
        self.folder, self.table = listing.Folder(self.root), self.root / config.table
        self.frame = listing.read_table(self.table, config.delimiter)
        columns = set(self.frame.columns)
        self.paths = listing.select_column(self.table, self.frame, config.columns.path, "task.columns")
        self.patient_cells = self.column(config.columns.patient or ("patient" if "patient" in columns else ""))
        use_default = config.columns.part is None and "part" in columns
        self.part_cells = self.column("part" if use_default else config.columns.part or "")
        self.read_classes()
        self.score = "accuracy" if self.exclusive and len(self.classes) > 2 else "mauc"

    # What the table says ---------------------------------------------------------------------------------------------

    def column(self, name: str, field: str = "task.columns") -> Series | None:
        """A column's cells; None without a name."""
        return listing.select_column(self.table, self.frame, name, field) if name else None

    def read_classes(self) -> None:
        """Class names, cleaned for tables of scores, and the labels [rows, classes]."""
        config, cells = self.config, self.column(self.config.label or "", "task.label")
        if cells is None:
            names = config.labels or ()
            columns = [listing.select_column(self.table, self.frame, name, "task.labels") for name in names]
            self.truth, self.label_problems = listing.parse_binary(self.table, columns, config.unknown)
        else:
            cells = cells.replace(dict.fromkeys(config.unknown, ""))
            on_disk_cases = {
                name for cell in set(cells) for name in listing.split_names(cell, config.separator, config.none)
            }
            names = config.classes or listing.sorted_names(on_disk_cases)
            self.truth, self.label_problems = listing.parse_names(
                self.table, cells, names, config.separator, config.none
            )
        if len(names) < 1 + self.exclusive:
            raise UserError(f"{self.table}: column {config.label} names {len(names)} class(es), too few to tell apart")
        self.classes = tuple(re.sub(r"[^\w.-]+", "_", name).strip("_") for name in names)
        if len({*self.classes, ""}) <= len(names):
            raise UserError(f"{self.table}: the classes {', '.join(names)} differ in signs alone; rename one")

    @cached_property
    def cases(self) -> list[Case]:
        """All rows, in the table's order. A case is called by its path."""
        names = [self.folder.name(path) for path in self.paths]
        patients = names if self.patient_cells is None else self.patient_cells
        known = np.isfinite(self.truth).sum(axis=1)
        labels = [tuple(row) if num else None for row, num in zip(self.truth.tolist(), known, strict=True)]
        rows = zip(names, patients, labels, strict=True)
        return [Case(name, patient, (self.root / name,), label) for name, patient, label in rows]

    @cached_property
    def errors(self) -> list[Finding]:
        """What is wrong with the table, whatever is on disk. Nothing is trained on before it is mended."""
        names, other = [case.name for case in self.cases], VOLUMES if self.dims == 2 else (*PICTURES, *DICOM)
        on_disk_cases = [*self.label_problems, *listing.path_errors(self.table, self.paths, names)]
        what = (
            "is no path of a volume (a folder of DICOM slices is one)" if self.dims == 3 else "is no path of a picture"
        )
        kinds = [name.lower().endswith(other) for name in names]
        on_disk_cases += listing.invalid_values(
            self.table, self.paths, kinds, f"{what}; fix it, or task.dims and task.roi"
        )
        if self.patient_cells is not None:
            on_disk_cases += listing.invalid_values(
                self.table, self.patient_cells, self.patient_cells == "", "is no patient; say whose the image is"
            )
        return [Finding("error", *problem) for problem in [*on_disk_cases, *self.part_problems()]]

    # Parts -----------------------------------------------------------------------------------------------------------

    @cached_property
    def patients(self) -> set[str]:
        """Those with a label."""
        return {case.patient for case in self.cases if case.label is not None}

    @cached_property
    def parts(self) -> list[str]:
        """The part of each row; empty for none."""
        config, seed = self.config, key(self.config.split_seed, "images", "split")
        if config.split is None and self.part_cells is not None:
            words = {word: part for part, words in config.parts.items() for word in words}
            rows = [(case.patient, words.get(cell, "")) for case, cell in zip(self.cases, self.part_cells, strict=True)]
            train = {who for who, part in rows if part == "train"} & self.patients
            carve = all(part != "val" for _, part in rows)
            val = splits.carve_patients(train, config.shares[1] / sum(config.shares[:2]), seed) if carve else set()
            return ["val" if part == "train" and who in val else part for who, part in rows]
        of = splits.deal_patients(self.patients, config.shares, seed)
        if config.split is not None:
            of = {who: part for part, patients in config.split.items() for who in patients}
        return [of.get(case.patient, "") for case in self.cases]

    def part_problems(self) -> Iterator[listing.Problem]:
        if self.config.split is not None:
            for what in splits.listing_faults(self.config.split, self.patients):
                yield "task.split", what
        elif self.part_cells is not None:
            words = [word for part in self.config.parts.values() for word in part]
            wrong = [
                cell not in words and bool(cell or case.label)
                for cell, case in zip(self.part_cells, self.cases, strict=True)
            ]
            what = f"is none of {', '.join(words)}; fix it, or name it in task.parts"
            yield from listing.invalid_values(self.table, self.part_cells, wrong, what)
        for what in splits.in_two_parts((case.patient for case in self.cases), self.parts):
            yield str(self.table), what

    def images(self) -> list[Case]:
        return [Case(case.name, case.patient, case.image) for case in self.on_disk(self.rows("images"))]

    def split(self, part: Part) -> list[Case]:
        return self.on_disk(self.rows(part))

    def rows(self, part: Part | Literal["images"]) -> list[Case]:
        """The cases of a part, or those of the pre-training, on disk or not."""
        if not self.lenient:
            refuse(self.errors)
        rows = list(zip(self.cases, self.parts, strict=True))
        if part == "images":
            held_out = {case.patient for case, of in rows if of in ("val", "test")}
            wanted = [case for case, of in rows if of == "train" or (not of and case.label is None)]
            return [case for case in wanted if case.patient not in held_out]
        wanted = [case for case, of in rows if of == part and case.label is not None]
        if not wanted:
            raise UserError(f"{self.table}: has no labelled image for {part}; add some, or list patients in task.split")
        return wanted

    def on_disk(self, cases: list[Case]) -> list[Case]:
        if not self.lenient:
            refuse(finding for case in cases if (finding := self.file_finding(case)) and finding.severity == "error")
        on_disk_cases = [case for case in cases if self.file_finding(case) is None]
        if not on_disk_cases:
            raise UserError(f"{self.root}: none of {len(cases)} listed images is there; fix task.columns.path")
        return on_disk_cases

    def file_finding(self, case: Case) -> Finding | None:
        what = self.folder.path_error(case.name)
        missing = self.config.partial and what.startswith("is missing")
        return Finding("note" if missing else "error", str(case.image[0]), what) if what else None

    # What there is to say --------------------------------------------------------------------------------------------

    def check(self, test: bool = True) -> Iterator[Finding]:
        """The table against itself and against the folder."""
        yield from self.errors
        wrong = {error.where for error in self.errors}
        for line, case, part in zip(self.frame.index, self.cases, self.parts, strict=True):
            if part == "test" and not test:
                continue
            if f"{self.table}, line {line}" not in wrong and (finding := self.file_finding(case)):
                yield finding
        for name in self.folder.unlisted((case.name for case in self.cases), (*PICTURES, *VOLUMES, *DICOM)):
            yield Finding("note", str(self.root / name), f"has no row in {self.table.name}; it is not used")
        for what in self.patient_notes():
            yield Finding("note", str(self.table), what)

    def patient_notes(self) -> Iterator[str]:
        if self.patient_cells is None:
            yield "names no patients, so each image counts as one; is there a column for task.columns.patient?"
        rows = list(zip(self.cases, self.parts, strict=True))
        if blind := sum(case.label is None for case in self.cases):
            yield f"{blind} images have no label and serve pre-training only"
        held_out = {case.patient for case, part in rows if part in ("val", "test") and case.label is not None}
        if kept := sum(case.label is None and case.patient in held_out for case in self.cases):
            yield f"{kept} of these belong to patients of val or test and are left out"
        if unused := sum(case.label is not None and not part for case, part in rows):
            yield f"{unused} labelled images are in no part and are left out"


def refuse(findings: Iterable[Finding]) -> None:
    """The first of them as an error."""
    for finding in findings:
        raise UserError(f"{finding.where}: {finding.what}")
