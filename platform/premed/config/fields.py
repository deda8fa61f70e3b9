"""The reference of all fields of a YAML, from the schema: path, type, range, default and meaning of each."""

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from premed.config.expand import Seeds
from premed.config.experiment import Experiment
from premed.config.plugins import plugin, plugin_names
from premed.config.spec import Spec, similar_field
from premed.errors import UserError

TOP: dict[str, type[Spec]] = {"": Experiment, "(run)": Seeds}
KINDS = {"task": "tasks", "encoder": "encoders", "pretext": "pretext", "finetune.head": "heads"}
"""The fields that hold a plug-in, and the kind of these."""


@dataclass(frozen=True)
class FieldEntry:
    """One line of the reference."""

    path: str
    type: str
    default: str  # "" if the field must be set
    meaning: str


def reference(path: str | None = None) -> list[FieldEntry]:
    """The fields below `path`: of a section (`finetune`), a field (`finetune.lr`), or a plug-in (`pretext.mae`).

    Without `path`: all fields but those of plug-ins. Raises UserError if there is no such field.
    """
    if path is None:
        return [*entries(Experiment), *entries(Seeds)]
    for field, kind in KINDS.items():
        name = path.removeprefix(f"{field}.").split(".")[0]
        if path.startswith(f"{field}.") and name in plugin_names(kind):
            found = list(entries(plugin(kind, name).Config, f"{field}."))
            rest = path.removeprefix(f"{field}.{name}").lstrip(".")
            found = [each for each in found if not rest or each.path.startswith(f"{field}.{rest}")]
            if found:
                return found
    found = [each for each in reference() if each.path == path or each.path.startswith(f"{path}.")]
    if not found:
        guess = similar_field(Experiment, path)
        remedy = (
            f"did you mean {guess}?" if guess else "premed fields lists all; premed fields pretext.mae those of mae"
        )
        raise UserError(f"{path}: no such field; {remedy}")
    return found


def page() -> str:
    """All fields, those of plug-ins too, as Markdown."""
    parts = [
        "# Fields\n\nEvery field of a YAML. Made by `premed fields --markdown`; `premed fields PATH` shows a part.\n"
    ]
    sections: dict[str, list[FieldEntry]] = {}
    for entry in reference():
        sections.setdefault(entry.path.split(".")[0] if "." in entry.path else "", []).append(entry)
    for name, found in sections.items():
        parts.append(markdown(name or "The whole", found))
    for field, kind in KINDS.items():
        for name in plugin_names(kind):
            if found := [*entries(plugin(kind, name).Config, f"{field}.")]:
                parts.append(markdown(f"{field}: {name}", found))
    return "\n".join(parts)


def markdown(title: str, found: list[FieldEntry]) -> str:
    """A table of fields."""
    rows = [[f"`{each.path}`", each.type, f"`{each.default}`" if each.default else "", each.meaning] for each in found]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"## {title}\n", "| field | type | default | meaning |", "|---|---|---|---|", *lines, ""])


def entries(kind: type[Spec], prefix: str = "") -> Iterator[FieldEntry]:
    """The fields of a Spec and of those nested in it, in their order."""
    meanings = field_docs(kind)
    for name, field in kind.model_fields.items():
        path, inner = f"{prefix}{name}", nested(field.annotation)
        if path in KINDS or (name == "task" and "sources" in prefix):
            names = ", ".join(plugin_names(KINDS.get(path, "tasks")))
            yield FieldEntry(path, f"one of {names}", default_of(field), meanings.get(name, "A plug-in, or its name."))
        elif inner and prefix.count(".") < 3:
            yield FieldEntry(path, "fields", default_of(field) if field.default is None else "", meanings.get(name, ""))
            yield from entries(inner, f"{path}[]." if is_list(field.annotation) else f"{path}.")
        elif name != "name" or not prefix:
            yield FieldEntry(path, type_of(field), default_of(field), meanings.get(name, ""))


def nested(annotation: Any) -> type[Spec] | None:
    """The Spec that a field holds, if it does; of several the first."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation if annotation is not Spec else None
    return next((found for each in typing.get_args(annotation) if (found := nested(each))), None)


def is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple or any(map(is_list, typing.get_args(annotation)))


def type_of(field: FieldInfo) -> str:
    """The field's type in words, with the range of a number: `number, 0 to 1`, `[number, number]`."""
    limits = {
        name: getattr(each, name) for each in field.metadata for name in ("gt", "ge", "lt", "le") if hasattr(each, name)
    }
    return type_name(field.annotation) + range_of(limits)


def range_of(limits: dict[str, Any]) -> str:
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    found = [f"{words[name]} {value:g}" for name, value in limits.items() if value is not None]
    return f", {' '.join(found)}" if found else ""


def type_name(annotation: Any) -> str:
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", NoneType: "null"}
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is typing.Annotated:
        limits = {
            name: getattr(each, name)
            for each in arguments[1:]
            for name in ("gt", "ge", "lt", "le")
            if hasattr(each, name)
        }
        return type_name(arguments[0]) + range_of(limits)
    if origin in (typing.Union, UnionType):
        return " or ".join(dict.fromkeys(map(type_name, arguments)))
    if origin is tuple:
        items = [type_name(each) for each in arguments if each is not Ellipsis]
        return f"[{', '.join(items)}{', …' if Ellipsis in arguments else ''}]"
    if origin is dict:
        return f"{type_name(arguments[0])}: {type_name(arguments[1])}"
    return getattr(annotation, "__name__", str(annotation)).lower()


def default_of(field: FieldInfo) -> str:
    """As a YAML would hold it; empty if the field must be set."""
    value = field.get_default(call_default_factory=False)
    if value is PydanticUndefined or isinstance(value, Spec):
        return ""
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, tuple):
        return str(list(value))
    return words[value] if value is None or isinstance(value, bool) else str(value)


def field_docs(kind: type) -> dict[str, str]:
    """The text below each field in the source, as in these files; those of base classes, too."""
    docs: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not issubclass(each, Spec) or each is Spec:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return docs
