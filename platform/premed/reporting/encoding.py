"""Signs that the encoding of a terminal, file or pipe lacks, as ASCII that says the same."""

import codecs
import sys

ASCII = {
    "±": "+-", "×": "x", "…": "...", "°": "deg", "µ": "u", "·": ".", "²": "^2", "–": "-", "’": "'",
    "≤": "<=", "≥": ">=", "→": "->", "▲": "^", "▼": "v", "█": "#", "━": "-", "╸": "-", "╺": "-",
}  # fmt: skip
"""Of other signs the escape is written: \\u4e2d."""
ERRORS = "premed.replace"
"""The name of the codec error handler."""


def replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """The codec error handler: signs that an encoding lacks as ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(ASCII.get(sign) or sign.encode("unicode_escape").decode() for sign in signs), error.end


codecs.register_error(ERRORS, replaced)


def encodable(text: str) -> str:
    """The text as stdout writes it: a table's columns are measured before they are written."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, ERRORS).decode(encoding)
