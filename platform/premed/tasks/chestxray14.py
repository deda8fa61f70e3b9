"""NIH ChestX-ray14 (Wang 2017): 14 findings in frontal chest X-rays, in the layout of the download.

The folder contains `images/` (or `images_001/images/` …), `Data_Entry_2017*.csv` and the official lists; val is carved
from `train_val_list.txt` by patient. "No Finding" is all zeros, not a class.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from premed.config.image_processing import Preprocessing
from premed.config.spec import Spec, runtime_field
from premed.contracts import Case, Part
from premed.errors import Finding, Missing, UserError
from premed.paths import data_root
from premed.rng import key, permutation
from premed.safety.files import MOST_TABLE, read_text, refuse_irregular
from premed.tasks.common.classification import Classification
from premed.tasks.common.recognised import OWN, Recognised

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
"""The data set's canonical order."""
LISTS = ("train_val_list.txt", "test_list.txt")


class Config(Spec):
    """Images are cached at `stored` and cropped to `size`, the network's input (SelfMedMAE: 256, then 224)."""

    name: Literal["chestxray14"] = "chestxray14"
    root: Path | None = runtime_field(None)
    size: int = Field(224, ge=8)
    stored: int = Field(256, ge=8)
    equalize: bool = True
    """Histogram equalisation, as in SelfMedMAE for all X-rays."""
    val_share: float = Field(0.13, gt=0, lt=1)
    """Share of the training list's patients; Medical MAE's split has 11,212 of 86,524 images, 13 %."""
    split_seed: int = 0
    partial: bool = False
    """Listed images that are not on disk are left out rather than refused."""


def build(config: Config) -> "ChestXray14":
    """Returns the task; its folder is read when cases are first requested."""
    return ChestXray14(config)


def recognise(folder: Path) -> Recognised | None:
    """Returns how a folder with NIH's table and lists is read; None of other folders."""
    if not any(folder.glob("Data_Entry_2017*.csv")) or not all((folder / name).is_file() for name in LISTS):
        return None
    return Recognised("NIH ChestX-ray14", OWN, {"name": "chestxray14"}, fit=sizes)


