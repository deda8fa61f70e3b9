"""One HTML page that needs nothing else: no network, no script, pictures inside. Whatever it is given is escaped."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from premed.spec import printable

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
p { margin: .4rem 0; color: #555 }
table { border-collapse: collapse } th, td { text-align: left; padding: .3rem .8rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid #e5e5e5; overflow-wrap: anywhere } td.number, th.number { text-align: right }
.error { color: #a00; font-weight: 600 } .note { color: #777 }
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
    """The page of a check. told: what `--json` says; findings: (severity, where, what); legend: class to colour."""
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
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += f"<title>premed data check: {text(told['task'])}</title><style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{chr(10).join(body)}\n</body></html>\n'


def text(value: Any) -> str:
    return escape(printable(value), quote=True)


def found(findings: Sequence[tuple[str, str, str]]) -> str:
    rows = (
        f'<tr><td class="{text(severity)}">{text(severity)}</td>'
        f'<td class="where">{text(where)}</td><td>{text(what)}</td></tr>\n'
        for severity, where, what in findings
    )
    return f"<table><tr><th></th><th>where</th><th>what</th></tr>\n{''.join(rows)}</table>"


def classes(counts: Mapping[str, Mapping[str, int]]) -> str:
    """How many images of each part have each class."""
    if not counts:
        return ""
    names = list(dict.fromkeys(name for numbers in counts.values() for name in numbers))
    heads = "".join(f'<th class="number">{text(part)}</th>' for part in counts)
    rows = (
        f"<tr><td>{text(name)}</td>"
        + "".join(f'<td class="number">{numbers.get(name, 0)}</td>' for numbers in counts.values())
        + "</tr>\n"
        for name in names
    )
    return f"<h2>Images that have a class</h2><table><tr><th></th>{heads}</tr>\n{''.join(rows)}</table>"


def key(legend: Mapping[str, str]) -> str:
    swatches = (
        f'<span class="swatch" style="background:{text(colour)}"></span>{text(name)}' for name, colour in legend.items()
    )
    said = "Of a volume, one axial slice: front up, the patient's right on the left; labels on the right-hand copy."
    return f"<p>{said}{''.join(swatches)}</p>" if legend else ""


def figure(picture: Picture) -> str:
    image = f'<img alt="{text(picture.name)}" src="data:image/png;base64,{b64encode(picture.png).decode()}">'
    words = f"{text(picture.name)} <span>{text(', '.join(picture.words))}</span>"
    wrong = "".join(f'<br><span class="error">{text(what)}</span>' for what in picture.wrong)
    return f"<figure>{image}<figcaption>{words}{wrong}</figcaption></figure>\n"
