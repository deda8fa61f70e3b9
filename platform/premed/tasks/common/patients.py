"""Whose an image is: `task.patient`, a field of an entry or a pattern over names; and names that suggest several scans.

Splits are by patient and intervals count patients, so that scans of one patient must not pass for several patients.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Annotated, Any

from pydantic import AfterValidator

from premed.errors import UserError

DATE = r"(?:19|20)\d{2}([-_.]?)(?:0[1-9]|1[0-2])\2(?:0[1-9]|[12]\d|3[01])"
"""2019-03-04, 20190304: its separator is the second group of what it is in."""
SCAN = re.compile(
    rf"(.*?[^\W_])[-_. /]+(?:{DATE}|(?:ses|session|scan|visit|frame|time|timepoint|tp|phase|run|t|v|s)?-?\d{{1,4}}"
    r"|[a-z]|left|right|pre|post|baseline|followup)",
    re.IGNORECASE,
)
"""A name whose end may number the scans of one patient; the group is what is before it."""
FEW = 12  # names with one beginning: more of them are rather patients of one site or study


def _pattern(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression ({error}); fix it") from None
    if not groups:
        raise ValueError(f"{text!r} has no group; put what names the patient in brackets, as in '(.+)_[0-9]+'")
    return text


PatientPattern = Annotated[str, AfterValidator(_pattern)]
"""A regular expression over a whole case name; its first group is the patient."""
PatientRule = Annotated[str, AfterValidator(lambda text: _pattern(text) if "(" in text else text)]
"""The name of a field of a case's entry in dataset.json; or, if it has a group, a `PatientPattern`."""


def patient_of(rule: str | None, name: str, entry: Mapping[str, Any] | None = None) -> str:
    """Returns the patient of a case; its name if there is no rule. Raises UserError if the rule finds none.

    entry: what dataset.json says of the case; None: the rule is a pattern.
    """
    if rule is None:
        return name
    if entry is not None and "(" not in rule:
        patient = entry.get(rule)
        if not isinstance(patient, (str, int)) or isinstance(patient, bool) or patient == "":
            raise UserError(f"task.patient: the entry of {name} has no field {rule!r} with a name or a number; add it")
        return str(patient)
    found = re.fullmatch(rule, name)
    if found is None or not found[1]:
        raise UserError(f"task.patient: {rule!r} finds no patient in {name}; it must match every whole name")
    return found[1]


def guessed_pattern(names: Sequence[str], others: Sequence[str] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the field `patient`, where names look like several scans of one patient, and why; else nothing.

    Scans of one patient in two parts make scores too good; two patients that count as one cost a little certainty only.
    The pattern matches the names with a suffix, too. others: of images without a label, which must not hide what the
    labelled ones look like: those that are called otherwise are patients of their own.
    """
    pattern = r"(.+)[-_][^-_/]+"
    fitting = [name for name in others if re.fullmatch(pattern, name)]
    several = several_scans(names) or several_scans([*names, *fitting])
    if all(re.fullmatch(rf"(.+)[-_]{DATE}", name) for name in [*names, *fitting]):  # its own dashes begin no scan
        pattern = r"(.+)[-_]\d{4}[-_.]?\d\d[-_.]?\d\d"
    if not several or not all(re.fullmatch(pattern, name) for name in names):
        return {}, {}
    why = "names look like several scans of a patient, who stay in one part; if each is a patient of its own: '(.+)'"
    wider = pattern.replace("(.+)", "(.+?)(?:", 1) + ")?"  # the same patients, and names that do not end so
    return {"patient": pattern if len(fitting) == len(others) else wider}, {"patient": why}


def several_scans(names: Iterable[str]) -> str | None:
    """Returns a note if case names suggest several scans of one patient (a_1, a_2, b_1, …); None otherwise."""
    scans: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found = SCAN.fullmatch(name)
        scans[found[1] if found else name].append(name)
    several = [some for some in scans.values() if len(some) > 1]
    if len(scans) < 3 or not several or median(map(len, several)) > FEW:
        return None
    some = ", ".join(sorted(several[0])[:3])
    return (
        f"{sum(map(len, several))} cases share the beginning of their name with others ({some}), and each counts as a "
        "patient: if these are scans of one patient, set task.patient, for instance '(.+)[-_.].+'; if not, '(.+)'"
    )


def normalise_name(name: str) -> str:
    """Returns a name without what differs between file systems: case, and the composition of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def patients_alike(patients: Iterable[str], where: str = "") -> Iterator[str]:
    """Yields a message for each two patients whose names are `alike`."""
    for name, other in alike(sorted(set(patients))):
        yield f"patients {name!r} and {other!r}{where} would be two; write them alike"


def alike(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields pairs of names that differ in case or blanks alone, or are one whole number: 7, 007, 7.0 and 7,0.

    Programs that write tables drop leading zeros, and turn numbers into fractions where a cell of the column is empty.
    """
    written: dict[str, str] = {}
    for name in names:
        plain = " ".join(normalise_name(name).split())
        if number := re.fullmatch(r"0*(\d+?)(?:[.,]0*)?", plain):
            plain = number[1]
        if (first := written.setdefault(plain, name)) != name:
            yield first, name
