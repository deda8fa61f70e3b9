"""nnU-Net's raw layout: parses a folder's `dataset.json`, finds its cases, reads the folds of `splits_final.json`.

Version 2 and version 1 (which has `modality` in place of `channel_names`, labels by number, and no `file_ending`):
`imagesTr/CASE_0000.nii.gz, CASE_0001.nii.gz, …`, a file per channel; `labelsTr/CASE.nii.gz`; `imagesTs/` alike, and
`labelsTs/` where there are labels for them. A `dataset` in dataset.json names the files of each training case instead.
"""

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from premed.contracts import Case
from premed.errors import Finding, UserError
from premed.tasks.common.files import is_decathlon, path_error, read_json, table_path
from premed.tasks.common.labels import Labels, parse_labels
from premed.tasks.common.patients import patient_of, patients_alike

SPLITS = "splits_final.json"
READ = (".nii.gz", ".nii")
CONVERTIBLE = (".nrrd", ".nhdr", ".mha", ".mhd")
CONVERT = (
    "import SimpleITK as s, pathlib, sys; "
    "[s.WriteImage(s.ReadImage(str(f)), str(f)[:-{length}] + '.nii.gz') "
    "for f in pathlib.Path(sys.argv[1]).rglob('*{ending}')]"
)


class Fold(NamedTuple):
    """The names of a fold's cases."""

    train: list[str]
    val: list[str]


class Cases(NamedTuple):
    """The cases of a folder by name, and what is wrong with them. Listed files may be missing."""

    training: dict[str, Case]
    """Of imagesTr, or of `dataset`; each has a label."""
    test: dict[str, Case]
    """Of imagesTs, with a label in labelsTs."""
    unlabelled: dict[str, Case]
    """The rest of imagesTs, and what of imagesTr has no label, where that is allowed (`task.unlabelled`)."""
    bare: frozenset[str]
    """Of these, those of imagesTr."""
    findings: list[Finding]
    incomplete: list[Finding]
    """What an incomplete copy of the data would explain."""


