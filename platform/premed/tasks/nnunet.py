"""Any folder of nnU-Net's raw data: `dataset.json`, `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`.

nnU-Net validates on the part of a fold that it does not train on, and has no test part. Here val picks the checkpoint
and the test part is opened once, so that they cannot be the same cases:

- where labelsTs has labels of imagesTs, these cases are the test part, and a fold's train and val are train and val;
- else a fold's val is the test part (nnU-Net reports its score for the fold), and val is carved from its train;
- without splits_final.json, labelled cases are dealt by `split_seed`: `shares`, one of `folds`, or `val_share` if
  labelsTs is the test.

Images of imagesTs without a label are used for pre-training only, and with `unlabelled` those of imagesTr, too; those
of val and test never are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from premed.config.spec import added_field, runtime_field
from premed.contracts import Case, Part
from premed.data import splits
from premed.errors import Finding, Missing, UserError
from premed.paths import data_root
from premed.rng import key
from premed.tasks.common import volume_pairs
from premed.tasks.common.cross_validation import assign_parts
from premed.tasks.common.files import is_nnunet, read_json
from premed.tasks.common.nnunet_folder import SPLITS, RawFolder
from premed.tasks.common.patients import PatientPattern, guessed_pattern, several_scans
from premed.tasks.common.recognised import LAYOUT, Recognised
from premed.tasks.common.segmentation import Regions, Segmentation
from premed.tasks.common.volumes import VolumeSettings


class Config(VolumeSettings):
    """The folder is `root`, or `folder` below $PREMED_DATA. `roi` in voxels, `spacing` in mm."""

    name: Literal["nnunet"] = "nnunet"
    root: Path | None = runtime_field(None)
    folder: str = runtime_field("Dataset004_Hippocampus")
    patient: PatientPattern | None = added_field(None)
    """A pattern over case names whose first group is the patient; None: each image is a patient."""
    listing: str = runtime_field("dataset.json")
    """Below the root, or an absolute path; all files must be inside the root."""
    splits: str | None = runtime_field(None)
    """nnU-Net's splits_final.json, below the root; None: the one beside dataset.json, if there is one."""
    unlabelled: bool = added_field(False)
    """Images of imagesTr without a label in labelsTr (of `dataset`: entries without one) serve pre-training, as those
    of imagesTs do; false: their labels are missing, and that is refused."""
    folds: int | None = added_field(None, ge=2)
    """Where neither splits_final.json nor labelsTs gives the test part: so many folds of the patients, dealt by
    `split_seed` as for `msd`. None: one split."""
    fold: int = Field(0, ge=0)
    """Of splits_final.json, or of `folds`."""
    val_share: float = Field(0.15, gt=0, lt=1)
    """Share of the other cases that val is carved from, where neither a fold nor `shares` gives one."""

    @model_validator(mode="after")
    def _is_a_fold(self) -> Self:
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold: {self.fold} is not one of 0 to {self.folds - 1}")
        if self.folds is not None and self.split is not None:
            raise ValueError("folds and split exclude each other: split lists the parts")
        return self


def build(config: Config) -> "LabelTask | RegionTask":
    """Returns the task; reads channels and classes from `dataset.json`. Regions, if a label of it unites several."""
    folder = RawFolder(data_root(config.root, config.folder), config.listing, config.patient, config.unlabelled)
    return LabelTask(config, folder) if folder.labels.regions is None else RegionTask(config, folder)


def recognise(folder: Path) -> Recognised | None:
    """Returns how nnU-Net's raw data is read, or volumes with label maps that no file lists; None of other folders."""
    if not (folder / "dataset.json").is_file():
        return volume_pairs.recognise(folder)
    raw = RawFolder(folder, unlabelled=True)
    content = read_json(raw.listing, "")
    if not is_nnunet(folder, content):  # the decathlon's, or another tool's
        return None if isinstance(content, dict) and "training" in content else volume_pairs.recognise(folder)
    patient, reasons = guessed_pattern([*raw.cases.training, *raw.cases.test], [*raw.cases.unlabelled])
    reasons |= {"fold": "of splits_final.json, as nnU-Net counts them"} if raw.splits_file(None).is_file() else {}
    fields: dict[str, Any] = {"fold": 0} if "fold" in reasons else {}
    if bare := without_label(raw):
        fields["unlabelled"] = True
        what = f"{len(bare)} images of imagesTr have no label in labelsTr"
        reasons["unlabelled"] = f"{what}: pre-training learns from them"
    task = {"name": "nnunet", **fields, **patient}
    return Recognised("nnU-Net's raw data", LAYOUT, task, reasons, channels=raw.channel_names)


