"""NIH ChestX-ray14 (Wang 2017): 14 findings in frontal chest X-rays, as the data set is downloaded.

The folder holds `images/` (or `images_001/images/` …), `Data_Entry_2017*.csv` and the official lists; val is carved
from `train_val_list.txt` by patient. "No Finding" is all zeros, not a class.
"""

import csv
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from premed.classification import Classification
from premed.contracts import Case, Part
from premed.home import data_root
from premed.images import Recipe
from premed.randomness import key, permutation
from premed.spec import Spec, UserError, elsewhere

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
"""The data set's canonical order."""


class Config(Spec):
    """`size` is what the network sees; images are kept at `stored` and cropped there (SelfMedMAE: 256, then 224)."""

    name: Literal["chestxray14"] = "chestxray14"
    root: Path | None = elsewhere(None)
    size: int = Field(224, ge=8)
    stored: int = Field(256, ge=8)
    equalize: bool = True
    """Histogram equalisation, as the paper does for all X-rays."""
    val_share: float = Field(0.13, gt=0, lt=1)
    """Of the training list's patients; the 11,212 of 86,524 images of Medical MAE's split are 13 %."""
    split_seed: int = 0
    partial: bool = False
    """Listed images that are not on disk are left out rather than refused."""


def build(config: Config) -> "ChestXray14":
    """The task; its folder is looked at when cases are asked for."""
    return ChestXray14(config)


class ChestXray14(Classification):
    """Images [1, size, size]; scored by the mean AUC over the findings."""

    name = "chestxray14"
    dims, channels, classes = 2, 1, FINDINGS

    def __init__(self, config: Config):
        if config.size > config.stored:
            raise UserError(f"task.size: {config.size} is larger than task.stored {config.stored}; set both alike")
        self.config = config
        self.roi = (config.size, config.size)
        self.recipe = Recipe(
            dims=2, channels=1, size=(config.stored, config.stored), equalize=config.equalize, normalise="grey"
        )

    def images(self) -> list[Case]:
        return [Case(case.name, case.patient, case.image) for case in self.split("train")]

    def split(self, part: Part) -> list[Case]:
        cases = self.cases(self.names("train_val_list.txt"))
        patients = sorted({case.patient for case in cases})
        if part == "test":  # the test list is opened here and nowhere else
            tested = self.cases(self.names("test_list.txt"))
            if shared := {case.patient for case in tested} & set(patients):
                raise UserError(
                    f"{self.root / 'test_list.txt'}: patient {min(shared)} is in train_val_list.txt too; drop one"
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
        path = self.root / listing
        if not path.is_file():
            raise UserError(f"{path} is missing: put NIH's official list there, one image name per line")
        try:
            return list(dict.fromkeys(path.read_text(encoding="utf-8").split()))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 (byte {error.start}); download the list again") from None

    def cases(self, names: list[str]) -> list[Case]:
        found = []
        for name in names:
            if name not in self.rows:
                raise UserError(f"{name} is listed but has no row in {self.table.name}: mend the list or the table")
            if name not in self.files:
                if self.config.partial:
                    continue
                raise UserError(f"{self.root / 'images' / name} is missing: download it, or set task.partial=true")
            patient, labels = self.rows[name]
            found.append(Case(name, patient, (self.files[name],), labels))
        if not found:
            raise UserError(f"{self.root}: none of the {len(names)} listed images is there; check the folder's images/")
        return found

    @cached_property
    def files(self) -> dict[str, Path]:
        folders = [self.root / "images", *sorted(self.root.glob("images_*/images"))]
        return {path.name: path for folder in folders if folder.is_dir() for path in folder.iterdir()}

    @cached_property
    def table(self) -> Path:
        tables = sorted(self.root.glob("Data_Entry_2017*.csv"))
        if not tables:
            raise UserError(f"{self.root}: there is no Data_Entry_2017*.csv; put NIH's table there")
        return tables[-1]  # the corrected _v2020 sorts after the first one

    @cached_property
    def rows(self) -> dict[str, tuple[str, tuple[float, ...]]]:
        """Image name to (patient, labels)."""
        try:
            return self.read_rows()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.table}: is not UTF-8 (byte {error.start}); download the table again") from None
        except csv.Error as error:
            raise UserError(f"{self.table}: is no table ({error}); download the table again") from None

    def read_rows(self) -> dict[str, tuple[str, tuple[float, ...]]]:
        """Only the first columns are named: later names contain commas."""
        rows = {}
        with self.table.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            try:
                image, labels, patient = map(header.index, ("Image Index", "Finding Labels", "Patient ID"))
            except ValueError as missing:
                raise UserError(f"{self.table}: {missing}; its first line must be NIH's header") from None
            for line in filter(None, lines):
                if len(line) <= patient:
                    raise UserError(f"{self.table}, line {lines.line_num}: too few columns; download the table again")
                said = set(line[labels].split("|")) - {"No Finding"}
                if said - set(FINDINGS):
                    unknown = ", ".join(sorted(said - set(FINDINGS)))
                    raise UserError(f"{self.table}, line {lines.line_num}: {unknown} is none of the 14 findings")
                rows[line[image]] = (line[patient], tuple(float(name in said) for name in FINDINGS))
        return rows
