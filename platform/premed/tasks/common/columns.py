"""What the columns of a table of images are: paths, patients, parts, labels. Guessed from their names and cells."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas

from premed.errors import UserError
from premed.tasks.common import table
from premed.tasks.common.image_tree import part_of

DELIMITERS = {".csv": (",", ";", "\t", "|"), ".tsv": ("\t", ",", ";"), ".txt": ("\t", ",", ";")}
LOOKED_AT = 50  # cells of a column, at most, by which it is known to hold paths
MOST_CLASSES = 30
LEAST_PATIENTS = 3  # one for each part; a column of fewer names rather sites or readers
PATIENT = ("patient", "patientid", "patientname", "subject", "subjectid", "participantid", "participant", "person")
PATIENT = (*PATIENT, "personid", "pid", "mrn", "caseid", "studysubject", "eid", "rid", "ptid", "pat", "patno", "patnr")
PATIENT = (
    *PATIENT,
    "patid",
    "patnum",
    "patnumber",
    "patientno",
    "patientnr",
    "patientnum",
    "patientnumber",
    "patients",
)
PATIENT = (*PATIENT, "subjectno", "subjectnumber", "subj", "subjid", "subjectname", "casenumber", "patientkey")
PART = ("part", "split", "set", "subset", "partition", "dataset", "usage", "group")
LABEL = ("label", "labels", "class", "classes", "diagnosis", "dx", "target", "finding", "findings", "findinglabels")
LABEL = (*LABEL, "category", "disease", "pathology", "outcome", "status", "grade", "group", "type", "tumour", "tumor")
NEVER = re.compile(
    r"(patients?|subjects?|participants?|image)?(age(group|yr|years|atscan)?|sex|gender|male|female|race|ethnicity|name)"
    r"|weight|height|bmi|handedness|education|iq|.*date|year|time.*|session.*|visit.*|follow-?up.*|site.*|cent(er|re).*"
    r"|hospital|scanner.*|device|manufacturer.*|modality|view.*|projection|frontallateral|appa|width|size|rows|columns"
    r"|pixelspacing.*|originalimage.*|slice.*|index|ids?|no|number|fold|file.*|image.*|paths?|url|notes?|comments?"
)
"""Columns that say something of a patient or a file and are no labels, by their names."""
IDENTIFIER = re.compile(r".*(^|[^a-zA-Z])(id|ID|Id|uid|UID)|.*[a-z](ID|Id|UID)|.*[ _-]path")
"""The same, as they are spelled: patient_id and PatientID, and not covid."""
NONE = ("nofinding", "none", "normal", "nofindings", "healthy")
UNCERTAIN = ("-1", "-1.0")  # CheXpert's


def plain(name: str) -> str:
    """Returns a column's name without what people write differently."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(frozen=True)
class Labels:
    """The fields of `images` by which a table's labels are read, and why."""

    task: Mapping[str, object]
    why: str
    others: tuple[str, ...] = ()
    """Columns that could be labels as well."""


@dataclass
class Roles:
    """The roles of a table's columns."""

    patient: str | None = None
    other_patients: tuple[str, ...] = ()
    """Columns that could name the patients as well."""
    part: str | None = None
    parts: dict[str, list[str]] = field(default_factory=dict)
    """`parts` of the task; {} if these are its own words."""
    labels: Labels | None = None


def read(path: Path) -> tuple[pandas.DataFrame, str] | None:
    """Returns a table and its delimiter, the one that makes the most columns; None if the file is no table."""
    best: tuple[pandas.DataFrame, str] | None = None
    for delimiter in DELIMITERS[path.suffix.lower()]:
        try:
            frame = table.read_table(path, delimiter)
        except UserError:
            continue
        if best is None or frame.shape[1] > best[0].shape[1]:
            best = frame, delimiter
    return best if best is not None and best[0].shape[1] > 1 else None


