"""The layout of the Medical Segmentation Decathlon: what a folder's `dataset.json` says and lists."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from premed.contracts import Case
from premed.errors import Finding, UserError, printable

PARTS: tuple[Literal["training", "test"], ...] = ("training", "test")


class ListedCase(NamedTuple):
    """A case, and the list of `dataset.json` that names it."""

    case: Case
    listed_as: Literal["training", "test"]

    @property
    def is_there(self) -> bool:
        """Whether its files are on disk."""
        return all(path.is_file() for path in self.case.files)


class Listing(NamedTuple):
    """What `training` and `test` list, in the file's order, and what is wrong with them."""

    cases: list[ListedCase]
    absent: list[Path]
    """Unlabelled images of `test` that are not on disk: the decathlon lists also those that were not downloaded."""
    faults: list[Finding]


def case_names(about: Mapping[str, Any]) -> dict[str, str]:
    """From listed image to case name: the file's name without its suffix, or its path where file names repeat."""
    entries = [entry for part in PARTS for entry in listed(about, part)]
    images = [entry.get("image") if isinstance(entry, dict) else entry for entry in entries]
    paths = {image: os.path.normpath(image) for image in images if isinstance(image, str)}
    alike = Counter(stem(PurePath(path).name) for path in set(paths.values()))
    return {
        image: stem(path) if alike[stem(PurePath(path).name)] > 1 else stem(PurePath(path).name)
        for image, path in paths.items()
    }


def listed(about: Mapping[str, Any], part: str) -> list[Any]:
    return entries if isinstance(entries := about.get(part), list) else []


def stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")


def misplaced(root: Path, home: Path, file: str) -> str:
    """What is wrong with a file that a listing names, and what to do; else empty. home: root, its links resolved."""
    try:
        inside = (root / file).resolve().is_relative_to(home)
        with suppress(FileNotFoundError, NotADirectoryError):
            (root / file).stat()  # of a link to itself the newer Pythons' `resolve` says nothing
    except (OSError, ValueError, RuntimeError):  # too long, with signs that no name can have, a link to itself
        return f"{printable(file)[:80]} is no name of a file; mend the entry"
    return "" if inside else f"{file} leads out of the folder; keep images inside it"


class Decathlon:
    """A folder with `dataset.json`, which is read once, when first needed. UserError names what is wrong."""

    def __init__(self, root: Path):
        self.root, self.listing, self.home = root, root / "dataset.json", root.resolve()

    @cached_property
    def about(self) -> dict[str, Any]:
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

    @cached_property
    def names(self) -> dict[str, str]:
        return case_names(self.about)

    @cached_property
    def channels(self) -> int:
        """How many channels an image has."""
        channels = self.about.get("modality", self.about.get("channel_names"))
        if not isinstance(channels, dict) or not channels:
            raise UserError(f"{self.listing}: `modality` must name each channel, as in {{0: MRI}}")
        return len(channels)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names by label number. Both ways round are in use: {"0": "background"} and {"background": 0}."""
        labels = self.about.get("labels")
        pairs = labels.items() if isinstance(labels, dict) else ()
        numbered = {str(k): str(v) for k, v in pairs} if "0" in dict(pairs) else {str(v): str(k) for k, v in pairs}
        if len(numbered) < max(2, len(pairs)) or set(numbered) != set(map(str, range(len(numbered)))):
            raise UserError(f"{self.listing}: `labels` must number 0 (background), 1, 2, … without a gap")
        names = tuple(numbered[str(i)].replace(" ", "_") for i in range(len(numbered)))
        for i, name in enumerate(names):
            if name in names[:i]:
                both = f"{numbered[str(names.index(name))]!r} and {numbered[str(i)]!r}"
                raise UserError(f"{self.listing}: `labels` {both} are both scored as {name}; rename one")
        return names

    @cached_property
    def listed(self) -> Listing:
        """All entries. Of several cases with one name the first counts, and the others are faults."""
        cases: dict[str, ListedCase] = {}
        absent, faults = list[Path](), list[Finding]()
        for part in PARTS:
            entries = self.about.get(part, [])
            if not isinstance(entries, list):
                what = f"`{part}` must be a list of {{image: …, label: …}}, not {json.dumps(entries)[:40]}"
                faults.append(Finding("error", str(self.listing), what))
                continue
            for entry in entries:
                try:
                    case = self.case(entry)
                except UserError as error:
                    faults.append(Finding.of(error))
                    continue
                if part == "test" and case.label is None and not case.image[0].is_file():
                    absent.append(case.image[0])
                elif case.name in cases:
                    faults.append(Finding("error", str(self.listing), f"{case.name} is listed twice; keep one"))
                else:
                    cases[case.name] = ListedCase(case, part)
        return Listing(list(cases.values()), absent, faults)

    def case(self, entry: object) -> Case:
        """The case that one entry of a list describes."""
        entry = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise UserError(f"{self.listing}: {entry!r} names no image; entries read {{image: …, label: …}}")
        if not isinstance(entry.get("label") or "", str):
            raise UserError(f"{self.listing}: {entry!r} names no label file; entries read {{image: …, label: …}}")
        image = self.inside(entry["image"])
        label = self.inside(entry["label"]) if entry.get("label") else None
        name = self.names[entry["image"]]
        return Case(name, name, (image,), label)

    def inside(self, file: str) -> Path:
        """A file that the listing names, as a path."""
        if wrong := misplaced(self.root, self.home, file):
            raise UserError(f"{self.listing}: {wrong}")
        return self.root / file
