"""Recognises volumes with label maps that no file lists: images/ and labels/, CASE and CASE_seg, BIDS derivatives.

They become a listing in nnU-Net's form, whose `dataset` names the files of each case.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from premed.data.io.readers import VOLUMES, read_values
from premed.data.preprocess import label_fault
from premed.data.survey import spread
from premed.errors import UserError
from premed.tasks.common import bare_volumes, bids
from premed.tasks.common.bare_volumes import MOST_LABELS
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
        of_runs = bids.paired(scans, labels)
        cases = {stem(PurePosixPath(scan.name).name): ((scan.name,), label) for scan, label in of_runs}
        patients = "(sub-[^_]+)_.*"
        found = f"a BIDS tree: {suffix} of {len({subject for subject, _ in scans})} subjects, labels from {kind}"
        return of_cases(folder, cases, (suffix,), found, TABLE, patients) if labels and scans else None
    cases, channels, twice = pairs([name for name in find_images(folder).volumes if name.lower().endswith(VOLUMES)])
    labelled = sum(label is not None for _, label in cases.values())
    if not labelled:
        return None
    if twice:
        one, two = twice[0]
        kind, remedy = "label maps" if parse(one).is_label else "images", "move one of each such pair elsewhere"
        raise UserError(f"{folder}: {one} and {two} are both {kind} of one case, by their names; {remedy}")
    cases, notes = named(folder, cases)
    found = of_cases(folder, cases, channels, f"{labelled} volumes with label maps, by their names", NAMES)
    return found and replace(found, notes=(*found.notes, *notes))


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
    key = [*key, name] if name else key or [name]  # patient07/followup/image.nii.gz
    return File("/".join(key), "" if is_label else channel, is_label)


Cases = dict[str, tuple[tuple[str, ...], str | None]]
"""The image's files and its label map, by name."""


def pairs(names: list[str]) -> tuple[Cases, tuple[str, ...], list[tuple[str, str]]]:
    """Returns the cases whose names say that they have the same channels as most, by key, the channels' names, and two
    files each that would be the same thing of a case with a label map."""
    images: dict[str, dict[str, str]] = defaultdict(dict)
    labels: dict[str, str] = {}
    twice: list[tuple[str, str]] = []
    for name in names:
        file = parse(name)
        first = labels.setdefault(file.key, name) if file.is_label else images[file.key].setdefault(file.channel, name)
        if first != name:
            twice.append((first, name))
    counts = Counter(tuple(sorted(some)) for key, some in images.items() if key in labels)
    channels = counts.most_common(1)[0][0] if counts else ()
    cases: Cases = {}
    for key, some in images.items():
        if set(channels) <= some.keys() and channels:
            cases[key] = tuple(some[channel] for channel in channels), labels.get(key)
    return cases, channels, [pair for pair in twice if parse(pair[0]).key in labels.keys() & images.keys()]


def named(folder: Path, cases: Cases) -> tuple[Cases, list[str]]:
    """Returns the cases of `pairs` by names without folders, and notes on those without a label map that are left out:
    they may be made of a labelled case. Raises UserError if two labelled cases have one name."""
    labelled = [key for key, (_, label) in cases.items() if label is not None]
    bare = [key for key in cases if cases[key][1] is None]
    keys: dict[str, str] = {}
    for key in labelled:
        if (other := keys.setdefault(key.replace("/", "_"), key)) != key:
            one, two = (cases[each][0][0] for each in (other, key))
            raise UserError(f"{folder}: {one} and {two} would both be the case {key.replace('/', '_')}; rename one")
    made, alike = bare_volumes.derived(labelled, bare), dict[str, str]()
    for key in bare:
        if key not in made and (other := keys.setdefault(key.replace("/", "_"), key)) != key:
            alike[key] = other
    notes = left_out(made, "their names contain that of a labelled case, as those of copies and results do")
    notes += left_out(alike, "without their folders they are called as others are; rename them")
    return {name: cases[key] for name, key in keys.items()}, notes


def left_out(keys: Mapping[str, str], why: str) -> list[str]:
    """Returns a note on volumes that are not used, each with what it is too like; nothing if there are none."""
    some = [f"{key} of {other}" if other else key for key, other in [*keys.items()][:2]]
    more = f" and {len(keys) - len(some)} more" if len(keys) > len(some) else ""
    listed = f"{', '.join(some)}{more}"
    return [f"volumes without a label map are NOT used ({len(keys)}), since {why}: {listed}"] if keys else []


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
    guessed, reasons, bare, more = without_labels(folder, cases, patient)
    notes += more
    root = folder.absolute()
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
    of = "the files' names; rename the labels there"
    listing = Listing("listing", ".json", json.dumps(content, indent=1) + "\n", of)
    task: dict[str, Any] = {"name": "nnunet", **guessed}
    if bare:
        task["unlabelled"] = True
        reasons["unlabelled"] = f"{len(bare)} images have no label map: pre-training learns from them"
    return Recognised(layout, sure, task, reasons, tuple(notes), channels, listing)


def without_labels(
    folder: Path, cases: Cases, patient: str | None
) -> tuple[dict[str, str], dict[str, str], list[str], list[str]]:
    """Returns the field `patient` and why, the names of the cases without a label map, and notes on those left out."""
    labelled = [name for name, (_, label) in cases.items() if label is not None]
    bare = [name for name in cases if cases[name][1] is None]
    guessed, reasons = guessed_pattern(labelled, bare)
    if patient:
        guessed, reasons = {"patient": patient}, {"patient": "all sessions of a subject stay in one part"}
    strange = bare_volumes.strangers(labelled, bare, guessed["patient"]) if guessed else {}
    bare = [name for name in bare if name not in strange]
    maps = bare_volumes.label_maps(folder, {name: cases[name][0] for name in bare})
    notes = left_out(strange, "their names contain that of a patient with a label, and do not end as a scan's")
    notes += left_out(dict.fromkeys(maps, ""), "they hold few whole numbers, as label maps do")
    return guessed, reasons, [name for name in bare if name not in maps], notes


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