def spread(cells: Sequence[str]) -> list[str]:
    """Returns LOOKED_AT of the cells, evenly spread, that are not empty."""
    some = [cell for cell in cells if cell]
    return some[:: max(1, len(some) // LOOKED_AT)][:LOOKED_AT]


def roles(frame: pandas.DataFrame, path: str) -> Roles:
    """Returns the roles of the columns other than `path`."""
    columns = {str(name): frame.iloc[:, number] for number, name in enumerate(frame.columns)}
    twice = {name for name, count in Counter(map(str, frame.columns)).items() if count > 1}
    rest = {name: cells for name, cells in columns.items() if name and name != path and name not in twice}
    found = Roles()
    if whose := patients_of(rest):
        found.patient, *others = whose
        found.other_patients = (*others,)
    for name, cells in rest.items():
        if name not in whose and plain(name) in PART and found.part is None and (parts := parts_of(cells)):
            found.part, found.parts = name, parts
    used = {*whose, found.part}
    found.labels = labels_of({name: cells for name, cells in rest.items() if name not in used})
    return found


def patients_of(columns: Mapping[str, pandas.Series]) -> list[str]:
    """Returns the columns that may name the patients, the one to take first: that with the most images of each.

    Scans of one patient in two parts make scores too good; two patients that count as one cost a little certainty only.
    One with some empty cells is among them, since the task names their lines; of mostly empty ones nothing is known.
    """

    def order(name: str) -> tuple[bool, float, int]:
        cells = [cell for cell in columns[name] if cell]
        num = len({*cells})
        return num < LEAST_PATIENTS, num / len(cells), -len(cells)

    some = [name for name in columns if plain(name) in PATIENT and (columns[name] != "").mean() > 0.5]
    return sorted(some, key=order)


def parts_of(cells: Iterable[str]) -> dict[str, list[str]]:
    """Returns the words for each part in a column of parts; {} if it holds other words, or no training part.

    The test part must be its own: where a table has train and val alone, its val is the test here, and val is carved
    from train (val picks the checkpoint, and would flatter the scores).
    """
    words = sorted({cell for cell in cells if cell})
    if not words or not all(map(part_of, words)):
        return {}
    parts = {part: [word for word in words if part_of(word) == part] for part in ("train", "val", "test")}
    if not parts["test"]:
        parts["test"], parts["val"] = parts["val"], []
    return {part: some for part, some in parts.items() if some} if parts["train"] and parts["test"] else {}


def labels_of(columns: Mapping[str, pandas.Series]) -> Labels | None:
    """Returns how the labels are read, of the columns that may hold some."""
    candidates = {
        name: cells
        for name, cells in columns.items()
        if not (NEVER.fullmatch(plain(name)) or IDENTIFIER.fullmatch(name))
    }
    binary = [name for name, cells in candidates.items() if is_binary(cells)]
    several = [name for name, cells in candidates.items() if separator_of(cells)]
    words = [
        name
        for name, cells in candidates.items()
        if name not in binary + several and is_words(cells, is_named=plain(name) in LABEL)
    ]
    by_name = [name for name in (*several, *words, *binary) if plain(name) in LABEL]
    choice = by_name[0] if by_name else (several or binary or words or [""])[0]
    if not choice:
        return None
    if choice in binary and not by_name:
        why = f"{len(binary)} column(s) of 1 and 0: a yes or no each"
        return Labels({"labels": binary} | uncertain(columns, binary), why, (*several, *words))
    others = tuple(name for name in (*several, *words, *binary) if name != choice)
    if choice in binary:
        return Labels({"labels": [choice]} | uncertain(columns, [choice]), "a column of 1 and 0: yes or no", others)
    unknown = sorted({cell for cell in columns[choice] if cell.casefold() in table.MISSING})
    fields: dict[str, object] = {"label": choice}
    if unknown:
        fields["unknown"] = unknown
    if separator := separator_of(columns[choice]):
        names = {name.strip() for cell in set(columns[choice]) for name in cell.split(separator)}
        none = sorted(name for name in names if plain(name) in NONE)
        fields |= {"separator": separator} | ({"none": none[0]} if none else {})
        return Labels(fields, "any number of findings in one column", others)
    counts = Counter(cell for cell in columns[choice] if cell and cell not in unknown)
    counted = ", ".join(f"{count} {name}" for name, count in counts.most_common(6))
    return Labels(fields, f"one class each: {counted}" + (", …" if len(counts) > 6 else ""), others)


def uncertain(columns: Mapping[str, pandas.Series], names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the field `unknown` of columns of 1 and 0, where some of their cells are neither."""
    words = [word for word in UNCERTAIN if any(word in set(columns[name]) for name in names)]
    return {"unknown": words} if words else {}


def is_binary(cells: pandas.Series) -> bool:
    known = {cell for cell in cells if cell and cell not in UNCERTAIN}
    return known <= set(table.BINARY) and len({table.BINARY[cell] for cell in known}) == 2


def separator_of(cells: pandas.Series) -> str:
    """Returns what separates several findings in one cell; empty if nothing does."""
    for separator in ("|", ";"):
        names = {name.strip() for cell in set(cells) for name in cell.split(separator)}
        if any(separator in cell for cell in set(cells)) and 2 <= len(names) <= MOST_CLASSES:
            return separator
    return ""


def is_words(cells: pandas.Series, is_named: bool) -> bool:
    """True if a column's few values come again and again: classes. is_named: it is called as labels are, and then a
    class may be of one image, if most images are of classes that have more."""
    counts = Counter(cell for cell in cells if cell and cell.casefold() not in table.MISSING)
    if is_named and counts.total() < 2 * sum(count for count in counts.values() if count > 1):
        return 2 <= len(counts) <= MOST_CLASSES
    return 2 <= len(counts) <= min(MOST_CLASSES, max(2, len(cells) // 3)) and min(counts.values()) > 1
