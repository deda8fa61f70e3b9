"""BTCV (Landman 2015; Synapse syn3193805): 13 organs in abdominal CT.

The folder contains `img/` and `label/`, or `Training/img/` and `Training/label/` as downloaded, with imgNNNN.nii.gz and
labelNNNN.nii.gz. The split is TransUNet's: its 12 "validation" cases are the test part here, and val is carved from its
18 training cases. Other cases are used only if `split` lists them.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from premed.config.image_processing import Preprocessing
from premed.config.spec import Spec, added_field, runtime_field
from premed.contracts import Case, Part, Row
from premed.data import splits
from premed.errors import Finding, Missing
from premed.paths import data_root
from premed.rng import key
from premed.tasks.common import metrics
from premed.tasks.common.patients import PatientPattern, patient_of
from premed.tasks.common.recognised import OWN, Recognised
from premed.tasks.common.segmentation import Segmentation

ORGANS = (
    *("spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *("inferior_vena_cava", "portal_and_splenic_veins", "pancreas", "right_adrenal_gland", "left_adrenal_gland"),
)
"""Labels 1 to 13."""
EIGHT = tuple(ORGANS[label - 1] for label in (1, 2, 3, 4, 6, 7, 8, 11))
"""The organs that TransUNet and SelfMedMAE report."""
TRAIN = tuple(
    f"img{number:04d}" for number in (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)
)  # TransUNet's lists_Synapse
TEST = tuple(f"img{number:04d}" for number in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38))
FOLDERS = ("", "Training")


class Config(Spec):
    """SelfMedMAE's preprocessing; `roi` in voxels, `spacing` in mm, `window` in Hounsfield units."""

    name: Literal["btcv"] = "btcv"
    root: Path | None = runtime_field(None)
    roi: tuple[PositiveInt, PositiveInt, PositiveInt] = (96, 96, 96)
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.5, 1.5, 2.0)
    window: tuple[float, float] = (-175, 250)
    crop_foreground: bool = True
    overlap: float = Field(0.5, ge=0, lt=1)
    window_batch: int = runtime_field(4, ge=1)
    patient: PatientPattern | None = added_field(None)
    """A pattern over case names (img0005, …) whose first group is the patient; None: each image is a patient."""
    split_seed: int = 0
    val_share: float = Field(0.17, gt=0, lt=1)
    """Share of the training cases, the first of a permutation by `split_seed`: 3 of TransUNet's 18."""
    split: splits.Split | None = None
    """Case names (img0005, …) per part, in place of TransUNet's."""
    partial: bool = runtime_field(False)
    """Cases of TransUNet's split that are not on disk are left out rather than refused."""
    test_images: bool = False
    """Pre-train on the unlabelled images of `Testing/img`, too; SelfMedMAE does not."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        self.preprocessing()
        return self

    def preprocessing(self) -> Preprocessing:
        """Returns the preprocessing with these settings."""
        return Preprocessing(
            dims=3,
            spacing=self.spacing,
            window=self.window,
            normalise="window",
            crop_foreground=self.crop_foreground,
        )


def build(config: Config) -> "BTCV":
    """Returns the task; its folder is read when cases are first requested."""
    return BTCV(config)


def recognise(folder: Path) -> Recognised | None:
    """Returns how BTCV is read; None of other folders, and of too few of TransUNet's cases for its split."""
    task = build(Config.model_validate({"root": folder}))
    enough = len(task.labelled.keys() & {*TRAIN}) > 1 and task.labelled.keys() & {*TEST}
    reasons = {"split_seed": "TransUNet's split; val is carved from its training cases"}
    return Recognised("BTCV", OWN, {"name": "btcv", "split_seed": 0}, reasons, channels=("CT",)) if enough else None


