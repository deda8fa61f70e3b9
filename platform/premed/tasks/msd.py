"""Any folder in the layout of the Medical Segmentation Decathlon: `dataset.json`, `imagesTr/`, `labelsTr/`.

The decathlon's own test images have no labels, so the labelled ones are dealt 60/15/25 into train, val and test by
`split_seed`, or as `split` lists them. Entries without a label serve pre-training only.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from os.path import realpath  # unlike Path.resolve, of a link to itself too
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import PositiveFloat, PositiveInt, model_validator

from premed.config.spec import Spec, elsewhere, scoring
from premed.config.transforms import Recipe
from premed.contracts import Case, Part
from premed.errors import Finding, UserError
from premed.paths import data_root
from premed.rng import key, permutation
from premed.tasks.common.decathlon import case_names, misplaced
from premed.tasks.common.segmentation import Segmentation


class Config(Spec):
    """`root`, or `folder` below $PREMED_DATA. Numbers are in the field's units: voxels for roi, mm for spacing."""

    name: Literal["msd"] = "msd"
    root: Path | None = elsewhere(None)
    folder: str = elsewhere("Task04_Hippocampus")
    roi: tuple[PositiveInt, PositiveInt, PositiveInt] = (96, 96, 96)
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """None keeps each image's own."""
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = (0.5, 99.5)
    normalise: Literal["window", "zscore", "zscore_nonzero"] = "zscore"
    crop_foreground: bool = False
    overlap: float = scoring(0.5, ge=0, lt=1)
    window_batch: int = elsewhere(4, ge=1)
    split_seed: int = 0
    shares: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.6, 0.15, 0.25)
    """Of the labelled cases: train, val, test."""
    split: dict[Part, tuple[str, ...]] | None = None
    """Case names (hippocampus_001, …) per part, in place of the dealing."""
    partial: bool = elsewhere(False)
    """Listed cases that are not on disk are left out of the part they belong to, rather than refused."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares: {list(self.shares)} do not add up to 1")
        if self.window and self.percentiles:
            raise ValueError("window and percentiles exclude each other; set percentiles: null")
        self.recipe(1)
        return self

    def recipe(self, channels: int) -> Recipe:
        """The preprocessing these fields ask for."""
        return Recipe(
            dims=3,
            channels=channels,
            spacing=self.spacing,
            window=self.window,
            percentiles=self.percentiles,
            normalise=self.normalise,
            crop_foreground=self.crop_foreground,
        )


def build(config: Config) -> "MSD":
    """The task; `dataset.json` is read at once, for channels and classes."""
    return MSD(config)


class Listing(NamedTuple):
    """dataset.json's entries as read, and what is wrong with them."""

    cases: list[Case]
    absent: list[Path]  # of `test`, and not on disk
    wrong: list[Finding]


