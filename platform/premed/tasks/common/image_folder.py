"""Recognises folders for the task `images`: a table and images, a BIDS tree, folders that are called as classes."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from premed.errors import UserError
from premed.safety.files import csv_line
from premed.tasks.common import bids, columns
from premed.tasks.common.image_paths import Paths
from premed.tasks.common.image_tree import Tree, class_folders, find_images, part_of, patients_of_dicom, stem
from premed.tasks.common.patients import guessed_pattern
from premed.tasks.common.recognised import NAMES, TABLE, Listing, Recognised
from premed.tasks.common.table import read_table

TABLES = tuple(columns.DELIMITERS)
MOST_TABLES = 20
MOST_DICOM = 2000  # files whose PatientID is read, at most


def recognise(folder: Path) -> Recognised | None:
    """Returns how the task `images` reads a folder; None if nothing there labels whole images."""
    if bids.is_bids(folder):
        return participants(folder)
    tree = find_images(folder)
    if not tree.names:
        return None
    where, read = Paths(folder, tree), {path: each for path in tables(folder) if (each := columns.read(path))}
    if joined := joined_parts({path: frame for path, (frame, _) in read.items()}):
        frame, names = joined
        if found := of_table(frame, names, where, tree):
            return found
    each = {path: of_table(frame, of(folder, path), where, tree, sign) for path, (frame, sign) in read.items()}
    ranks = {path: (num_listed(read[path][0], one, where), len(one.task)) for path, one in each.items() if one}
    return each[max(ranks, key=lambda path: ranks[path])] if ranks else of_class_folders(folder, tree)


def tables(folder: Path) -> list[Path]:
    """Returns the tables in a folder and in those directly below it."""
    files = [*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*")]
    return sorted(path for path in files if path.suffix.lower() in TABLES and path.is_file())[:MOST_TABLES]


def is_text(path: Path) -> bool:
    """Whether it may be a text of words, such as a README.txt, in place of a table."""
    return path.suffix.lower() == ".txt"


def unread_tables(folder: Path) -> list[str]:
    """Returns why tables of a folder, which may hold its labels, are not read: they are in UTF-16, say."""
    faults: list[str] = []
    for path in tables(folder):
        if not is_text(path) and columns.read(path) is None:
            try:
                read_table(path)
            except UserError as error:
                faults.append(str(error))
    return faults


def of(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def num_listed(frame: pandas.DataFrame, found: Recognised, where: Paths) -> int:
    """The number of images that a table lists."""
    return len({*where.names(cells_of(frame, found.task["columns"]["path"])).values()})


def joined_parts(read: Mapping[Path, pandas.DataFrame]) -> tuple[pandas.DataFrame, str] | None:
    """Returns the tables that are named as parts (train.csv, valid.csv) as one with a column `part`, and their names.

    None unless there are two at least that have the same columns, train among them.
    """
    frames: dict[str, tuple[Path, pandas.DataFrame]] = {}
    for path, frame in read.items():
        words = {part for word in re.split(r"[-_. ]+", path.stem) if (part := part_of(word))}
        if len(words) == 1 and frames.setdefault(words.pop(), (path, frame))[0] != path:
            return None  # two of one part
    headers = {tuple(map(str, frame.columns)) for _, frame in frames.values()}
    if len(frames) < 2 or "train" not in frames or len(headers) > 1 or "part" in headers.pop():
        return None
    each = [frame.assign(part=part) for part, (_, frame) in frames.items()]
    return pandas.concat(each, ignore_index=True), " and ".join(path.name for path, _ in frames.values())


def table_fault(folder: Path, tree: Tree) -> str:
    """Returns why the first table of a folder that `recognise` does not know labels no image; empty without a table."""
    for path in sorted(tables(folder), key=is_text):
        if (read := columns.read(path)) is None:
            try:
                read_table(path)
            except UserError as error:
                return str(error)
            return f"{path}: has one column; set it apart by commas, semicolons, tabs or |"
        frame, where = read[0], Paths(folder, tree)
        best = max(map(str, frame.columns), key=lambda name: where.share(cells_of(frame, name)))
        if where.share(cells_of(frame, best)) < 0.5:
            names = ", ".join(map(str, frame.columns))[:200]
            how = "each by its path below the folder, or by a file name that no other has"
            return f"{path}: none of its columns ({names}) names these images, {how}"
        what = f"1 and 0, or 2 to {columns.MOST_CLASSES} classes of which most have several images"
        counts = Counter(map(str, frame.columns))
        twice = ", ".join(name for name, count in counts.items() if name and count > 1)
        more = f"; several columns are called {twice}: rename all but one" if twice else ""
        return f"{path}: none of its columns beside {best} holds labels: {what}{more}"
    return ""


# A table -------------------------------------------------------------------------------------------------------------


def of_table(
    frame: pandas.DataFrame, table: str, where: Paths, tree: Tree, delimiter: str | None = None
) -> Recognised | None:
    """Returns how a table's labels are read; None if it lists none of the images, or no labels.

    delimiter: that of the file `table`; None: there is no such file, and the table is written.
    """
    frame = frame.loc[:, [bool(str(name)) for name in frame.columns]]
    best = max(map(str, frame.columns), key=lambda name: where.share(cells_of(frame, name)), default="")
    if not best or where.share(cells_of(frame, best)) < 0.5:
        return None
    roles = columns.roles(frame, best)
    if roles.labels is None:
        return None
    names = where.names(cells_of(frame, best))
    volumes = [name for name in names.values() if name in where.volumes]
    task: dict[str, Any] = {"name": "images"} | ({"dims": 3} if len(volumes) > len(names) / 2 else {})
    reasons = {"label" if "label" in roles.labels.task else "labels": roles.labels.why}
    if roles.labels.others:
        reasons |= {key: f"{why}; or {', '.join(roles.labels.others[:8])}" for key, why in reasons.items()}
    guess, why = ({}, {}) if roles.patient else guessed_pattern([*map(stem, names.values())])
    unknown = not (roles.patient or guess or "patient" in map(str, frame.columns)) and len(names) <= MOST_DICOM
    if unknown and (whose := patients_of_dicom(where.files.root, [*names.values()])):
        frame = frame.assign(patient=[whose.get(names.get(cell, ""), cell) for cell in cells_of(frame, best)])
        roles.patient, delimiter, why = "patient", None, {"columns": "patient: PatientID of the DICOM files"}
    listing = None
    if delimiter is None or any(name != where.files.name(cell) for cell, name in names.items()):
        # the task would not find these
        completed = frame.copy()
        completed[best] = [names.get(cell, cell) for cell in cells_of(frame, best)]
        listing = Listing("table", ".csv", as_csv(completed), f"{table}, with paths below the root in column {best}")
    else:
        task |= {"table": table} | ({"delimiter": delimiter} if delimiter != "," else {})
    task |= {"columns": {"path": best} | roles_of_columns(roles, [*map(str, frame.columns)])}
    if roles.part and roles.parts != {part: [part] for part in ("train", "val", "test")}:
        task["parts"] = roles.parts
        if "val" not in roles.parts:
            reasons["parts"] = "no val of its own: it is carved from train, by patient"
    left = len(tree.names) - len(set(names.values()))
    notes = (f"images without a row in {table}, which are not used: {left}",) if left > 0 else ()
    if roles.other_patients:
        what = f"patients are those of column {roles.patient}; {', '.join(roles.other_patients)} may name them as well"
        notes = (*notes, f"{what}: set columns.patient if that is right")
    task |= guess | dict(roles.labels.task)
    return Recognised(f"{table} and {tree.described()}", TABLE, task, reasons | why, notes, listing=listing)


def cells_of(frame: pandas.DataFrame, name: str) -> list[str]:
    return frame.iloc[:, [str(column) for column in frame.columns].index(name)].tolist()


def roles_of_columns(roles: columns.Roles, names: list[str]) -> dict[str, str]:
    """Returns the fields of `columns` but for `path`. An empty part: the column of that name is something else."""
    named = {"patient": roles.patient, "part": roles.part}
    return {role: name for role, name in named.items() if name} | (
        {"part": ""} if "part" in names and not roles.part else {}
    )


# Folders of classes, BIDS -----------------------------------------------------------------------------------------


def of_class_folders(folder: Path, tree: Tree) -> Recognised | None:
    """Returns how images in folders that are called as classes are read."""
    names = tree.names
    if (found := class_folders(names)) is None:
        return None
    patients = patients_of_dicom(folder, names) if len(names) <= MOST_DICOM else {}
    header = ["path", *(["patient"] if patients else []), *(["part"] if found.parts else []), "label"]
    rows = [
        [n, *([patients[n]] if patients else []), *([found.parts[n]] if found.parts else []), found.classes[n]]
        for n in names
    ]
    task: dict[str, Any] = {"name": "images"} | ({"dims": 3} if len(tree.volumes) > len(tree.pictures) else {})
    counts = Counter(found.classes.values())
    reasons = {"label": "the folders' names: " + ", ".join(f"{n} {name}" for name, n in counts.most_common(6))}
    if found.parts:
        parts = columns.parts_of(found.parts.values())
        if not parts:
            task["columns"] = {"part": ""}
        elif "val" not in parts:
            task["parts"] = parts
            reasons["parts"] = "no val of its own: it is carved from train, by patient"
    pattern, why = ({}, {}) if patients else guessed_pattern([*map(stem, names)])
    task |= {"label": "label"} | pattern
    listing = Listing("table", ".csv", as_csv(pandas.DataFrame(rows, columns=header)), "the folders' names")
    layout = f"{tree.described()} in folders of {len(counts)} classes"
    return Recognised(layout, NAMES, task, reasons | why, listing=listing)


def participants(folder: Path) -> Recognised | None:
    """Returns how a BIDS tree whose participants.tsv has labels is read."""
    if (read := columns.read(folder / "participants.tsv") if (folder / "participants.tsv").is_file() else None) is None:
        return None
    frame, _ = read
    if "participant_id" not in map(str, frame.columns):
        return None
    labels = columns.roles(frame, "participant_id").labels
    suffix, scans = bids.scans(folder)
    if labels is None or not scans:
        return None
    firsts = [several[0] for several in scans.values()]  # of each subject and session
    used: list[str] = [*labels.task["labels"]] if "labels" in labels.task else [labels.task["label"]]  # type: ignore[misc]
    rows = [[scan.name, scan.subject, *cells] for scan, cells in labels_of_scans(folder, frame, used, firsts)]
    text = as_csv(pandas.DataFrame(rows, columns=["path", "patient", *used]))
    key = "label" if "label" in labels.task else "labels"
    why = f"of participants.tsv: {labels.why}" + (f"; or {', '.join(labels.others[:8])}" if labels.others else "")
    task = {"name": "images", "dims": 3, **labels.task}
    listing = Listing("table", ".csv", text, f"participants.tsv and the {suffix} of each subject")
    layout = f"a BIDS tree: {len(firsts)} {suffix} of {len({scan.subject for scan in firsts})} subjects"
    return Recognised(layout, TABLE, task, {key: why}, listing=listing, channels=(suffix,))


def labels_of_scans(
    folder: Path, frame: pandas.DataFrame, used: Sequence[str], scans: Sequence[bids.Scan]
) -> Iterator[tuple[bids.Scan, Sequence[str]]]:
    """Yields each scan with its cells of the columns `used` of participants.tsv: those of its session, where rows have
    sessions. Raises UserError where rows of its subject say different things and none is known to be the scan's."""
    cells = [*zip(*(cells_of(frame, name) for name in used), strict=True)]
    subjects = [bids.entity("sub", who) for who in cells_of(frame, "participant_id")]
    column = next((str(name) for name in frame.columns if columns.plain(str(name)) in bids.SESSION), None)
    sessions = [bids.entity("ses", each) for each in cells_of(frame, column)] if column else [""] * len(cells)
    found: dict[tuple[str, str], set[Sequence[str]]] = defaultdict(set)
    for who, session, labels in zip(subjects, sessions, cells, strict=True):
        found[who, session].add(labels)
        if session:
            found[who, ""].add(labels)  # of scans whose names have no session
    for scan in scans:
        some = found.get((scan.subject, scan.session if column else ""), {("",) * len(used)})
        if len(some) > 1:
            listed = " and ".join(sorted(", ".join(labels) for labels in some)[:2])
            remedy = f"keep one of them{'' if column else ', or say by a column session_id which session each is of'}"
            raise UserError(f"{folder / 'participants.tsv'}: rows of {scan.subject} say {listed}; {remedy}")
        yield scan, next(iter(some))


def as_csv(frame: pandas.DataFrame) -> str:
    return "".join(map(csv_line, [[*map(str, frame.columns)], *frame.astype(str).values.tolist()]))
