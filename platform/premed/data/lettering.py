"""Text in figures: how wide it is, and how a name is cut, or names are wrapped, to the width that there is."""

from collections.abc import Sequence
from functools import cache

HINTING = 1.06  # letters on whole pixels are wider than their outlines


def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a line of text in inches, at most. size: in points."""
    return HINTING * size * sum(_advance(letter, bold) for letter in text)


@cache
def _advance(letter: str, bold: bool) -> float:
    """The width of a letter in inches for each point of its size."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=100, weight="bold" if bold else "normal")
    return text_to_path.get_text_width_height_descent(letter, font, ismath=False)[0] / 72 / 100


def fitted(text: str, inches: float, size: float) -> str:
    """`text`, with an ellipsis in place of its middle where it is wider than `inches`: ends tell names apart."""
    cut, kept = text, len(text)
    while kept > 1 and text_width(cut, size) > inches:
        kept -= 1
        cut = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return cut


def wrapped(names: Sequence[str], inches: float, size: float, bold: bool = False) -> list[str]:
    """Names with commas between them, in full, as lines of at most `inches`; a name that is wider is broken."""
    lines = [""]
    for piece in (*(f"{name}, " for name in names[:-1]), *names[-1:]):
        if lines[-1] and text_width((lines[-1] + piece).rstrip(), size, bold) > inches:
            lines.append("")
        for letter in piece:
            if text_width((lines[-1] + letter).rstrip(), size, bold) > inches:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines] if names else []