class MSD(Segmentation):
    """Images [C, *roi]; scored by the mean Dice over the labels."""

    dims = 3

    def __init__(self, config: Config):
        self.name = config.folder if config.root is None else Path(config.root).name
        self.config, self.roi = config, config.roi
        self.overlap, self.window_batch = config.overlap, config.window_batch
        channels = self.about.get("modality", self.about.get("channel_names"))
        self.channels = len(channels) if isinstance(channels, dict) else 0
        self.classes = self.read_classes()
        self.recipe = config.recipe(self.channels)

    def images(self) -> list[Case]:
        labelled = any(case.label is not None for case in self.entries)
        training = {case.name for case in self.split("train")} if labelled else set()
        wanted = [case for case in self.entries if case.name in training or (case.label is None and self.kept(case))]
        return [Case(case.name, case.patient, case.image) for case in wanted]

    def split(self, part: Part) -> list[Case]:
        labelled = {case.name: case for case in self.entries if case.label is not None}
        if not labelled:
            raise UserError(f"{self.listing}: no entry has a label; these images can only be pre-trained on")
        names = self.names(part, labelled)
        cases = [labelled[name] for name in names if self.kept(labelled[name])]
        if not cases:
            raise UserError(f"{self.root}: none of the {len(names)} cases of {part} is there; check the folder")
        return cases

    def dealt(self, part: Part, names: list[str]) -> list[str]:
        order = [names[i] for i in permutation(key(self.config.split_seed, "msd", "split"), len(names))]
        train, val = (max(1, round(share * len(order))) for share in self.config.shares[:2])
        dealt = {"train": order[:train], "val": order[train : train + val], "test": order[train + val :]}
        if not dealt[part]:
            raise UserError(
                f"{self.listing}: {len(names)} labelled cases leave none for {part}; list them in task.split"
            )
        return sorted(dealt[part])

    def names(self, part: Part, labelled: dict[str, Case]) -> Sequence[str]:
        return self.listed(part, labelled) if self.config.split is not None else self.dealt(part, sorted(labelled))

    def listed(self, part: Part, labelled: dict[str, Case]) -> tuple[str, ...]:
        assert self.config.split is not None
        names = [name for listed in self.config.split.values() for name in listed]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"task.split: {min(twice)} stands in two parts; keep it in one")
        if unknown := set(self.config.split.get(part, ())) - set(labelled):
            raise UserError(f"task.split.{part}: {min(unknown)} is not a labelled case of {self.root}")
        if not self.config.split.get(part):
            raise UserError(f"task.split.{part} is empty: name at least one case")
        return self.config.split[part]

    def kept(self, case: Case) -> bool:
        return self.lenient or not self.config.partial or all(path.is_file() for path in case.files)

    @cached_property
    def root(self) -> Path:
        return data_root(self.config.root, self.config.folder)

    @cached_property
    def home(self) -> Path:
        return self.root.resolve()

    @cached_property
    def case_names(self) -> dict[str, str]:
        return case_names(self.about)

    @property
    def listing(self) -> Path:
        return self.root / "dataset.json"

    @cached_property
    def about(self) -> dict:
        try:
            about = json.loads(self.listing.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise UserError(
                f"{self.listing} is missing: task.root must be a folder in the decathlon's layout"
            ) from None
        except OSError as error:
            raise UserError(f"{self.listing}: cannot be read ({error.strerror}); mend its permissions") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.listing} is not JSON ({error}): download it again") from None
        if not isinstance(about, dict):
            raise UserError(f"{self.listing}: must be an object with `labels`, `modality` and `training`")
        return about

    @property
    def entries(self) -> list[Case]:
        """All of `training` (and `test`, unlabelled), in the file's order."""
        if self.read.wrong and not self.lenient:
            first = self.read.wrong[0]
            raise UserError(f"{first.where}: {first.what}")
        return self.read.cases

    @cached_property
    def read(self) -> Listing:
        cases: dict[str, Case] = {}
        absent, wrong = [], []
        for field in ("training", "test"):
            entries = self.about.get(field, [])
            if not isinstance(entries, list):
                what = f"`{field}` must be a list of {{image: …, label: …}}, not {json.dumps(entries)[:40]}"
                wrong.append(Finding("error", str(self.listing), what))
                continue
            for entry in entries:
                try:
                    case = self.case(entry)
                except UserError as error:
                    wrong.append(Finding.of(error))
                    continue
                if field == "test" and case.label is None and not case.image[0].is_file():
                    absent.append(case.image[0])  # the decathlon lists them also where they were not downloaded
                elif case.name in cases:
                    wrong.append(Finding("error", str(self.listing), f"{case.name} is listed twice; keep one"))
                else:
                    cases[case.name] = case
        return Listing(list(cases.values()), absent, wrong)

    def case(self, entry: object) -> Case:
        entry = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise UserError(f"{self.listing}: {entry!r} names no image; entries read {{image: …, label: …}}")
        if not isinstance(entry.get("label") or "", str):
            raise UserError(f"{self.listing}: {entry!r} names no label file; entries read {{image: …, label: …}}")
        image = self.inside(entry["image"])
        label = self.inside(entry["label"]) if entry.get("label") else None
        name = self.case_names[entry["image"]]
        return Case(name, name, (image,), label)

    def check(self, test: bool = True) -> Iterator[Finding]:
        yield from self.read.wrong
        cases, hidden = self.read.cases, set()
        labelled = {case.name: case for case in cases if case.label is not None}
        if not test and labelled:
            try:
                hidden = set(self.names("test", labelled))
            except UserError:  # `split` says it
                hidden = set(labelled)
        for case in cases:
            for path in case.files if case.name not in hidden else ():
                if path.is_file():
                    continue
                if self.config.partial:
                    yield Finding("note", str(path), f"is listed and not there: {case.name} is left out")
                else:
                    yield Finding("error", str(path), "is listed and missing; download it, or set task.partial=true")
        for path in self.read.absent:
            yield Finding("note", str(path), "is listed under `test` and not there: it is left out")
        known = {realpath(path) for path in [*self.read.absent, *(path for case in cases for path in case.files)]}
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            for path in sorted((self.root / folder).glob("[!.]*.nii*")):
                if realpath(path) not in known:
                    yield Finding("note", str(path), "is in no entry of dataset.json: it is not used")
        users: dict[Path, list[str]] = {}
        for case in labelled.values():
            users.setdefault(case.files[-1], []).append(case.name)
        for label, names in users.items():
            if len(names) > 1:
                yield Finding("note", str(label), f"is the label of {', '.join(names)}: one patient in several cases?")

    def inside(self, path: str) -> Path:
        if wrong := misplaced(self.root, self.home, path):
            raise UserError(f"{self.listing}: {wrong}")
        return self.root / path

    def read_classes(self) -> tuple[str, ...]:
        """Class names by label number; both ways round are in use: {"0": "background"} and {"background": 0}."""
        labels = self.about.get("labels")
        pairs = labels.items() if isinstance(labels, dict) else ()
        numbered = {str(k): str(v) for k, v in pairs} if "0" in dict(pairs) else {str(v): str(k) for k, v in pairs}
        if len(numbered) < max(2, len(pairs)) or set(numbered) != set(map(str, range(len(numbered)))):
            raise UserError(f"{self.listing}: `labels` must number 0 (background), 1, 2, … without a gap")
        if not self.channels:
            raise UserError(f"{self.listing}: `modality` must name each channel, as in {{0: MRI}}")
        names = tuple(numbered[str(i)].replace(" ", "_") for i in range(len(numbered)))
        for i, name in enumerate(names):
            if name in names[:i]:
                both = f"{numbered[str(names.index(name))]!r} and {numbered[str(i)]!r}"
                raise UserError(f"{self.listing}: `labels` {both} are both scored as {name}; rename one")
        return names
