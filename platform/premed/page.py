"""What premed's HTML pages share: one file each, no network, no script. Whatever they are given is escaped."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from premed.errors import printable

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
p { margin: .4rem 0; color: #555 }
table { border-collapse: collapse } th, td { text-align: left; padding: .3rem .8rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid #e5e5e5; overflow-wrap: anywhere } td.number, th.number { text-align: right }
.error { color: #a00; font-weight: 600 } .note { color: #777 }
"""
CHARTED = """
h2 { border-top: 3px solid #222; padding-top: .6rem; margin-top: 3rem } h3 { font-size: 1rem; margin: 2rem 0 .4rem }
p, li, figcaption { max-width: 62rem; overflow-wrap: anywhere }
ul { padding-left: 1.2rem; margin: .4rem 0; color: #555 }
ul.verdicts { list-style: none; padding: 0; color: #222 } ul.verdicts li { margin: .25rem 0 }
.wide { overflow-x: auto } .small { color: #777; font-size: 13px } .faint { color: #777 }
th { font-weight: 600; font-size: 13px; vertical-align: bottom } th, td { overflow-wrap: normal; white-space: nowrap }
td.name, th.name { min-width: 10rem; max-width: 20rem; overflow-wrap: anywhere; white-space: normal }
td.number { font-variant-numeric: tabular-nums } td.words { min-width: 7rem; white-space: normal }
td.interval { color: #555; font-size: 13px } td svg { display: block; margin-top: .15em }
tr:has(td.first) td { border-top: 2px solid #bbb }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em }
.up { color: #00704f } .down { color: #a63c00 } details { margin: .8rem 0 } summary { cursor: pointer; color: #333 }
figure { margin: .8rem 0 } figure img { max-width: 100%; height: auto; display: block }
figcaption { font-size: 13px; color: #555; margin-bottom: .3rem } figcaption b { color: #222 }
.beside { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 32rem), 1fr)); gap: 1rem }
figure.long { grid-column: 1 / -1 }
code { font-size: 12px }
"""
"""What a page of wide tables and charts needs beyond STYLE."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Cell(NamedTuple):
    """What a table's cell holds, and how it is shown."""

    html: str
    kind: str = ""


def document(title: str, style: str, body: Iterable[str]) -> str:
    """A whole page. style: what it needs beyond STYLE."""
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += '<meta name="viewport" content="width=device-width">'
    head += f"<title>{text(title)}</title><style>{STYLE}{style}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{chr(10).join(body)}\n</body></html>\n'


def text(value: Any) -> str:
    return escape(printable(value), quote=True)


def table(heads: Sequence[Cell | str], rows: Iterable[Sequence[Cell | str]]) -> str:
    """A cell that is a string is text; a Cell is HTML."""

    def line(tag: str, cells: Sequence[Cell | str]) -> str:
        found = [cell if isinstance(cell, Cell) else Cell(text(cell)) for cell in cells]
        kinds = (f' class="{text(cell.kind)}"' if cell.kind else "" for cell in found)
        return "".join(f"<{tag}{kind}>{cell.html}</{tag}>" for kind, cell in zip(kinds, found, strict=True))

    lines = "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return f"<table><tr>{line('th', heads)}</tr>\n{lines}</table>"


def image(content: bytes, alt: str) -> str:
    """A PNG or an SVG, in the page itself."""
    kind = "png" if content.startswith(b"\x89PNG") else "svg+xml"
    return f'<img alt="{text(alt)}" src="data:image/{kind};base64,{b64encode(content).decode()}">'


def drawn(title: str, words: str, chart: bytes) -> str:
    return f"<h3>{text(title)}</h3><figure><figcaption>{text(words)}</figcaption>{image(chart, title)}</figure>"


def bullets(title: str, lines: Sequence[str]) -> str:
    return f"<h3>{text(title)}</h3><ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""
