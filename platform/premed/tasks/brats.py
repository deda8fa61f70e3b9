"""Brain tumours of the Medical Segmentation Decathlon's Task01 (BraTS 2016 and 2017): four MRI channels, three regions.

The labels are 1 edema, 2 non-enhancing and 3 enhancing tumour. The challenge's nested regions are scored: enhancing
tumour (ET), tumour core (TC), whole tumour (WT). The test part is one of five folds of the labelled cases, as in
SelfMedMAE, where the same fold selects the checkpoint; here val is carved from the other four.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from premed.config.image_processing import Preprocessing
from premed.config.spec import Spec, added_field, runtime_field
from premed.contracts import Case, Part
from premed.data import splits
from premed.errors import Finding, Missing, UserError
from premed.paths import data_root
from premed.rng import key, permutation
from premed.tasks.common.decathlon import Decathlon
from premed.tasks.common.patients import PatientRule
from premed.tasks.common.recognised import OWN, Recognised
from premed.tasks.common.segmentation import Regions

FOLDS = 5
CHANNELS = ("flair", "t1w", "t1gd", "t2w")


class Config(Spec):
    """SelfMedMAE's preprocessing: each channel normalised over non-zero voxels; `roi` in voxels, `spacing` in mm."""

    name: Literal["brats"] = "brats"
    root: Path | None = runtime_field(None)
    roi: tuple[PositiveInt, PositiveInt, PositiveInt] = (128, 128, 128)
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0)
    crop_foreground: bool = False
    """Crop to the bounding box of the brain: smaller images, and less air in crops."""
    overlap: float = Field(0.5, ge=0, lt=1)
    window_batch: int = runtime_field(4, ge=1)
    patient: PatientRule | None = added_field(None)
    """A field of each entry of dataset.json, or a pattern over case names whose first group is the patient, as in
    '(.+)_[0-9]+'; None: each image is a patient. All images of a patient go to one part."""
    split_seed: int = 0
    fold: int = Field(0, ge=0, lt=FOLDS)
    """The fold of the test part."""
    val_share: float = Field(0.1, gt=0, lt=1)
    """Share of the other folds' cases: 39 of 387."""
    split: splits.Split | None = None
    """Case names (BRATS_001, …) per part, in place of the folds."""
    partial: bool = runtime_field(False)
    """Listed cases that are not on disk are left out rather than refused; the folds do not change."""
    test_images: bool = False
    """Pre-train on the decathlon's unlabelled test images, too; SelfMedMAE does not."""
    legacy_et_label2: bool = False
    """ET as in SelfMedMAE and a MONAI tutorial: label 2, which is the non-enhancing tumour."""


def build(config: Config) -> "Brats":
    """Returns the task; `dataset.json` is read when cases are first requested."""
    return Brats(config)


def recognise(folder: Path) -> Recognised | None:
    """Returns how the decathlon's Task01 is read; None of other folders."""
    try:
        task = build(Config.model_validate({"root": folder}))
        names = task.folder.channel_names
    except UserError:
        return None
    return Recognised("the decathlon's Task01, BraTS", OWN, {"name": "brats"}, channels=names)


