"""The findings of `premed data check`: as a line, grouped by kind, and as a page with a contact sheet."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from premed.data.check import Check
from premed.data.figures import COLOURS
from premed.data.inspection import draw_thumbnail
from premed.errors import brief
from premed.reporting.html import render

NUM_PICTURES = 24  # on the contact sheet
NUM_SAME = 100  # files in the page's table that have the same finding


@dataclass(frozen=True)
class Thumbnail:
    """An image on the contact sheet."""

    png: bytes
    name: str
    about: Sequence[str]
    """Its part, its shape, its classes."""
    errors: Sequence[str]
    """The findings on the image or its label."""


def page(check: Check, mapper: Callable | None) -> str:
    """A check as one HTML page. mapper: as `Cache.prepare` has it, to read the images of the contact sheet."""
    outcome = check.outcome()
    thumbnails = contact_sheet(check, mapper)
    counts: Mapping[str, Mapping[str, int]] = outcome["classes"]
    return render(
        "data_check.html.jinja",
        title=f"premed data check: {outcome['task']}",
        outcome=outcome,
        summary=summary_line(outcome),
        findings=list(grouped_findings(outcome, NUM_SAME)),
        classes=list(dict.fromkeys(name for numbers in counts.values() for name in numbers)),
        thumbnails=thumbnails,
        legend=legend(check) if thumbnails else {},
    )


def contact_sheet(check: Check, mapper: Callable | None) -> list[Thumbnail]:
    """Images with findings first, then some of each part, evenly over it."""
    bad = [facts.number for facts in check.facts if facts.findings and facts.shape][: NUM_PICTURES // 2]
    chosen = list(bad)
    for part in check.parts:
        numbers = [facts.number for facts in check.facts if facts.shape and check.cases[facts.number][0] == part]
        num = min(len(numbers), max(1, (NUM_PICTURES - len(bad)) // len(check.parts)))
        chosen += [numbers[i * len(numbers) // num] for i in range(num)]
    chosen = list(dict.fromkeys(chosen))
    pngs = dict((mapper or map)(draw_thumbnail, [check.jobs[number] for number in chosen]))
    return [thumbnail(check, number, png) for number in chosen if (png := pngs[number])]


def thumbnail(check: Check, number: int, png: bytes) -> Thumbnail:
    part, case = check.cases[number]
    facts = check.facts[number]
    about = [part, " × ".join(map(str, facts.shape))]
    if isinstance(case.label, tuple):
        classes = [name for name, y in zip(check.task.classes, case.label, strict=True) if y > 0]
        about.append(", ".join(classes) or "none of the classes")
    return Thumbnail(png, case.name, about, [finding.what for finding in facts.findings])


def legend(check: Check) -> dict[str, str]:
    """The colour of each label that the label maps hold, by class."""
    names = {united[0]: name for name, united in check.task.regions.items() if len(united) == 1}
    labels = sorted({label for facts in check.facts for label in facts.counts if label})
    return {names.get(label, f"label {label}"): COLOURS[(label - 1) % len(COLOURS)] for label in labels}


def summary_line(outcome: Mapping[str, Any]) -> str:
    """An outcome (`Check.outcome`) in one line."""
    parts = ", ".join(f"{number} {part}" for part, number in outcome["parts"].items()) or "none"
    counts = {"image": outcome["num_images"], "error": outcome["num_errors"], "note": outcome["num_notes"]}
    images, errors, notes = (f"{number} {name}{'s' * (number != 1)}" for name, number in counts.items())
    return f"{images} opened ({parts}): {errors}, {notes}"


def grouped_findings(outcome: Mapping[str, Any], most: int) -> Iterator[tuple[str, str, str]]:
    """An outcome's findings for people, (severity, where, what), with paths below the root.

    Of the same finding in many files, the first `most`, then how many more there are.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    root = f"{outcome['root']}/"
    for finding in outcome["findings"]:
        where, what = (
            finding[name].replace(root, "") if outcome["root"] else finding[name] for name in ("where", "what")
        )
        groups[finding["severity"], brief(what)].append(brief(where))
    for (severity, what), places in groups.items():
        yield from ((severity, where, what) for where in places[:most])
        if len(places) > most:
            yield severity, f"… and {len(places) - most} more", what
