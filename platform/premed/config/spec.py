"""Spec: what a user writes in a YAML, as frozen, checked, digestible data. No torch here."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from premed.errors import UserError


class Spec(BaseModel):
    """A frozen piece of a configuration; an unknown key, a wrong type or a value out of range is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    version: ClassVar[int] = 1
    """Raised whenever the same fields come to mean another result (the golden losses change)."""

    def unsaid(self) -> set[str]:
        """Fields that mean nothing as the others stand: they stay out of the digest."""
        return set()

    def digest(self) -> str:
        """SHA-256 (hex) of every field that changes a result, nested specs and plug-in versions included."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()


Kind = TypeVar("Kind", bound=Spec)


def validated(kind: type[Kind], tree: Any) -> Kind:
    """`tree` as a Spec of that kind, or a UserError of one line for the first thing that is wrong."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        where, what = first_error(error)
        raise UserError(f"{where}: {what}" if where else what) from None


def first_error(error: ValidationError) -> tuple[str, str]:
    """Dotted path and message of a validation error, through the plug-ins' own."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, ValidationError):
        deeper, what = first_error(inner)
        return ".".join([*place, deeper] if deeper else place), what
    known = {
        "extra_forbidden": "no such field; check its spelling",
        "missing": "is missing; set it in a YAML or on the command line",
    }
    what = known.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] not in known and not isinstance(inner, ValueError):
        what += f" (it is {first['input']!r})"
    return ".".join(place), what.replace("\n", " ")


def preset(data: Any, field: str, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """A configuration in which a word stands for several numbers (`size: tiny`); a number given beside it wins."""
    if not isinstance(data, dict) or field not in data:
        return data
    if not isinstance(data[field], str) or data[field] not in presets:
        raise ValueError(f"{field}: {data[field]!r} is not one of {', '.join(presets)}")
    return {**presets[data[field]], **{name: value for name, value in data.items() if name != field}}


def elsewhere(default: Any, **constraints: Any) -> Any:
    """A field that says where or how something runs, not what comes out: it stays out of the digest."""
    return Field(default, json_schema_extra={"digest": False}, **constraints)


def scoring(default: Any, **constraints: Any) -> Any:
    """A field that changes how an answer is scored and nothing in how an encoder is pre-trained: see `unscored`."""
    return Field(default, json_schema_extra={"scoring": True}, **constraints)


def unscored(spec: Spec) -> Spec:
    """`spec` with its `scoring` fields, and those of what it holds, as by default: what a pre-training depends on."""

    def bare(value: Any) -> Any:
        if isinstance(value, Spec):
            return unscored(value)
        return tuple(map(bare, value)) if isinstance(value, tuple) else value

    fields = type(spec).model_fields.items()
    return spec.model_copy(
        update={
            name: field.default if (field.json_schema_extra or {}) == {"scoring": True} else bare(getattr(spec, name))
            for name, field in fields
        }
    )


def canonical(value: Any) -> str:
    """JSON with sorted keys, without the `elsewhere` fields: equal text means equal meaning."""
    return json.dumps(_meaning(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _meaning(value: Any) -> Any:
    if isinstance(value, Spec):
        unsaid = value.unsaid()
        fields = {
            name: _meaning(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if (field.json_schema_extra or {}) != {"digest": False} and name not in unsaid
        }
        return {**fields, "version": value.version}
    if isinstance(value, dict):
        return {str(name): _meaning(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_meaning(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (set, frozenset)):
        raise TypeError("a set has no order that a digest could rely on: use a tuple")
    return str(value)
