"""Any folder of pictures (PNG, JPEG, DICOM) or volumes (NIfTI, folders of DICOM slices), and a CSV that lists them.

One row per image: path, patient, labels and, optionally, part. Rows without labels are for pre-training only. Splits
are by patient: from a column, as `split` lists them, one of `folds`, or 60/15/25 by `split_seed`.
"""

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pandas import Series
from pydantic import Field, PositiveFloat, model_validator

from premed.config.spec import Spec, added_field, runtime_field
from premed.contracts import Case, Part
from premed.data import splits
from premed.data.io.readers import DICOM, PICTURES, VOLUMES
from premed.errors import Finding, Missing, UserError
from premed.paths import data_root
from premed.rng import key
from premed.tasks.common import table
from premed.tasks.common.classification import Classification
from premed.tasks.common.cross_validation import FoldSettings, assign_parts
from premed.tasks.common.files import LOOKED_AT, table_path
from premed.tasks.common.image_folder import recognise as recognise
from premed.tasks.common.images import ImageSettings
from premed.tasks.common.patients import PatientPattern, patient_of


class Columns(Spec):
    """The names of the table's columns, except those of labels."""

    path: str = "path"
    """A file below the root, or a folder of DICOM slices."""
    patient: str | None = None
    """None: `patient`, if there is such a column; else each image counts as a patient."""
    part: str | None = None
    """None: `part`, if there is such a column; an empty name: no column gives the parts."""


