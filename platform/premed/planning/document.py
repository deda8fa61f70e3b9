"""Writes choices as a YAML that people read: each with its reason."""

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from premed.errors import printable
from premed.planning.choices import Choice, Choices

WIDTH = 120


def text(head: Sequence[str], choices: Choices) -> str:
    """Returns the YAML. head: comments at its top."""
    lines = [*(line for each in head for line in wrapped(each, ""))]
    group = ""
    for path, choice in choices.items():
        parent, _, name = path.rpartition(".")
        if parent != group:
            group = parent
            lines += [f"{parent}:"] if parent else []
        lines += list(entry("  " if parent else "", name, choice))
    return "\n".join(lines) + "\n"


def entry(indent: str, name: str, choice: Choice) -> Iterator[str]:
    """Yields the lines of a field: its reason behind it, or above it where that would be too long."""
    line = f"{indent}{name}: {inline(choice.value)}"
    listed = isinstance(choice.value, list) and any(isinstance(item, dict) for item in choice.value)
    why = printable(choice.why)
    behind = f"{line}  # {why}"
    if not listed and len(behind) <= WIDTH:
        yield behind if why else line
        return
    yield from wrapped(why, indent) if why else ()
    if listed:
        yield f"{indent}{name}:"
        yield from (f"{indent}- {inline(item)}" for item in choice.value)
    else:
        yield line


def inline(value: Any) -> str:
    """Returns a value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def wrapped(comment: str, indent: str) -> Iterator[str]:
    """Yields a comment, in lines that are not too long."""
    line = f"{indent}#"
    for word in printable(comment).split():
        if len(line) + 1 + len(word) > WIDTH and not line.endswith("#"):
            yield line
            line = f"{indent}#"
        line += f" {word}"
    yield line
