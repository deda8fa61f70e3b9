"""Recognises volumes with label maps that no file lists: images/ and labels/, CASE and CASE_seg, BIDS derivatives.

They become a listing in nnU-Net's form, whose `dataset` names the files of each case.
"""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from premed.data.io.readers import VOLUMES, read_values
from premed.data.preprocess import label_fault
from premed.data.survey import spread
from premed.errors import UserError
from premed.tasks.common import bids
from premed.tasks.common.image_tree import find_images, stem
from premed.tasks.common.patients import guessed_pattern
from premed.tasks.common.recognised import NAMES, TABLE, Listing, Recognised

LABEL_WORDS = ("label", "labels", "labelstr", "labelsts", "mask", "masks", "seg", "segm", "segmentation", "gt")
LABEL_WORDS = (*LABEL_WORDS, "segmentations", "groundtruth", "annotation", "annotations", "dseg", "contour", "contours")
IMAGE_WORDS = ("image", "images", "imagestr", "imagests", "img", "imgs", "scan", "scans", "volume", "volumes", "vol")
CHANNELS = (
    "t1",
    "t1w",
    "t1n",
    "t1c",
    "t1ce",
    "t1gd",
    "t2",
    "t2w",
    "t2f",
    "flair",
    "adc",
    "dwi",
    "pd",
    "ct",
    "pet",
    "mr",
)
MOST_MAPS = 20  # label maps that are opened for their values, at most
MOST_LABELS = 40  # a map with more values is no label map
SEPARATORS = re.compile(r"[-_. ]+")


class File(NamedTuple):
    """What the name of a volume says of it."""

    key: str
    """Equal for an image's channels and its label map."""
    channel: str
    is_label: bool


def recognise(folder: Path) -> Recognised | None:
    """Returns how volumes with label maps are read; None if there are no pairs."""
    if bids.is_bids(folder):
        suffix, scans = bids.scans(folder)
        kind, labels = bids.label_maps(folder)
        cases = {
            stem(PurePosixPath(scan.name).name): ((scan.name,), labels.get((scan.subject, scan.session)))
            for scan in scans
        }
        patients = "(sub-[^_]+)_.*"
        found = f"a BIDS tree: {suffix} of {len({scan.subject for scan in scans})} subjects, labels from {kind}"
        return of_cases(folder, cases, (suffix,), found, TABLE, patients) if labels and scans else None
    cases, channels = pairs([name for name in find_images(folder).volumes if name.lower().endswith(VOLUMES)])
    labelled = sum(label is not None for _, label in cases.values())
    return (
        of_cases(folder, cases, channels, f"{labelled} volumes with label maps, by their names", NAMES)
        if labelled
        else None
    )


def parse(name: str) -> File:
    """Returns what a path below the root says, by its words."""
    path = PurePosixPath(stem(name))
    is_label, key, channel = False, list[str](), ""
    for part in path.parts[:-1]:
        words = [word for word in SEPARATORS.split(part) if word]
        known = [word for word in words if word.lower() in (*LABEL_WORDS, *IMAGE_WORDS)]
        is_label |= any(word.lower() in LABEL_WORDS for word in known)
        if rest := [word for word in words if word not in known]:
            key.append("_".join(rest))
    words = [word for word in SEPARATORS.split(path.name) if word]
    if len(words) > 1 and re.fullmatch(r"\d{4}", words[-1]) and int(words[-1]) < 10:
        channel = words.pop()
    rest = list[str]()
    for word in words:
        glued = re.fullmatch(r"(?i)(img|image|label|mask|seg)(\d+)", word)
        lower, word = (glued[1].lower(), glued[2]) if glued else (word.lower(), word)
        is_label |= lower in LABEL_WORDS
        if glued:
            rest.append(word)
        elif lower in CHANNELS:
            channel = lower
        elif lower not in (*LABEL_WORDS, *IMAGE_WORDS):
            rest.append(word)
    name = "_".join(rest)
    key = [folder for folder in key if folder != name]  # a folder of its own for each case says nothing more
    return File("/".join([*key, name]), "" if is_label else channel, is_label)


