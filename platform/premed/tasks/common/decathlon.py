"""The layout of the Medical Segmentation Decathlon: what a folder's `dataset.json` says and lists."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from premed.contracts import Case
from premed.errors import Finding, UserError, printable


class Entry(NamedTuple):
    """A line of `training` or `test`."""

    case: Case
    listed_as: str  # training or test

    @property
    def is_there(self) -> bool:
        """Are its files on disk?"""
        label = self.case.label
        return self.case.image[0].is_file() and (not isinstance(label, Path) or label.is_file())


def case_names(about: Mapping[str, Any]) -> dict[str, str]:
    """Listed images to cases' names: the file's without its suffix; its path, where several files are called alike."""
    entries = [entry for part in ("training", "test") for entry in listed(about, part)]
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
    """What is wrong with a file that a listing names, and the mend; empty, if it may be looked for. home: real root."""
    try:
        inside = (root / file).resolve().is_relative_to(home)
        with suppress(FileNotFoundError, NotADirectoryError):
            (root / file).stat()  # of a link to itself the newer Pythons' `resolve` says nothing
    except (OSError, ValueError, RuntimeError):  # too long, with signs that no name can have, a link to itself
        return f"{printable(file)[:80]} is no name of a file; mend the entry"
    return "" if inside else f"{file} leads out of the folder; keep images inside it"


class Decathlon:
    """A folder with `dataset.json`. Nothing is read before it is asked for; UserError names what is wrong."""

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
        """Class names by label number; both ways round are in use: {"0": "background"} and {"background": 0}."""
        labels = self.about.get("labels")
        pairs = labels.items() if isinstance(labels, dict) else ()
        numbered = {str(k): str(v) for k, v in pairs} if "0" in dict(pairs) else {str(v): str(k) for k, v in pairs}
        if set(numbered) != set(map(str, range(len(numbered)))) or len(numbered) < 2:
            raise UserError(f"{self.listing}: `labels` must number 0 (background), 1, 2, … without a gap")
        return tuple(numbered[str(i)].replace(" ", "_") for i in range(len(numbered)))

    @cached_property
    def entries(self) -> list[Entry]:
        """Those of `training` and `test` that can be meant, in the file's order, whatever is on disk."""
        return [*{entry.case.name: entry for entry, _ in reversed(self.lines) if entry}.values()][::-1]

    def faults(self) -> Iterator[Finding]:
        """All that is wrong with the entries themselves, whatever is on disk."""
        seen: set[str] = set()
        for entry, fault in self.lines:
            if entry is None:
                yield Finding("error", str(self.listing), fault)
            elif entry.case.name in seen:
                yield Finding("error", str(self.listing), f"{entry.case.name} is listed twice; keep one")
            else:
                seen.add(entry.case.name)

    @cached_property
    def lines(self) -> list[tuple[Entry | None, str]]:
        """Each entry, or what is wrong with it."""
        lines = []
        for listed_as in ("training", "test"):
            listed = self.about.get(listed_as) or []
            if not isinstance(listed, list):
                lines.append((None, f"`{listed_as}` must be a list of entries {{image: …, label: …}}"))
                continue
            lines += [self.line(line, listed_as) for line in listed]
        return lines

    def line(self, line: Any, listed_as: str) -> tuple[Entry | None, str]:
        line = {"image": line} if isinstance(line, str) else line
        if not isinstance(line, dict) or not isinstance(line.get("image"), str):
            return None, f"{line!r} names no image; entries read {{image: …, label: …}}"
        files = [line["image"], *([line["label"]] if line.get("label") else [])]
        for file in files:
            wrong = misplaced(self.root, self.home, file) if isinstance(file, str) else f"{file!r} is no name of a file"
            if wrong:
                return None, wrong
        image, *label = (self.root / file for file in files)
        name = self.names[line["image"]]
        return Entry(Case(name, name, (image,), label[0] if label else None), listed_as), ""
