"""What tests of HTML pages do: read them as a browser would."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "line", "circle"}


class Page(HTMLParser):
    """What a browser would load, run and show; `open` is empty at the end of a well-formed page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.loads, self.links, self.open, self.rows, self.words = [], [], [], [], [], ""
        self.feed(text)
        self.headings = re.findall("<h3>(.*?)</h3>", text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "action", "data", "srcset", "poster")]
        self.links += [value for name, value in attrs if name in ("href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data