class RawFolder:
    """A folder of nnU-Net's raw data, read when first used. Raises UserError if its dataset.json is invalid."""

    def __init__(self, root: Path, listing: str = "dataset.json", patient: str | None = None, unlabelled: bool = False):
        """listing: dataset.json, below `root`; all files must be inside `root`. patient: `task.patient`, a pattern.
        unlabelled: training cases without a label are unlabelled ones; False: their labels are missing."""
        self.patient, self.unlabelled = patient, unlabelled
        self.root, self.listing, self.real_root = root, table_path(root, listing, "task.listing"), root.resolve()
        self.folder = self.listing.parent

    @cached_property
    def content(self) -> dict[str, Any]:
        missing = "is missing: task.root must be a folder of nnU-Net's raw data, such as Dataset004_Hippocampus"
        content = read_json(self.listing, f"{self.listing} {missing}")
        if not isinstance(content, dict):
            raise UserError(f"{self.listing}: must be an object with `channel_names`, `labels` and `file_ending`")
        if is_decathlon(self.folder, content):
            what = "is of the Medical Segmentation Decathlon's layout (`training` lists the files as they are named)"
            raise UserError(f"{self.listing}: {what}; set task.name=msd")
        return content

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return len(self.channel_names)

    @cached_property
    def channel_names(self) -> tuple[str, ...]:
        """The names of an image's channels, in their order."""
        names = self.content.get("channel_names", self.content.get("modality"))
        if not isinstance(names, dict) or not names or set(names) != set(map(str, range(len(names)))):
            what = '`channel_names` must number each channel from 0 on, as in {"0": "T2", "1": "ADC"}'
            raise UserError(f"{self.listing}: {what}")
        return tuple(str(names[str(number)]) for number in range(len(names)))

    @cached_property
    def ending(self) -> str:
        """The suffix of all files. Raises UserError, with the way to convert them, if it is none that can be read."""
        ending = self.content.get("file_ending", READ[0])
        if ending in READ:
            return ending
        if ending in CONVERTIBLE:
            raise UserError(f"{self.listing}: `file_ending` {ending} is not read: {self.conversion(ending)}")
        what = f"`file_ending` {ending!r} is not read; volumes must be NIfTI, .nii.gz or .nii"
        raise UserError(f"{self.listing}: {what}")

    def conversion(self, ending: str) -> str:
        """Returns how to convert files of that suffix."""
        code = CONVERT.format(length=len(ending), ending=ending)
        command = f'python -c "{code}" {shlex.quote(str(self.folder))}'
        return f"run {command} (needs pip install SimpleITK), and set it to .nii.gz"

    def no_training(self) -> UserError:
        """The error for a folder without training cases, where labels are needed."""
        folder = self.folder / "imagesTr"
        for ending in CONVERTIBLE:
            if next(folder.glob(f"[!.]*{ending}"), None):
                what = f"holds {ending} files, and `file_ending` is {self.ending}: {self.conversion(ending)}"
                return UserError(f"{folder}: {what}")
        what = f"holds no CASE_0000{self.ending}; without labelled cases there, images can only be pre-trained on"
        return UserError(f"{folder}: {what}")

    @cached_property
    def labels(self) -> Labels:
        """What the values of label maps mean."""
        return parse_labels(self.listing, self.content.get("labels"), with_regions=True)

    @cached_property
    def painted(self) -> tuple[int, ...] | None:
        """The label of each region in a predicted label map, `regions_class_order`; None if there is none."""
        order, regions = self.content.get("regions_class_order"), self.labels.regions
        if order is None or regions is None:
            return None
        if not isinstance(order, list) or len(order) != len(regions):
            raise UserError(
                f"{self.listing}: `regions_class_order` must list one label for each of {', '.join(regions)}"
            )
        for label, (name, united) in zip(order, regions.items(), strict=True):
            if label not in united:
                what = f"`regions_class_order` paints {name} with {label!r}, which it does not unite; order both alike"
                raise UserError(f"{self.listing}: {what}")
        return tuple(order)

    @cached_property
    def cases(self) -> Cases:
        """All cases, in alphabetical order."""
        findings, incomplete = list[Finding](), list[Finding]()
        listed = self.content.get("dataset")
        if isinstance(listed, dict):
            every = dict(self.listed_cases(listed, findings))
        else:
            images = self.scan("imagesTr", findings)
            every = {name: self.case(name, paths, self.label("labelsTr", name)) for name, paths in images.items()}
            findings += self.unused_labels("labelsTr", images)
        bare = {n: self.case(n, c.image) for n, c in every.items() if self.unlabelled and not names_label(c, listed)}
        training = {name: case for name, case in every.items() if name not in bare}
        others, test = self.scan("imagesTs", findings), dict[str, Case]()
        for name in sorted(others.keys() & every.keys()):
            where = str(others[name][0])
            findings.append(Finding("error", where, f"{name} is a training case, too; rename one, or remove a copy"))
        for name in others.keys() - every.keys():
            if os.path.lexists(label := self.label("labelsTs", name)):
                test[name] = self.case(name, others[name], label)
        findings += self.unused_labels("labelsTs", others)
        unlabelled = {n: self.case(n, others[n]) for n in sorted(others.keys() - every.keys() - test.keys())}
        expected = self.content.get("numTraining")
        if training and bare and isinstance(expected, int) and expected > len(training):  # else others make up test
            what = f"`numTraining` is {expected}, and {len(training)} of the {len(every)} training images have a label"
            mend = f"copy the missing labels to labelsTr, or, if there are none, set it to {len(training)}"
            findings.append(Finding("error", str(self.listing), f"{what}: {mend}"))
        elif isinstance(expected, int) and training and expected != len(training):
            what = f"`numTraining` is {expected}, and {len(training)} are there; complete the copy, or fix the number"
            incomplete.append(Finding("error", str(self.listing), what))
        test = {name: test[name] for name in sorted(test)}
        if self.patient is not None:
            named = (case.patient for case in (training | test | bare | unlabelled).values())
            findings += [Finding("error", str(self.listing), what) for what in patients_alike(named)]
        return Cases(training, test, bare | unlabelled, frozenset(bare), findings, incomplete)

    def case(self, name: str, images: tuple[Path, ...], label: Path | None = None) -> Case:
        return Case(name, patient_of(self.patient, name), images, label)

    def label(self, folder: str, name: str) -> Path:
        return self.folder / folder / f"{name}{self.ending}"

    def volumes(self, folder: str) -> list[Path]:
        """Returns the NIfTI files in a folder, whatever they are called."""
        return sorted((self.folder / folder).glob("[!.]*.[nN][iI][iI]*"))

    def scan(self, folder: str, findings: list[Finding]) -> dict[str, tuple[Path, ...]]:
        """Returns the files of each case in a folder, one per channel, whether all of them are there or not."""
        pattern, channels = re.compile(rf"(.+)_(\d{{4}}){re.escape(self.ending)}"), defaultdict[str, set[int]](set)
        for path in self.volumes(folder):
            found = pattern.fullmatch(path.name)
            if not found:
                findings.append(Finding("note", str(path), f"is not named CASE_0000{self.ending}; it is not used"))
            elif int(found[2]) >= self.channels:
                what = (
                    f"is channel {int(found[2])}, and dataset.json names 0 to {self.channels - 1}; fix the names there"
                )
                findings.append(Finding("error", str(path), what))
            else:
                channels[found[1]].add(int(found[2]))
        numbers = range(self.channels)
        return {
            name: tuple(self.folder / folder / f"{name}_{number:04d}{self.ending}" for number in numbers)
            for name in sorted(channels)
        }

    def unused_labels(self, folder: str, images: dict[str, Any]) -> Iterator[Finding]:
        """Yields a note on each file among the labels that belongs to no image."""
        for path in self.volumes(folder):
            if not path.name.endswith(self.ending) or path.name.removesuffix(self.ending) not in images:
                yield Finding("note", str(path), "is the label of no image; it is not used")

    def listed_cases(self, listed: dict[str, Any], findings: list[Finding]) -> Iterator[tuple[str, Case]]:
        """Yields the cases of `dataset`, and adds an error for each invalid entry."""
        for name in sorted(listed):
            try:
                yield name, self.listed_case(name, listed[name])
            except UserError as error:
                findings.append(Finding.of(error))

    def listed_case(self, name: str, entry: Any) -> Case:
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        names = [image for image in images if isinstance(image, str)] if isinstance(images, list) else []
        if label is None and self.unlabelled and isinstance(entry, dict) and "label" not in entry:
            label = ""
        if not names or names != images or not isinstance(label, str):
            raise UserError(f"{self.listing}: `dataset` {name} must be {{images: [one per channel], label: …}}")
        if len(names) != self.channels:
            what = f"`dataset` {name} lists {len(names)} image(s), and there are {self.channels} channels"
            raise UserError(f"{self.listing}: {what}; list one for each")
        return self.case(name, tuple(map(self.resolve, names)), self.resolve(label) if label else None)

    def resolve(self, file: str) -> Path:
        """Returns the path of a listed file. Raises UserError if it is not inside the root."""
        path = os.path.normpath(os.path.join(os.path.relpath(self.folder, self.root), os.path.expandvars(file)))
        if wrong := path_error(self.root, self.real_root, path):
            wider = " (or set task.root above them, and task.listing)" if "leads out" in wrong else ""
            raise UserError(f"{self.listing}: {wrong}{wider}")
        return self.root / path

    def splits_file(self, splits: str | None) -> Path:
        """Returns the path of `splits` (below the root); None: of the one beside dataset.json."""
        return self.folder / SPLITS if splits is None else self.root / splits

    def folds(self, splits: str | None) -> list[Fold] | None:
        """Returns the folds of `splits_file`; None if nothing asks for them and there is no such file.

        Raises UserError if the file is invalid. What else a fold has (`seed`, say) is not read.
        """
        path = self.splits_file(splits)
        if splits is None and not path.exists():
            return None
        if wrong := path_error(self.root, self.real_root, str(path)):
            raise UserError(f"task.splits: {wrong}")
        content = read_json(path, f"{path} is missing: set task.splits to nnU-Net's {SPLITS}, below task.root")
        folds = content if isinstance(content, list) else []
        if not folds or not all(map(is_fold, folds)):
            raise UserError(f"{path}: must be a list of folds, {{train: [case, …], val: [case, …]}} each")
        return [Fold(*(list(dict.fromkeys(fold[part])) for part in Fold._fields)) for fold in folds]

    def fold(self, splits: str | None, number: int) -> Fold | None:
        """Returns one of `folds`, or None. Raises UserError if the file is invalid or has no such fold."""
        folds, path = self.folds(splits), self.splits_file(splits)
        if folds is None:
            if number:
                raise UserError(f"task.fold: is {number}, and {path} is missing; copy it there, or set task.splits")
            return None
        if number >= len(folds):
            raise UserError(f"task.fold: is {number}, and {path} has the folds 0 to {len(folds) - 1}")
        return folds[number]


def names_label(case: Case, listed: Any) -> bool:
    """Whether a training case has a label, be it missing: an entry of `dataset` (`listed`) names it, or there is
    something of its name in labelsTr, such as a link to a file that was not fetched."""
    return isinstance(case.label, Path) and (isinstance(listed, dict) or os.path.lexists(case.label))


def is_fold(fold: Any) -> bool:
    """True if `fold` has names in train and in val."""
    parts = [fold.get(part) for part in Fold._fields] if isinstance(fold, dict) else [None]
    return all(isinstance(part, list) and part and all(isinstance(name, str) for name in part) for part in parts)
