"""Any folder in the layout of the Medical Segmentation Decathlon: `dataset.json`, `imagesTr/`, `labelsTr/`.

The decathlon's test images have no labels, so the labelled cases are split 60/15/25 into train, val and test by
`split_seed`, dealt to `folds`, or as `split` lists them. Images without a label are used for pre-training only.
"""

from collections.abc import Iterator
from os.path import realpath  # unlike Path.resolve, of a link to itself too
from pathlib import Path
from typing import Literal

from premed.config.spec import runtime_field
from premed.contracts import Case, Part
from premed.data import splits
from premed.errors import Finding, Missing, UserError
from premed.paths import data_root
from premed.rng import key
from premed.tasks.common.cross_validation import FoldSettings, assign_parts
from premed.tasks.common.decathlon import PATIENT_FIELDS, Decathlon
from premed.tasks.common.files import is_nnunet, read_json
from premed.tasks.common.patients import guessed_pattern
from premed.tasks.common.recognised import LAYOUT, Recognised
from premed.tasks.common.segmentation import Segmentation
from premed.tasks.common.volumes import VolumeSettings


class Config(VolumeSettings, FoldSettings):
    """The folder is `root`, or `folder` below $PREMED_DATA. `roi` in voxels, `spacing` in mm."""

    name: Literal["msd"] = "msd"
    root: Path | None = runtime_field(None)
    folder: str = runtime_field("Task04_Hippocampus")


def build(config: Config) -> "MSD":
    """Returns the task; reads channels and classes from `dataset.json`."""
    return MSD(config)


def recognise(folder: Path) -> Recognised | None:
    """Returns how a folder in the decathlon's layout is read; None of other folders."""
    if not (folder / "dataset.json").is_file():
        return None
    listed = Decathlon(folder)
    if is_nnunet(folder, read_json(listed.listing, "")):
        return None
    by_field = {finding.what for finding in listed.patient_notes() if "have a field" in finding.what}
    named = next((name for name in PATIENT_FIELDS if any(f"field {name!r}" in what for what in by_field)), None)
    cases = [each.case for each in listed.entries.cases]
    bare = [case.name for case in cases if case.label is None]
    patient, reasons = guessed_pattern([case.name for case in cases if case.label is not None], bare)
    if named:
        patient, reasons = {"patient": named}, {"patient": "a field of each entry of dataset.json"}
    task = {"name": "msd", **patient}
    return Recognised("the decathlon's layout", LAYOUT, task, reasons, channels=listed.channel_names)


class MSD(Segmentation):
    """Images [C, *roi]; scored by the mean Dice over the labels."""

    dims = 3

    def __init__(self, config: Config):
        self.config, self.roi = config, config.roi
        self.overlap, self.window_batch = config.overlap, config.window_batch
        self.folder = Decathlon(data_root(config.root, config.folder), config.patient)
        self.root, self.name = self.folder.root, self.folder.root.name
        self.classes, self.channels, self.ignore = self.folder.classes, self.folder.channels, self.folder.labels.ignore
        self.preprocessing = config.preprocessing(self.channels)
        self.num_folds = config.folds

    def images(self) -> list[Case]:
        labelled = [case for case in self.cases if case.label is not None]
        train = self.split("train") if labelled else []
        unlabelled = [case for case in self.cases if case.label is None and self.has_files(case)]
        wanted = {case.name for case in [*train, *splits.unlabelled_to_learn(unlabelled, labelled, train)]}
        return [Case(case.name, case.patient, case.image) for case in self.cases if case.name in wanted]

    def split(self, part: Part) -> list[Case]:
        if all(case.label is None for case in self.cases):
            raise self.folder.no_labels()
        listed = self.part_cases(part)
        cases = [case for case in listed if self.has_files(case)]
        if not cases:
            raise UserError(f"{self.root}: none of the {len(listed)} cases of {part} is there; check the folder")
        return cases

    def part_cases(self, part: Part) -> list[Case]:
        """Returns the labelled cases of `part`, whether their files exist or not."""
        by_name = {each.case.name: each.case for each in self.folder.entries.cases if each.case.label is not None}
        if self.config.split is not None:
            return splits.listed_cases(self.config.split, part, by_name, self.root)
        seed, patients = key(self.config.split_seed, "msd", "split"), {case.patient for case in by_name.values()}
        of = assign_parts(patients, self.config.folds, self.config.fold, self.config.shares, seed)
        cases = [by_name[name] for name in sorted(by_name) if of[by_name[name].patient] == part]
        if not cases:
            whose = f"{len(by_name)} labelled cases" + f" of {len(patients)} patients" * (len(patients) < len(by_name))
            raise UserError(f"{self.folder.listing}: {whose} leave none for {part}; list them in task.split")
        return cases

    def has_files(self, case: Case) -> bool:
        """False if the case is left out, because `partial` is set and a file is missing."""
        return self.lenient or not self.config.partial or all(path.is_file() for path in case.files)

    @property
    def cases(self) -> list[Case]:
        """All of `training` and `test`, in the file's order. Raises UserError if an entry is invalid."""
        splits.raise_first_error(() if self.lenient else self.folder.entries.faults)
        return [each.case for each in self.folder.entries.cases]

    def check(self, test: bool = True) -> Iterator[Finding]:
        entries = self.folder.entries
        yield from entries.faults
        yield from self.folder.patient_notes()
        cases = [each.case for each in entries.cases]
        labelled = [case for case in cases if case.label is not None]
        hidden = set[str]()
        if not test and labelled:
            try:
                hidden = {case.name for case in self.part_cases("test")}
            except UserError:  # `split` raises it
                hidden = {case.name for case in labelled}
        for case in cases:
            for path in case.files if case.name not in hidden else ():
                if path.is_file():
                    continue
                if self.config.partial:
                    yield Missing("note", str(path), f"is listed and not there: {case.name} is left out")
                else:
                    what = "is listed and missing; download it, or set task.partial=true"
                    yield Missing("error", str(path), what)
        for path in entries.missing_unlabelled:
            yield Missing("note", str(path), "is listed under `test` and not there: it is left out")
        known = {
            realpath(path) for path in [*entries.missing_unlabelled, *(path for case in cases for path in case.files)]
        }
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            for path in sorted((self.root / folder).glob("[!.]*.[nN][iI][iI]*")):
                if realpath(path) not in known:
                    yield Finding("note", str(path), "is in no entry of dataset.json: it is not used")
        users: dict[Path, list[str]] = {}
        for case in labelled:
            users.setdefault(case.files[-1], []).append(case.name)
        for label, names in users.items():
            if len(names) > 1:
                yield Finding("note", str(label), f"is the label of {', '.join(names)}: one patient in several cases?")