class BTCV(Segmentation):
    """Images [1, *roi]; scored by the mean Dice over the 13 organs."""

    name = "btcv"
    dims, channels, classes = 3, 1, ("background", *ORGANS)

    def __init__(self, config: Config):
        self.config, self.roi, self.preprocessing = config, config.roi, config.preprocessing()
        self.overlap, self.window_batch = config.overlap, config.window_batch

    @cached_property
    def root(self) -> Path:
        return data_root(self.config.root, "btcv")

    def images(self) -> list[Case]:
        """Returns training cases, and images without a label that are in no part."""
        in_parts = {*TRAIN, *TEST} if self.config.split is None else set(sum(self.config.split.values(), ()))
        unlabelled = [case for case in self.cases.values() if case.label is None and case.name not in in_parts]
        if self.config.test_images:
            testing = self.files("img", ("Testing",))
            unlabelled += [Case(n, patient_of(self.config.patient, n), paths[:1]) for n, paths in testing.items()]
        train = [] if unlabelled and not self.labelled else self.split("train")
        unlabelled = splits.unlabelled_to_learn(unlabelled, self.labelled.values(), train)
        return [Case(case.name, case.patient, case.image) for case in [*train, *unlabelled]]

    def split(self, part: Part) -> list[Case]:
        if self.config.split is not None:
            return splits.listed_cases(self.config.split, part, self.labelled, self.root, self.lenient)
        if not self.lenient:
            splits.raise_first_error(self.missing_cases(TEST if part == "test" else TRAIN))
            splits.raise_first_error(splits.split_faults({"train": TRAIN, "test": TEST}, self.labelled, self.root, []))
        if part == "test":
            return [self.labelled[name] for name in TEST if name in self.labelled]
        of = key(self.config.split_seed, "btcv val")
        train, val = splits.carve_val(TRAIN, self.labelled, self.config.val_share, of)
        return [self.labelled[name] for name in (train if part == "train" else val)]

    # Files ----------------------------------------------------------------------------------------------------------

    def files(self, kind: Literal["img", "label"], folders: Sequence[str] = FOLDERS) -> dict[str, tuple[Path, ...]]:
        """Returns the files of each case, by the name of its image."""
        files: dict[str, tuple[Path, ...]] = {}
        for path in self.listing(kind, folders):
            if number := re.fullmatch(rf"{kind}(\d{{4}})(?i:\.nii(\.gz)?)", path.name):
                name = f"img{number[1]}"
                files[name] = (*files.get(name, ()), path)
        return files

    def listing(self, kind: str, folders: Sequence[str] = FOLDERS) -> list[Path]:
        """Returns the files in the folders of one kind, without hidden ones (macOS creates a ._ file for each)."""
        existing = [self.root / folder / kind for folder in folders if (self.root / folder / kind).is_dir()]
        return [path for folder in existing for path in sorted(folder.glob("[!.]*"))]

    @cached_property
    def cases(self) -> dict[str, Case]:
        images, labels = self.files("img"), self.files("label")
        return {
            name: Case(
                name,
                patient_of(self.config.patient, name),
                images[name][:1],
                labels[name][0] if name in labels else None,
            )
            for name in sorted(images)
        }

    @cached_property
    def labelled(self) -> dict[str, Case]:
        return {name: case for name, case in self.cases.items() if case.label is not None}

    # Checks ---------------------------------------------------------------------------------------------------------

    def check(self, test: bool = True) -> Iterator[Finding]:
        """See `Task.check`. `test`: look at the cases of the test part as well."""
        listed = self.config.split
        for kind in ("img", "label"):
            for path in self.listing(kind):
                if not re.fullmatch(rf"{kind}\d{{4}}(?i:\.nii(\.gz)?)", path.name):
                    yield Finding("note", str(path), f"is not named {kind}NNNN.nii.gz; it is left out")
            for name, paths in self.files(kind).items():
                if len(paths) > 1:
                    yield Finding("error", str(paths[1]), f"{name} is there twice ({paths[0]} too); keep one")
        if listed is None:
            yield from self.missing_cases(TRAIN)
            yield from self.missing_cases(TEST) if test else ()
            yield from splits.split_faults({"train": TRAIN, "test": TEST}, self.labelled, self.root, [])
        else:
            yield from splits.split_faults(listed, self.labelled, self.root)
        in_parts = {*TRAIN, *TEST} if listed is None else set(sum(listed.values(), ()))
        for name in sorted({*self.cases, *self.files("label")} - in_parts):
            yield self.unused_case(name)

    def unused_case(self, name: str) -> Finding:
        """Returns a note on a case that is in no part."""
        if name not in self.cases:
            label = self.files("label")[name][0]
            return Finding("note", str(label), f"has no image {name}.nii.gz; it is left out")
        image = str(self.cases[name].image[0])
        if name not in self.labelled:
            return Finding("note", image, "has no label; it serves pre-training only")
        whose = "TransUNet's split" if self.config.split is None else "task.split"
        return Finding("note", image, f"is not in {whose} and is not used; list it in task.split to use it")

    def missing_cases(self, wanted: Sequence[str]) -> Iterator[Finding]:
        """Yields cases of TransUNet's split without image or label: as notes if `partial` is set, else as errors."""
        severity = "note" if self.config.partial else "error"
        folder = "Training/" if (self.root / "Training").is_dir() else ""
        available = [name for name in wanted if name in self.labelled]
        remedy = "is left out (task.partial)" if self.config.partial else "get it, or set task.partial=true"
        if not available:
            what = f"has none of TransUNet's cases ({wanted[0]}, …) with a label; list your own cases in task.split"
            yield Finding("error", str(self.root), what)
            return
        for name in wanted:
            number = name.removeprefix("img")
            if name not in self.cases:
                image = str(self.root / f"{folder}img/{name}.nii.gz")
                yield Missing(severity, image, f"is missing: {remedy}")
            elif name not in self.labelled:
                label = self.root / f"{folder}label/label{number}.nii.gz"
                what = f"is missing, and {name}.nii.gz is there: {remedy}"
                yield Missing(severity, str(label), what)
        if self.config.partial and wanted is TRAIN and len(available) == 1:
            what = f"{available[0]} alone cannot be both train and val; get more, or list your own cases in task.split"
            yield Finding("error", str(self.root), what)

    # Scores ---------------------------------------------------------------------------------------------------------

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns the scores over the 13 organs, and `dice_8` and `hd95_8` over the 8 that the papers report."""
        eight = metrics.segmentation_summary(rows, EIGHT)
        return super().summary(rows) | {f"{name}_8": eight[name] for name in ("dice", "hd95") if name in eight}