def without_label(raw: RawFolder) -> frozenset[str]:
    """Returns the cases of imagesTr without a label, in a folder where others have theirs; none if a fold of
    splits_final.json names one of them, or `numTraining` counts them: then their labels are missing.

    raw: the folder, read with `unlabelled`.
    """
    training, bare = raw.cases.training, raw.cases.bare
    listed = {name for fold in raw.folds(None) or () for name in (*fold.train, *fold.val)}
    expected = raw.content.get("numTraining")
    missing = isinstance(expected, int) and expected > len(training)
    return bare if training and not missing and not listed & bare else frozenset()


class Listed:
    """What labels and regions share: cases and parts."""

    dims = 3
    lenient: bool = False
    channel_files = True
    """Each channel of an image is a file, CASE_0000, CASE_0001, …: `premed predict` joins them."""

    def __init__(self, config: Config, folder: RawFolder):
        self.config, self.roi, self.folder = config, config.roi, folder
        self.overlap, self.window_batch = config.overlap, config.window_batch
        # a listing outside the root, such as `premed init` writes, names the data set no more than the folder it is in
        self.root, inside = folder.root, folder.folder.is_relative_to(folder.root)
        self.name = folder.folder.name if inside else folder.root.name
        self.classes, self.ignore = folder.labels.classes, folder.labels.ignore
        self.channels = folder.channels
        self.preprocessing = config.preprocessing(self.channels)

    def images(self) -> list[Case]:
        held = self.held_out() if self.config.unlabelled and self.folder.cases.training else set[str]()
        of_folder = [case for name, case in self.folder.cases.unlabelled.items() if name not in held]
        unlabelled = [case for case in of_folder if self.has_files(case)]
        train = self.split("train") if self.folder.cases.training or not unlabelled else []
        unlabelled = splits.unlabelled_to_learn(unlabelled, self.labelled.values(), train)
        return [Case(case.name, case.patient, case.image) for case in [*train, *unlabelled]]

    def split(self, part: Part) -> list[Case]:
        splits.raise_first_error(() if self.lenient else self.faults())
        if not self.folder.cases.training:
            raise self.folder.no_training()
        if self.config.split is not None:
            listed = splits.listed_cases(self.config.split, part, self.labelled, self.root, self.lenient)
        else:
            listed = [self.labelled[name] for name in self.parts()[part] if name in self.labelled]
        cases = [case for case in listed if self.has_files(case)]
        if not cases:
            what = f"{len(self.labelled)} labelled cases leave none that is there for {part}; list them in task.split"
            raise UserError(f"{self.folder.listing}: {what}")
        return cases

    def parts(self) -> dict[Part, list[str]]:
        """Returns the names of each part, whether the cases' files exist or not."""
        cases, share = self.folder.cases, self.config.val_share
        everyone = {case.patient for case in cases.training.values()}
        folds, seed = self.config.folds, key(self.config.split_seed, "nnunet", "split")
        fold = self.folder.fold(self.config.splits, self.config.fold) if folds is None else None
        if folds is not None or (fold is None and not cases.test):
            patients = assign_parts(everyone, folds, self.config.fold, self.config.shares, seed)
            part_of = {name: patients[case.patient] for name, case in cases.training.items()}
            return {part: [name for name in part_of if part_of[name] == part] for part in splits.PARTS}
        if fold is not None and cases.test:
            return {"train": fold.train, "val": fold.val, "test": [*cases.test]}
        names = [*cases.training] if fold is None else fold.train
        train, val = splits.carve_val(names, cases.training, share, key(seed, self.config.fold))
        return {"train": train, "val": val, "test": [*cases.test] if fold is None else fold.val}

    def held_out(self) -> set[str]:
        """The names that val and test list, whether a label is there or not: nothing learns from such an image."""
        parts = self.parts() if self.config.split is None else self.config.split
        return {name for part, names in parts.items() if part != "train" for name in names}

    def has_files(self, case: Case) -> bool:
        """False if the case is left out, because `partial` is set and a file is missing."""
        return self.lenient or not self.config.partial or all(path.is_file() for path in case.files)

    @property
    def num_folds(self) -> int | None:  # type: ignore[override]
        """Of `folds`, or of splits_final.json; None where labelsTs is the test part of each."""
        if self.config.split is not None or self.folder.cases.test:
            return None
        return self.config.folds or len(self.folder.folds(self.config.splits) or ()) or None

    @property
    def deals_folds(self) -> bool:
        """Whether `folds` may deal its patients: neither splits_final.json nor labelsTs gives the test part."""
        return not (self.folder.folds(self.config.splits) or self.folder.cases.test)

    @property
    def labelled(self) -> dict[str, Case]:
        """All cases with a label, by name."""
        return self.folder.cases.training | self.folder.cases.test

    # Checks ---------------------------------------------------------------------------------------------------------

    def check(self, test: bool = True) -> Iterator[Finding]:
        """See `Task.check`. `test`: look at the cases of the test part as well."""
        yield from self.faults()
        if self.config.patient is None and (what := several_scans([*self.labelled, *self.folder.cases.unlabelled])):
            yield Finding("note", str(self.folder.listing), what)
        yield from (finding for finding in self.folder.cases.findings if finding.severity == "note")
        try:
            parts = self.parts() if self.config.split is None else self.config.split
        except UserError:  # `faults` or `split` raise it
            return
        used = {name for part, names in parts.items() if test or part != "test" for name in names}
        for name in sorted(self.labelled.keys() - {name for names in parts.values() for name in names}):
            yield Finding("note", str(self.labelled[name].image[0]), "is in no part and is not used")
        labelled = [self.labelled[name] for name in sorted(used & self.labelled.keys())]
        for case in (*labelled, *self.folder.cases.unlabelled.values()):
            yield from self.missing_files(case)

    def faults(self) -> Iterator[Finding]:
        """Yields what is wrong with dataset.json, the files' names and the folds: notes if `partial` is set and an
        incomplete copy explains it, else errors."""
        severity = "note" if self.config.partial else "error"
        yield from (finding for finding in self.folder.cases.findings if finding.severity == "error")
        yield from (finding._replace(severity=severity) for finding in self.folder.cases.incomplete)
        if self.config.split is not None:
            yield from splits.split_faults(self.config.split, self.labelled, self.root)
            return
        fold = None
        if self.config.folds is None:
            fold = self.folder.fold(self.config.splits, self.config.fold)
        elif listed := self.folder.folds(self.config.splits) or self.folder.cases.test:
            given = f"{SPLITS} has the folds" if isinstance(listed, list) else "labelsTs is the test part"
            yield Finding("error", "task.folds", f"{given}; leave task.folds out")
            return
        part_of = {name: part for part, names in self.parts().items() for name in names if name in self.labelled}
        for what in splits.shared_patients((self.labelled[name].patient for name in part_of), part_of.values()):
            yield Finding("error", str(self.folder.listing), what)
        if fold is None:
            return
        where, number = str(self.folder.splits_file(self.config.splits)), self.config.fold
        for name in sorted({*fold.train} & {*fold.val}):
            yield Finding("error", where, f"fold {number} has {name} in train and in val; keep it in one")
        for name in sorted({*fold.train, *fold.val} - self.folder.cases.training.keys()):
            what = f"fold {number} lists {name}, and imagesTr has no such case; fix the name"
            yield Missing(severity, where, what)

    def missing_files(self, case: Case) -> Iterator[Finding]:
        """Yields files of a case that are not on disk: as notes if `partial` is set, else as errors."""
        for path in case.files:
            if path.is_file():
                continue
            state = "is a link to a file that is not there" if path.is_symlink() else "is missing"
            state, kind = ("is no regular file", Finding) if path.exists() else (state, Missing)
            if self.config.partial:
                yield kind("note", str(path), f"{state}: {case.name} is left out (task.partial)")
            else:
                what = f"{state}, and {case.name} needs it; copy it there, or set task.partial=true"
                yield kind("error", str(path), what)


class LabelTask(Listed, Segmentation):
    """Images [C, *roi], one label per voxel; scored by the mean Dice over the labels."""


class RegionTask(Listed, Regions):
    """Images [C, *roi], regions that may overlap; scored by the mean Dice over the regions."""

    def __init__(self, config: Config, folder: RawFolder):
        super().__init__(config, folder)
        self.painted = folder.painted

    @property
    def labels(self) -> tuple[int, ...]:
        """The values that label maps may contain, `ignore` included."""
        return self.folder.labels.values

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        return dict(self.folder.labels.regions or {})

    @property
    def label_meaning(self) -> dict[str, Any]:
        """Of dataset.json, which may change while the regions' names do not."""
        return {"ignore": self.ignore, "regions": self.regions, "painted": self.painted}