Cases = dict[str, tuple[tuple[str, ...], str | None]]
"""The image's files and its label map, by name."""


def pairs(names: list[str]) -> tuple[Cases, tuple[str, ...]]:
    """Returns the cases whose names say that they have the same channels as most, and the channels' names."""
    images: dict[str, dict[str, str]] = defaultdict(dict)
    labels: dict[str, str] = {}
    for name in names:
        file = parse(name)
        if file.is_label:
            labels.setdefault(file.key, name)
        else:
            images[file.key].setdefault(file.channel, name)
    counts = Counter(tuple(sorted(some)) for key, some in images.items() if key in labels)
    channels = counts.most_common(1)[0][0] if counts else ()
    cases: Cases = {}
    for key, some in images.items():
        if set(channels) <= some.keys() and channels:
            cases[key.replace("/", "_")] = tuple(some[channel] for channel in channels), labels.get(key)
    return cases, channels


def of_cases(
    folder: Path, cases: Cases, channels: tuple[str, ...], layout: str, sure: int, patient: str | None = None
) -> Recognised | None:
    """Returns the cases as a listing of the task `nnunet`; None if the label maps hold no labels."""
    labelled = {name: (images, label) for name, (images, label) in cases.items() if label is not None}
    some = [label for _, label in labelled.values()]
    opened = spread(some, MOST_MAPS)
    values = label_values(folder, opened)
    if len(values) < 2:
        return None
    absent = [str(number) for number in range(max(values) + 1) if number not in values]
    which = "no label map" if opened == some else "none of the label maps that were opened"
    notes = [f"labels {', '.join(absent)} are in {which}: write the maps as 0, 1, 2, …"] if absent else []
    if opened != some:
        what = f"{len(opened)} of {len(some)} label maps were opened for their values"
        notes.append(f"{what}: add labels that only others have to the listing")
    root, bare = folder.absolute(), [name for name in cases if name not in labelled]
    content = {
        "channel_names": {str(number): name or "image" for number, name in enumerate(channels)},
        "labels": {"background": 0} | {f"label_{number}": number for number in range(1, max(values) + 1)},
        "file_ending": ".nii.gz",
        "dataset": {
            name: {"images": [str(root / image) for image in images], "label": str(root / label)}
            for name, (images, label) in labelled.items()
        }
        | {name: {"images": [str(root / image) for image in cases[name][0]]} for name in bare},
    }
    guessed, reasons = guessed_pattern([*cases])
    if patient:
        guessed, reasons = {"patient": patient}, {"patient": "all sessions of a subject stay in one part"}
    of = "the files' names; rename the labels there"
    listing = Listing("listing", ".json", json.dumps(content, indent=1) + "\n", of)
    task: dict[str, Any] = {"name": "nnunet", **guessed}
    if bare:
        task["unlabelled"] = True
        reasons["unlabelled"] = f"{len(bare)} images have no label map: pre-training learns from them"
    return Recognised(layout, sure, task, reasons, tuple(notes), channels, listing)


def label_values(folder: Path, names: list[str]) -> list[int]:
    """Returns the values in label maps, 0 included. Raises UserError for values that no label can have."""
    values = {0}
    for name in names:
        try:
            found, _ = read_values(folder / name)
        except UserError:  # `premed data check` names it
            continue
        found = found[np.isfinite(found)]  # and these voxels
        if wrong := label_fault(found):
            raise UserError(f"{folder / name}: is named as a label map; {wrong}, or rename it if it is an image")
        labels = np.flatnonzero(np.bincount(np.rint(found).astype(np.uint8))).tolist()
        if len(labels) > MOST_LABELS:
            raise UserError(f"{folder / name}: is named as a label map and holds {len(labels)} values; rename it")
        if max(labels, default=0) > MOST_LABELS:
            what = f"holds the label {labels[-1]}: labels must be 0 (background), 1, 2, …"
            raise UserError(f"{folder / name}: {what}; write all maps so, a mask of 0 and 255 as 0 and 1")
        values |= {*labels}
    return sorted(values)
