"""The reference of all fields of a YAML, from the schema: path, type, range, default and meaning of each."""

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from premed.config.compose import first_name
from premed.config.decide import Decide
from premed.config.expand import Seeds
from premed.config.experiment import Experiment
from premed.config.plugins import plugin, plugin_names
from premed.config.spec import Spec, similar_field
from premed.errors import UserError

KINDS = {"task": "tasks", "encoder": "encoders", "pretext": "pretext", "finetune.head": "heads"}
"""The fields that hold a plug-in, and the kind of these."""


@dataclass(frozen=True)
class FieldEntry:
    """One line of the reference."""

    path: str
    type: str
    default: str  # "" if the field must be set
    meaning: str


COMPOSED = (
    FieldEntry("base", "text or null", "null", "A YAML file, relative to this one, whose fields this one overrides."),
    FieldEntry(
        "only", "strategy: fields", "{}", "Fields of one strategy alone, as in {mae: {pretext: {mask_ratio: 0.6}}}."
    ),
)
"""What `compose` takes out of a file before it is an Experiment."""
DECIDE = FieldEntry("decide", "fields", "{}", "With `seeds: auto`, when seeds are enough. See docs/seeds-auto.md.")


def reference(path: str | None = None) -> list[FieldEntry]:
    """The fields below `path`: of a section (`finetune`), a field (`finetune.lr`), or a plug-in (`pretext.mae`).

    A plug-in's field may lack the plug-in, as overrides do (`pretext.mask_ratio`): of all that have it, each is told.
    Without `path`: all fields but those of plug-ins. Raises UserError if there is no such field.
    """
    if path is None:
        return [*entries(Experiment), *entries(Seeds), DECIDE, *entries(Decide, "decide."), *COMPOSED]
    path = first_name(path)
    found = below(reference(), path)
    for field, kind in KINDS.items():
        if path.startswith(f"{field}.") and not found:
            found = of_plugins(field, kind, path.removeprefix(f"{field}."))
    if not found:
        guess = similar_field(Experiment, path)
        remedy = (
            f"did you mean {guess}?" if guess else "premed fields lists all; premed fields pretext.mae those of mae"
        )
        raise UserError(f"{path}: no such field; {remedy}")
    return found


def below(some: list[FieldEntry], path: str) -> list[FieldEntry]:
    """Those at `path` or below it; the [] of lists may be left out."""
    path = path.replace("[]", "")
    of = [(each, each.path.replace("[]", "")) for each in some]
    return [each for each, name in of if name == path or name.startswith(f"{path}.")]


def of_plugins(field: str, kind: str, rest: str) -> list[FieldEntry]:
    """The fields of the plug-in that `rest` begins with, or else the field `rest` of each plug-in that has it."""
    name, _, rest_of_name = rest.partition(".")
    if name in plugin_names(kind):
        found = [*entries(plugin(kind, name).Config, f"{field}.")]
        if not found:
            raise UserError(f"{field}.{name}: has no fields of its own; write it as it is, {field}: {name}")
        return below(found, f"{field}.{rest_of_name}") if rest_of_name else found
    found = []
    for name in plugin_names(kind):
        has = below([*entries(plugin(kind, name).Config, f"{field}.")], f"{field}.{rest}")
        found += [replace(each, meaning=f"{name}: {each.meaning}".rstrip(": ")) for each in has]
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
        path, inner = f"{prefix}{name}", [*specs(field.annotation)]
        if path in KINDS or (name == "task" and "sources" in prefix):
            names = ", ".join(plugin_names(KINDS.get(path, "tasks")))
            yield FieldEntry(path, f"one of {names}", default_of(field), meanings.get(name, "A plug-in, or its name."))
        elif inner and prefix.count(".") < 3:
            yield FieldEntry(path, "fields", default_of(field), meanings.get(name, ""))
            yield from of_specs(inner, path)
        elif name != "name" or not prefix:
            yield FieldEntry(path, type_of(field), default_of(field), meanings.get(name, ""))


def specs(annotation: Any, listed: bool = False) -> Iterator[tuple[type[Spec], bool]]:
    """Yields the Specs that a field may hold, and whether in a list: all members of a union, in their order."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        if annotation is not Spec:
            yield annotation, listed
        return
    listed |= typing.get_origin(annotation) is tuple
    for each in typing.get_args(annotation):
        yield from specs(each, listed)


def of_specs(kinds: list[tuple[type[Spec], bool]], path: str) -> Iterator[FieldEntry]:
    """The fields of a section that is one of several Specs: the first's; of others what it lacks, and their purpose."""
    yielded = set[str]()
    for number, (kind, listed) in enumerate(kinds):
        prefix = f"{path}[]." if listed else f"{path}."
        purpose = inspect.getdoc(kind) if number else None
        for each in entries(kind, prefix):
            if each.path in yielded:
                continue
            yielded.add(each.path)
            if purpose and "." not in each.path.removeprefix(prefix):
                meaning = f"{' '.join(purpose.split(chr(10) * 2)[0].split())} {each.meaning}".strip()
                each = replace(each, default=each.default or "—", meaning=meaning)
            yield each


def type_of(field: FieldInfo) -> str:
    """The field's type in words, with the range of a number: `number, 0 to 1`, `[number, number]`."""
    return type_name(field.annotation) + range_of(field.metadata)


def range_of(metadata: Iterable[Any]) -> str:
    """The limits of a number in words; empty if there are none."""
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    limits = [(word, getattr(each, name, None)) for each in metadata for name, word in words.items()]
    found = [f"{word} {limit:g}" for word, limit in limits if limit is not None]
    return f", {' '.join(found)}" if found else ""


def type_name(annotation: Any) -> str:
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", NoneType: "null"}
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(str(each).lower() if isinstance(each, bool) else str(each) for each in arguments)
    if origin is typing.Annotated:
        return type_name(arguments[0]) + range_of(arguments[1:])
    if origin in (typing.Union, UnionType):
        return " or ".join(dict.fromkeys(map(type_name, arguments)))
    if origin is tuple:
        items = [type_name(each) for each in arguments if each is not Ellipsis]
        return f"[{', '.join(items)}{', …' if Ellipsis in arguments else ''}]"
    if origin is dict:
        return f"{type_name(arguments[0])}: {type_name(arguments[1])}"
    return getattr(annotation, "__name__", str(annotation)).lower()


def default_of(field: FieldInfo) -> str:
    """As a YAML would hold it; empty if the field must be set. A section's is {}: the defaults of its fields."""
    value = field.get_default(call_default_factory=False)
    if value is PydanticUndefined:
        return ""
    if isinstance(value, Spec):
        return "{}"
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, tuple):
        return str(list(value))
    return words[value] if value is None or isinstance(value, bool) else str(value)


def field_docs(kind: type) -> dict[str, str]:
    """The text below each field in the source, as in these files; those of base classes, too.

    pydantic's `use_attribute_docstrings` reads the same: at every import, 60 to 100 ms of each command and worker.
    """
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