def sizes(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns planned fields as this task calls them."""
    size = max(fields["roi"])
    return {"size": size, "stored": max(size, *fields.get("stored") or (size,))}


class Table(NamedTuple):
    """The rows of NIH's table, and its faults."""

    rows: dict[str, tuple[str, tuple[float, ...]]]  # image name to (patient, labels)
    faults: list[Finding]


class ChestXray14(Classification):
    """Images [1, size, size]; scored by the mean AUC over the findings."""

    name = "chestxray14"
    dims, channels, classes = 2, 1, FINDINGS

    def __init__(self, config: Config):
        if config.size > config.stored:
            raise UserError(
                f"task.size: {config.size} is larger than task.stored {config.stored}; set both to the same value"
            )
        self.config = config
        self.roi = (config.size, config.size)
        self.preprocessing = Preprocessing(
            dims=2, channels=1, size=(config.stored, config.stored), equalize=config.equalize, normalise="grey"
        )

    def images(self) -> list[Case]:
        return [Case(case.name, case.patient, case.image) for case in self.split("train")]

    def split(self, part: Part) -> list[Case]:
        if (part, self.lenient) not in self.parts:
            self.parts[part, self.lenient] = self.listed(part)
        return [*self.parts[part, self.lenient]]

    @cached_property
    def parts(self) -> dict[tuple[Part, bool], list[Case]]:
        """The parts that were asked for so far: a listing of 112,120 images takes a second."""
        return {}

    def listed(self, part: Part) -> list[Case]:
        cases = self.cases(self.names("train_val_list.txt"))
        patients = sorted({case.patient for case in cases})
        if part == "test":  # the test list is opened only here
            tested = self.cases(self.names("test_list.txt"))
            if not self.lenient and (shared := {case.patient for case in tested} & set(patients)):
                raise UserError(
                    f"{self.root / 'test_list.txt'}: patient {min(shared)} is in train_val_list.txt too; remove one"
                )
            return tested
        if len(patients) < 2:
            raise UserError(f"{self.root / 'train_val_list.txt'}: one patient cannot be both train and val; list more")
        order = permutation(key(self.config.split_seed, self.name, "val"), len(patients))
        num_val = min(max(1, round(self.config.val_share * len(patients))), len(patients) - 1)
        val = {patients[i] for i in order[:num_val]}
        return [case for case in cases if (case.patient in val) == (part == "val")]

    @cached_property
    def root(self) -> Path:
        return data_root(self.config.root, "chestxray14")

    def names(self, listing: str) -> list[str]:
        """Returns the image names of a list, without duplicates."""
        return list(dict.fromkeys(self.lines(listing)))

    def lines(self, listing: str) -> list[str]:
        """Returns the image names of a list, in its order. Raises UserError if it cannot be read."""
        path = self.root / listing
        try:
            lines_of_words = [line.split() for line in read_text(path, MOST_TABLE, encoding="utf-8-sig").splitlines()]
            for number, words in enumerate(lines_of_words, 1):  # some published lists contain labels, too
                if len(words) > 1:
                    raise UserError(f"{path}, line {number}: has more than one word; keep only the image's name")
            return [name for words in lines_of_words for name in words]
        except FileNotFoundError:
            raise UserError(f"{path} is missing: put NIH's official list there, one image name per line") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); fix its permissions") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None

    def cases(self, names: list[str]) -> list[Case]:
        """Returns the cases of these images. Raises UserError for one without row or file, unless that is allowed."""
        cases = []
        for name in names:
            if name not in self.rows:
                if self.lenient:
                    continue
                raise UserError(f"{name} is listed but has no row in {self.table.name}: fix the list or the table")
            if name not in self.files:
                if self.config.partial or self.lenient:
                    continue
                raise UserError(f"{self.root / 'images' / name} is missing: download it, or set task.partial=true")
            patient, labels = self.rows[name]
            cases.append(Case(name, patient, (self.files[name],), labels))
        if not cases:
            raise UserError(f"{self.root}: none of the {len(names)} listed images is there; check the folder's images/")
        return cases

    @cached_property
    def files(self) -> dict[str, Path]:
        folders = [self.root / "images", *sorted(self.root.glob("images_*/images"))]
        return {path.name: path for folder in folders for path in folder.glob("[!.]*")}

    @cached_property
    def table(self) -> Path:
        tables = sorted(self.root.glob("Data_Entry_2017*.csv"))
        if not tables:
            raise UserError(f"{self.root}: there is no Data_Entry_2017*.csv; put NIH's table there")
        return tables[-1]  # the corrected _v2020 sorts after the first version

    @property
    def rows(self) -> dict[str, tuple[str, tuple[float, ...]]]:
        """Image name to (patient, labels)."""
        if self.table_content.faults and not self.lenient:
            first = self.table_content.faults[0]
            raise UserError(f"{first.where}: {first.what}")
        return self.table_content.rows

    @cached_property
    def table_content(self) -> Table:
        """The parsed table; columns are found by name, and only the first ones: later names contain commas."""
        try:
            refuse_irregular(self.table, MOST_TABLE)
            with self.table.open(newline="", encoding="utf-8-sig") as file:
                return self.parse_rows(csv.reader(file))
        except OSError as error:
            raise UserError(f"{self.table}: cannot be read ({error.strerror}); fix its permissions") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.table}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
            ) from None
        except csv.Error as error:
            raise UserError(f"{self.table}: is not a table ({error}); download it again") from None

    def parse_rows(self, lines) -> Table:
        """Parses the lines of a csv.reader. Raises UserError if the header is not NIH's."""
        table, header = Table({}, []), next(lines, [])
        try:
            image, labels, patient = map(header.index, ("Image Index", "Finding Labels", "Patient ID"))
        except ValueError as missing:
            raise UserError(f"{self.table}: {missing}; its first line must be NIH's header") from None
        for line in filter(None, lines):
            where = f"{self.table}, line {lines.line_num}"
            if len(line) <= patient:
                table.faults.append(Finding("error", where, "too few columns; download the table again"))
                continue
            findings = set(line[labels].split("|")) - {"No Finding"}
            if unknown := ", ".join(sorted(findings - set(FINDINGS))):
                table.faults.append(Finding("error", where, f"{unknown} is none of the 14 findings"))
            row = line[patient], tuple(float(name in findings) for name in FINDINGS)
            if table.rows.setdefault(line[image], row) != row:
                what = f"{line[image]} has another row with another patient or other findings; keep one"
                table.faults.append(Finding("error", where, what))
        return table

    def check(self, test: bool = True) -> Iterator[Finding]:
        rows: dict[str, tuple[str, tuple[float, ...]]] = {}
        listings: dict[str, list[str]] = {}
        try:
            rows = self.table_content.rows
            yield from self.table_content.faults
        except UserError as error:
            yield Finding.of(error)
        for listing in LISTS if test else LISTS[:1]:
            try:
                listings[listing] = self.lines(listing)
            except UserError as error:
                yield Finding.of(error)
        if not self.files:
            yield Finding("error", str(self.root / "images"), "contains no image; put NIH's images there")
        for listing, names in listings.items():
            yield from self.check_list(listing, names, rows)
        if len(listings) == len(LISTS):
            yield from self.check_lists(listings[LISTS[0]], listings[LISTS[1]], rows)
            listed = {name for names in listings.values() for name in names}
            for name in sorted(rows.keys() - listed):
                yield Finding("note", f"{self.table}, {name}", "is in neither list: it is not used")
        for name in sorted(self.files.keys() - rows.keys() if rows else ()):
            yield Finding("note", str(self.files[name]), f"has no row in {self.table.name}: it is not used")

    def check_list(self, listing: str, names: list[str], rows: dict) -> Iterator[Finding]:
        """Yields duplicates of a list, and images without row or file."""
        for name, number in Counter(names).items():
            where = f"{self.root / listing}, {name}"
            if number > 1:
                yield Finding("note", where, f"is listed {number} times: it is used once")
            if rows and name not in rows:
                yield Finding("error", where, f"is listed but has no row in {self.table.name}; fix the list or table")
            if self.files and name not in self.files:
                file = str(self.root / "images" / name)
                if self.config.partial:
                    yield Missing("note", file, "is listed and not there: it is left out")
                else:
                    what = f"is in {listing} and missing; download it, or set task.partial=true"
                    yield Missing("error", file, what)

    def check_lists(self, trained: list[str], tested: list[str], rows: dict) -> Iterator[Finding]:
        """Yields images and patients that are in both lists."""
        where, train_names = self.root / LISTS[1], set(trained)
        patients = {rows[name][0] for name in trained if name in rows}
        for name in dict.fromkeys(tested):
            if name in train_names:
                yield Finding("error", f"{where}, {name}", f"is in {LISTS[0]} too; keep it in one list")
        for patient in dict.fromkeys(rows[name][0] for name in tested if name in rows):
            if patient in patients:
                what = f"has images in {LISTS[0]} too; keep each patient in one list"
                yield Finding("error", f"{where}, patient {patient}", what)
