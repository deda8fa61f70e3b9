"""Any folder in the layout of the Medical Segmentation Decathlon: `dataset.json`, `imagesTr/`, `labelsTr/`.

The decathlon's own test images have no labels, so the labelled ones are dealt 60/15/25 into train, val and test by
`split_seed`, or as `split` lists them. Entries without a label serve pre-training only.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from premed.contracts import Case, Part
from premed.home import data_root
from premed.images import Recipe
from premed.randomness import key, permutation
from premed.segmentation import Segmentation
from premed.spec import Spec, UserError, elsewhere


class Config(Spec):
    """`root`, or `folder` below $PREMED_DATA. Numbers are in the field's units: voxels for roi, mm for spacing."""

    name: Literal["msd"] = "msd"
    root: Path | None = elsewhere(None)
    folder: str = elsewhere("Task04_Hippocampus")
    roi: tuple[int, int, int] = (96, 96, 96)
    spacing: tuple[float, float, float] | None = None
    """None keeps each image's own."""
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = (0.5, 99.5)
    normalise: Literal["window", "zscore", "zscore_nonzero"] = "zscore"
    crop_foreground: bool = False
    overlap: float = Field(0.5, ge=0, lt=1)
    window_batch: int = elsewhere(4, ge=1)
    split_seed: int = 0
    shares: tuple[float, float, float] = (0.6, 0.15, 0.25)
    split: dict[Part, tuple[str, ...]] | None = None
    """Case names (hippocampus_001, …) per part, in place of the dealing."""


def build(config: Config) -> "MSD":
    """The task; `dataset.json` is read at once, for channels and classes."""
    return MSD(config)


class MSD(Segmentation):
    """Images [C, *roi]; scored by the mean Dice over the labels."""

    dims = 3

    def __init__(self, config: Config):
        self.name = config.folder if config.root is None else Path(config.root).name
        self.config, self.roi = config, config.roi
        self.overlap, self.window_batch = config.overlap, config.window_batch
        self.channels = len(self.about.get("modality", self.about.get("channel_names", {})))
        self.classes = self.read_classes()
        self.recipe = Recipe(
            dims=3,
            channels=self.channels,
            spacing=config.spacing,
            window=config.window,
            percentiles=config.percentiles,
            normalise=config.normalise,
            crop_foreground=config.crop_foreground,
        )

    def images(self) -> list[Case]:
        training = {case.name for case in self.split("train")}
        wanted = [case for case in self.entries if case.label is None or case.name in training]
        return [Case(case.name, case.patient, case.image) for case in wanted]

    def split(self, part: Part) -> list[Case]:
        labelled = {case.name: case for case in self.entries if case.label is not None}
        if not labelled:
            raise UserError(f"{self.root / 'dataset.json'}: no entry has a label; these images can only be pre-trained on")
        if self.config.split is not None:
            return self.listed(part, labelled)
        names = sorted(labelled)
        order = [names[i] for i in permutation(key(self.config.split_seed, "msd", "split"), len(names))]
        train, val = (max(1, round(share * len(order))) for share in self.config.shares[:2])
        dealt = {"train": order[:train], "val": order[train : train + val], "test": order[train + val :]}
        if not dealt[part]:
            raise UserError(f"{self.root}: {len(names)} labelled cases are too few for a {part} part; list them in task.split")
        return [labelled[name] for name in sorted(dealt[part])]

    def listed(self, part: Part, labelled: dict[str, Case]) -> list[Case]:
        assert self.config.split is not None
        names = [name for listed in self.config.split.values() for name in listed]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"task.split: {min(twice)} stands in two parts; keep it in one")
        if unknown := set(self.config.split.get(part, ())) - set(labelled):
            raise UserError(f"task.split.{part}: {min(unknown)} is not a labelled case of {self.root}")
        if not self.config.split.get(part):
            raise UserError(f"task.split.{part} is empty: name at least one case")
        return [labelled[name] for name in self.config.split[part]]

    @cached_property
    def root(self) -> Path:
        return data_root(self.config.root, self.config.folder)

    @cached_property
    def about(self) -> dict:
        path = self.root / "dataset.json"
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path} is missing: task.root must be a folder in the decathlon's layout") from None
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}): download it again") from None

    @cached_property
    def entries(self) -> list[Case]:
        """All of `training` (and `test`, unlabelled), in the file's order."""
        cases = []
        for entry in [*self.about.get("training", []), *self.about.get("test", [])]:
            entry = {"image": entry} if isinstance(entry, str) else entry
            image = self.inside(entry["image"])
            label = self.inside(entry["label"]) if entry.get("label") else None
            name = image.name.removesuffix(".gz").removesuffix(".nii")
            if label is None and not image.is_file():
                continue  # the decathlon lists its test images also where they were not downloaded
            cases.append(Case(name, name, (image,), label))
        return cases

    def inside(self, path: str) -> Path:
        whole = (self.root / path).resolve()
        if not whole.is_relative_to(self.root.resolve()):
            raise UserError(f"{self.root / 'dataset.json'}: {path} leads out of the folder; keep images inside it")
        return self.root / path

    def read_classes(self) -> tuple[str, ...]:
        """Class names by label number; both directions of `labels` are in use ({"0": "background"}, {"background": 0})."""
        labels = self.about.get("labels", {})
        numbered = {int(k): str(v) for k, v in labels.items()} if all(k.isdigit() for k in labels) else {v: k for k, v in labels.items()}
        if sorted(numbered) != list(range(len(numbered))) or len(numbered) < 2 or not self.channels:
            raise UserError(f"{self.root / 'dataset.json'}: `labels` must number 0 (background), 1, … and `modality` name each channel")
        return tuple(numbered[i].replace(" ", "_") for i in range(len(numbered)))