class Brats(Regions):
    """Images [4, *roi]; scored by the mean Dice over TC, WT and ET."""

    name = "brats"
    dims, channels, classes = 3, 4, ("TC", "WT", "ET")

    def __init__(self, config: Config):
        self.config, self.roi = config, config.roi
        self.overlap, self.window_batch = config.overlap, config.window_batch
        self.num_folds = None if config.split else FOLDS
        self.preprocessing = Preprocessing(
            dims=3,
            channels=4,
            spacing=config.spacing,
            crop_foreground=config.crop_foreground,
            normalise="zscore_nonzero",
        )

    @property
    def labels(self) -> tuple[int, ...]:
        """The values that label maps may contain."""
        return 0, 1, 2, 3

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        return {"TC": (2, 3), "WT": (1, 2, 3), "ET": (2,) if self.config.legacy_et_label2 else (3,)}

    def images(self) -> list[Case]:
        """Returns training cases, and listed images without a label."""
        kinds = ("training", "test") if self.config.test_images else ("training",)
        unlabelled = [each for each in self.folder.entries.cases if each.case.label is None and each.part in kinds]
        unlabelled_cases = [each.case for each in unlabelled if each.on_disk]
        train = [] if unlabelled_cases and not self.labelled else self.split("train")
        cases = [*train, *splits.unlabelled_to_learn(unlabelled_cases, self.labelled.values(), train)]
        return [Case(case.name, case.patient, case.image) for case in cases]

    def split(self, part: Part) -> list[Case]:
        splits.raise_first_error(() if self.lenient else self.folder.entries.faults)
        if not self.labelled:
            raise self.folder.no_labels()
        if self.config.split is not None:
            cases = splits.listed_cases(self.config.split, part, self.labelled, self.root, self.lenient)
        else:
            cases = [self.labelled[name] for name in self.deal_parts()[part]]
        splits.raise_first_error(() if self.lenient else self.missing(cases))
        on_disk = [case for case in cases if not [*self.missing([case])]]
        if not on_disk:
            raise UserError(
                f"{self.folder.listing}: {len(self.labelled)} labelled cases leave none on disk for {part}; "
                "set task.fold, or list cases in task.split"
            )
        return on_disk

    def deal_parts(self) -> dict[Part, list[str]]:
        """Returns the names of each part. Fold i has positions i, i + 5, i + 10, … of a seeded permutation of patients.

        The folds do not depend on what is on disk. 484 cases make folds of 97, 97, 97, 97 and 96, as MONAI's
        CrossValidation does, but not of the same cases: the permutation differs.
        """
        names, seed = sorted(self.labelled), self.config.split_seed
        patients = sorted({case.patient for case in self.labelled.values()})
        fold = permutation(key(seed, "brats folds"), len(patients))[self.config.fold :: FOLDS]
        test = [name for name in names if self.labelled[name].patient in {patients[i] for i in fold}]
        rest = [name for name in names if name not in test]
        of = key(seed, "brats val", self.config.fold)
        train, val = splits.carve_val(rest, self.labelled, self.config.val_share, of)
        return {"train": train, "val": val, "test": test}

    # Files ----------------------------------------------------------------------------------------------------------

    @cached_property
    def root(self) -> Path:
        return data_root(self.config.root, "Task01_BrainTumour")

    @cached_property
    def folder(self) -> Decathlon:
        """The folder. Raises UserError unless labels and channels are Task01's: the regions depend on their numbers."""
        folder = Decathlon(self.root, self.config.patient)
        classes = (*folder.classes, *(() if folder.labels.ignore is None else ("ignore",)))
        names = [name.lower() for name in classes[1:]]
        if not (len(names) == 3 and "edema" in names[0] and "non" in names[1] and names[2].startswith("enhanc")):
            raise UserError(
                f"{folder.listing}: `labels` are {', '.join(classes)}; they must be Task01's: "
                "1 edema, 2 non-enhancing tumor, 3 enhancing tumour"
            )
        if folder.channels != len(CHANNELS):
            raise UserError(f"{folder.listing}: `modality` must be Task01's four: {', '.join(CHANNELS)}")
        return folder

    @cached_property
    def labelled(self) -> dict[str, Case]:
        """All cases that are listed with a label, by name."""
        return {each.case.name: each.case for each in self.folder.entries.cases if each.case.label is not None}

    # Checks ---------------------------------------------------------------------------------------------------------

    def check(self, test: bool = True) -> Iterator[Finding]:
        """See `Task.check`. `test`: look at the cases of the test part as well."""
        yield from self.folder.entries.faults
        yield from self.folder.patient_notes()
        for each in self.folder.entries.cases:
            if each.case.label is None and each.part == "training":
                what = "has no label; it serves" if each.on_disk else "is missing and has no label; it would serve"
                yield Finding("note", str(each.case.image[0]), f"{what} pre-training only")
        if self.config.split is not None:
            yield from splits.split_faults(self.config.split, self.labelled, self.root)
            used = {name for names in self.config.split.values() for name in names}
        else:
            used = {name for part, names in self.deal_parts().items() if test or part != "test" for name in names}
        yield from self.missing([case for name, case in self.labelled.items() if name in used])

    def missing(self, cases: Iterable[Case]) -> Iterator[Finding]:
        """Yields files that are not on disk: as notes if `partial` is set, else as errors."""
        partial = self.config.partial
        for case in cases:
            for file in (case.image[0], case.label):
                if isinstance(file, Path) and not file.is_file():
                    remedy = (
                        f"{case.name} is left out (task.partial)" if partial else "get it, or set task.partial=true"
                    )
                    severity = "note" if partial else "error"
                    yield Missing(severity, str(file), f"is listed and missing: {remedy}")
