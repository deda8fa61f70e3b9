"""The page of a check of data: its findings, what there is of each class, and a contact sheet."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from premed.page import Cell, document, image, table, text

STYLE = """
td.where { min-width: 16rem } td.error, td.note { white-space: nowrap }
.sheet { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; width: min-content; min-width: 11rem; max-width: 24rem; font-size: 13px }
figure img { display: block; background: #000 } figcaption { overflow-wrap: anywhere }
figcaption span { color: #777 } .swatch { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em }
"""


class Picture(NamedTuple):
    """A PNG and what is said of it."""

    png: bytes
    name: str
    words: Sequence[str]
    wrong: Sequence[str] = ()


def page(
    told: Mapping[str, Any],
    summary: str,
    findings: Sequence[tuple[str, str, str]],
    pictures: Sequence[Picture],
    legend: Mapping[str, str],
) -> str:
    """told: what `--json` says; findings: (severity, where, what); legend: class to colour."""
    body = [
        f"<h1>{text(told['task'])}</h1><p>{text(told['root'])}</p>",
        f"<p>{text(summary)}</p>",
        "<h2>Findings</h2>",
        found(findings) if findings else "<p>Nothing is wrong.</p>",
        classes(told["classes"]),
        "<h2>Contact sheet</h2>" if pictures else "",
        key(legend) if pictures else "",
        f'<div class="sheet">{"".join(map(figure, pictures))}</div>',
    ]
    return document(f"premed data check: {told['task']}", STYLE, body)


def found(findings: Sequence[tuple[str, str, str]]) -> str:
    rows = ((Cell(text(severity), severity), Cell(text(where), "where"), what) for severity, where, what in findings)
    return table(["", "where", "what"], rows)


def classes(counts: Mapping[str, Mapping[str, int]]) -> str:
    """How many images of each part have each class."""
    if not counts:
        return ""
    names = list(dict.fromkeys(name for numbers in counts.values() for name in numbers))
    heads = [Cell(text(part), "number") for part in counts]
    rows = ([name, *(Cell(str(each.get(name, 0)), "number") for each in counts.values())] for name in names)
    return f"<h2>Images that have a class</h2>{table(['', *heads], rows)}"


def key(legend: Mapping[str, str]) -> str:
    swatches = (
        f'<span class="swatch" style="background:{text(colour)}"></span>{text(name)}' for name, colour in legend.items()
    )
    said = "Of a volume, one axial slice: front up, the patient's right on the left; labels on the right-hand copy."
    return f"<p>{said}{''.join(swatches)}</p>" if legend else ""


def figure(picture: Picture) -> str:
    words = f"{text(picture.name)} <span>{text(', '.join(picture.words))}</span>"
    wrong = "".join(f'<br><span class="error">{text(what)}</span>' for what in picture.wrong)
    return f"<figure>{image(picture.png, picture.name)}<figcaption>{words}{wrong}</figcaption></figure>\n"