class Config(ImageSettings, FoldSettings):
    """`labels` or `label` names the targets. `roi` in pixels or voxels, `spacing` in mm."""

    name: Literal["images"] = "images"
    root: Path | None = runtime_field(None)
    folder: str = runtime_field("images")
    """The folder below $PREMED_DATA, if no root is set."""
    table: str = runtime_field("labels.csv")
    """A CSV in UTF-8, below the root, or an absolute path."""
    delimiter: str = runtime_field(",", min_length=1, max_length=1)
    prefix: str = runtime_field("")
    """The folder that the table's paths begin below, if it is not the root and the table does not say so."""
    columns: Columns = Columns()
    labels: tuple[str, ...] | None = Field(None, min_length=1)
    """One column per class: 1 yes, 0 no, empty unknown."""
    label: str | None = None
    """One column that names each image's class; with a `separator`, any number of classes. Empty: no label."""
    separator: str | None = Field(None, min_length=1)
    none: str | None = None
    """With a separator: the name that means no class (No Finding)."""
    classes: tuple[str, ...] | None = Field(None, min_length=1)
    """The valid values of `label`, in this order; None: its values, sorted."""
    unknown: tuple[str, ...] = ()
    """Values that mean unknown, besides an empty cell (CheXpert's -1.0)."""
    patient: PatientPattern | None = added_field(None)
    """A pattern over paths whose first group is the patient, in place of a column."""
    split_seed: int = 0
    shares: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.6, 0.15, 0.25)
    """Shares of the labelled patients: train, val, test. If a column has no val, it is carved from train likewise."""
    split: dict[Part, tuple[str, ...]] | None = None
    """Patients per part, in place of a column and of the random split."""
    parts: dict[Part, tuple[str, ...]] = {"train": ("train",), "val": ("val",), "test": ("test",)}
    """The column's values for each part."""
    partial: bool = False
    """Images that are not on disk are left out rather than refused."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if (self.labels is None) == (self.label is None):
            raise ValueError("set labels (one column per class) or label (one column of names), and not both")
        if self.label is None and (self.separator or self.none or self.classes):
            raise ValueError("separator, none and classes go with label: one column of names")
        if self.none and not self.separator:
            raise ValueError("none needs a separator; without one, it is a class like the others")
        if self.patient and self.columns.patient:
            raise ValueError("patient (a pattern over paths) and columns.patient exclude each other")
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares: {list(self.shares)} do not add up to 1")
        return self


def build(config: Config) -> "Images":
    """Returns the task; reads its table, for the classes."""
    return Images(config)


class Images(Classification):
    """Images [C, *roi]; scored by the mean AUC, or by the accuracy if there are more than two exclusive classes."""

    def __init__(self, config: Config):
        self.config, self.dims, self.channels, self.roi = config, config.dims, config.channels, config.roi
        self.preprocessing, self.num_folds = config.preprocessing(), config.folds
        self.exclusive = config.label is not None and config.separator is None
        self.root = data_root(config.root, config.folder)
        self.name = self.root.name
        self.folder, self.table = table.Folder(self.root), table_path(self.root, config.table, "task.table")
        self.frame = table.read_table(self.table, config.delimiter)
        columns = set(self.frame.columns)
        self.paths = table.select_column(self.table, self.frame, config.columns.path, "task.columns")
        default = "patient" if "patient" in columns and not config.patient else ""
        self.patient_cells = self.column(config.columns.patient or default)
        use_default = config.columns.part is None and "part" in columns
        self.part_cells = self.column("part" if use_default else config.columns.part or "")
        self.read_classes()
        self.score = "accuracy" if self.exclusive and len(self.classes) > 2 else "mauc"

    # Table -----------------------------------------------------------------------------------------------------------

    def column(self, name: str, field: str = "task.columns") -> Series | None:
        """Returns a column's cells; None if the name is empty."""
        return table.select_column(self.table, self.frame, name, field) if name else None

    def read_classes(self) -> None:
        """Sets class names, restricted to the characters of score columns, and labels [rows, classes]."""
        config, cells = self.config, self.column(self.config.label or "", "task.label")
        if cells is None:
            names = config.labels or ()
            columns = [table.select_column(self.table, self.frame, name, "task.labels") for name in names]
            self.truth, self.label_problems = table.parse_binary(self.table, columns, config.unknown)
        else:
            cells = cells.replace(dict.fromkeys(config.unknown, ""))
            in_cells = {n for cell in set(cells) for n in table.split_names(cell, config.separator, config.none)}
            names = config.classes or table.sorted_names(in_cells)
            self.truth, self.label_problems = table.parse_names(self.table, cells, names, config.separator, config.none)
            if config.classes is None:
                self.label_problems += [(str(self.table), what) for what in table.doubtful_names(names)]
        if len(names) < 1 + self.exclusive and np.isfinite(self.truth).any():
            raise UserError(f"{self.table}: column {config.label} names {len(names)} class(es), too few to tell apart")
        self.classes = tuple(re.sub(r"[^\w.-]+", "_", name).strip("_") for name in names)
        if len({*self.classes, ""}) <= len(names):
            raise UserError(f"{self.table}: the classes {', '.join(names)} differ in signs alone; rename one")

    @cached_property
    def cases(self) -> list[Case]:
        """All rows, in the table's order. A case's name is its path."""
        names = [self.folder.name(os.path.join(self.config.prefix, path)) for path in self.paths]
        patients = (
            [patient_of(self.config.patient, n) for n in names] if self.patient_cells is None else self.patient_cells
        )
        known = np.isfinite(self.truth).sum(axis=1)
        labels = [tuple(row) if num else None for row, num in zip(self.truth.tolist(), known, strict=True)]
        return [Case(n, who, (self.root / n,), label) for n, who, label in zip(names, patients, labels, strict=True)]

    @cached_property
    def errors(self) -> list[Finding]:
        """What is wrong with the table itself; training is refused until it is fixed."""
        names, other = [case.name for case in self.cases], VOLUMES if self.dims == 2 else (*PICTURES, *DICOM)
        problems = [*self.label_problems, *table.path_errors(self.table, self.paths, names)]
        if self.elsewhere:
            what = f"its images are not in {self.root / self.config.prefix} but below {self.elsewhere}"
            problems.append((str(self.table), f"{what}; set task.prefix={self.elsewhere}"))
        kind = "volume (or a folder of DICOM slices)" if self.dims == 3 else "picture"
        what = f"is not the path of a {kind}; fix it, or task.dims and task.roi"
        problems += table.invalid_values(self.table, self.paths, [n.lower().endswith(other) for n in names], what)
        if self.patient_cells is not None:
            problems += table.patient_problems(self.table, self.patient_cells)
        return [Finding("error", *problem) for problem in [*problems, *self.part_problems()]]

    @cached_property
    def elsewhere(self) -> str:
        """The folder below the root that the table's paths begin below, if none of them is where it says."""
        return self.folder.prefix_of(self.paths) if all(map(self.folder.path_error, self.looked_at)) else ""

    @property
    def looked_at(self) -> list[str]:
        """Names of some images, evenly spread."""
        return [case.name for case in self.cases[:: 1 + len(self.cases) // LOOKED_AT]]

    # Parts -----------------------------------------------------------------------------------------------------------

    @cached_property
    def patients(self) -> set[str]:
        """The patients with a label."""
        return {case.patient for case in self.cases if case.label is not None}

    @cached_property
    def parts(self) -> list[str]:
        """The part of each row; an empty string if it is in none."""
        config, seed = self.config, key(self.config.split_seed, "images", "split")
        if config.split is None and config.folds is None and self.part_cells is not None:
            words = {word: part for part, words in config.parts.items() for word in words}
            rows = [(case.patient, words.get(cell, "")) for case, cell in zip(self.cases, self.part_cells, strict=True)]
            train = {who for who, part in rows if part == "train"} & self.patients
            carve = all(part != "val" for _, part in rows)
            val = splits.carve_patients(train, config.shares[1] / sum(config.shares[:2]), seed) if carve else set()
            return ["val" if part == "train" and who in val else part for who, part in rows]
        of = assign_parts(self.patients, config.folds, config.fold, config.shares, seed)
        if config.split is not None:
            of = {who: part for part, patients in config.split.items() for who in patients}
        return [of.get(case.patient, "") for case in self.cases]

    def part_problems(self) -> Iterator[table.Problem]:
        """Yields invalid values of parts, and patients in two parts."""
        if self.config.split is not None:
            for what in splits.listing_faults(self.config.split, self.patients):
                yield "task.split", what
        elif self.config.folds is None and self.part_cells is not None:
            words = [word for part in self.config.parts.values() for word in part]
            rows = zip(self.part_cells, self.cases, strict=True)
            wrong = [cell not in words and bool(cell or case.label) for cell, case in rows]
            what = f"is none of {', '.join(words)}; fix it, or name it in task.parts"
            yield from table.invalid_values(self.table, self.part_cells, wrong, what)
        for what in splits.shared_patients((case.patient for case in self.cases), self.parts):
            yield str(self.table), what

    def images(self) -> list[Case]:
        return [Case(case.name, case.patient, case.image) for case in self.on_disk(self.rows("images"))]

    def split(self, part: Part) -> list[Case]:
        return self.on_disk(self.rows(part))

    def rows(self, part: Part | Literal["images"]) -> list[Case]:
        """Returns the cases of a part, or those of the pre-training, whether on disk or not."""
        if not self.lenient:
            splits.raise_first_error(self.errors)
        rows = list(zip(self.cases, self.parts, strict=True))
        if part == "images":
            held_out = {case.patient for case, of in rows if of in ("val", "test")}
            wanted = [case for case, of in rows if of == "train" or (not of and case.label is None)]
            return [case for case in wanted if case.patient not in held_out]
        wanted = [case for case, of in rows if of == part and case.label is not None]
        if not self.patients:
            columns = self.config.label or ", ".join(self.config.labels or ())
            raise UserError(f"{self.table}: no image has a label; fill in {columns}, or leave finetune out")
        if not wanted:
            raise UserError(f"{self.table}: has no labelled image for {part}; add some, or list patients in task.split")
        return wanted

    def on_disk(self, cases: list[Case]) -> list[Case]:
        """Returns the cases whose file exists. Raises UserError for one that may not be missing."""
        if not self.lenient:
            splits.raise_first_error(finding for case in cases if (finding := self.file_finding(case)))
        existing = [case for case in cases if self.file_finding(case) is None]
        if not existing:
            raise UserError(f"{self.root}: none of {len(cases)} listed images is there; fix task.columns.path")
        return existing

    def file_finding(self, case: Case) -> Finding | None:
        """Returns what is wrong with a case's file: a note if `partial` allows it, else an error."""
        what = self.folder.path_error(case.name)
        missing = what.startswith("is missing")
        severity = "note" if missing and self.config.partial else "error"
        kind = Missing if missing else Finding
        return kind(severity, str(case.image[0]), what) if what else None

    def check(self, test: bool = True) -> Iterator[Finding]:
        """Yields faults of the table, and its differences from the folder."""
        yield from self.errors
        wrong = {error.where for error in self.errors}
        for line, case, part in zip(self.frame.index, self.cases, self.parts, strict=True):
            if (part == "test" and not test) or self.elsewhere:
                continue
            if f"{self.table}, line {line}" not in wrong and (finding := self.file_finding(case)):
                yield finding
        for name in self.folder.unlisted((case.name for case in self.cases), (*PICTURES, *VOLUMES, *DICOM)):
            yield Finding("note", str(self.root / name), f"has no row in {self.table.name}; it is not used")
        for what in self.patient_notes():
            yield Finding("note", str(self.table), what)

    def patient_notes(self) -> Iterator[str]:
        """Yields notes on patients, and on images that are left out."""
        if self.patient_cells is None and self.config.patient is None:
            yield "has no column of patients, so each image counts as one; set task.columns.patient or task.patient"
        rows = list(zip(self.cases, self.parts, strict=True))
        if unlabelled := sum(case.label is None for case in self.cases):
            yield f"{unlabelled} images have no label and are used for pre-training only"
        held_out = {case.patient for case, part in rows if part in ("val", "test") and case.label is not None}
        if excluded := sum(case.label is None and case.patient in held_out for case in self.cases):
            yield f"{excluded} of these belong to patients of val or test and are left out"
        if unused := sum(case.label is not None and not part for case, part in rows):
            yield f"{unused} labelled images are in no part and are left out"
