"""Spec: the base class of every configuration: frozen, validated, with a digest. Imports no torch."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from premed.errors import UserError


class Spec(BaseModel):
    """A frozen part of a configuration. Unknown keys, wrong types and values out of range raise a ValidationError."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    version: ClassVar[int] = 1
    """Increment it whenever the same fields give another result (the golden losses change)."""

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        """Raises an error for the first unknown field, with a guess; before those that are missing for it."""
        if isinstance(data, dict) and cls.model_config.get("extra") == "forbid":
            for name in data:
                if name not in cls.model_fields:
                    remedy = f"did you mean {guess}?" if (guess := similar_field(cls, name)) else "check its spelling"
                    raise PydanticCustomError(
                        UNKNOWN, "no such field; {remedy}", {"remedy": remedy, "field": str(name)}
                    )
        return data

    @model_validator(mode="wrap")
    @classmethod
    def _no_words_as_numbers(cls, data: Any, handler: Any) -> Any:
        """Raises an error where yes, no, on, off, true or false, which YAML reads as truth values, became a number."""
        spec = handler(data)
        for name, value in data.items() if isinstance(data, dict) else ():
            if (wrong := truth_as_number(value, getattr(spec, name, None))) is not None:
                word = "yes, on or true" if wrong else "no, off or false"
                raise ValueError(f"{name}: takes a number, and {word} is none")
        return spec

    def unused_fields(self) -> set[str]:
        """Returns the fields that have no effect given the values of the others; the digest leaves them out."""
        return set()

    def digest(self) -> str:
        """Returns the SHA-256 (hex) of all fields that change a result, nested specs and plug-in versions included."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()


def truth_as_number(given: Any, parsed: Any) -> bool | None:
    """The truth value in `given` that pydantic made a number of in `parsed`; None if there is none."""
    if isinstance(given, bool) and isinstance(parsed, (int, float)) and not isinstance(parsed, bool):
        return given
    if isinstance(given, (list, tuple)) and isinstance(parsed, (list, tuple)) and len(given) == len(parsed):
        return next(
            (found for pair in zip(given, parsed, strict=True) if (found := truth_as_number(*pair)) is not None), None
        )
    return None


UNKNOWN = "unknown_field"
"""The type of pydantic's error for a field that there is not."""
SYNONYMS = {"learning_rate": "lr", "batch_size": "batch", "num_epochs": "epochs", "n_epochs": "epochs"}
SYNONYMS |= {"max_steps": "steps", "num_steps": "steps", "wd": "weight_decay", "num_workers": "workers"}
"""What other tools call some fields."""


def similar_field(kind: type[Spec], name: Any) -> str | None:
    """The field, or fields below it, that were probably meant by `name`."""
    if SYNONYMS.get(name) in kind.model_fields:
        return SYNONYMS[name]
    if name == "seed" and "finetune" in kind.model_fields:  # of an experiment, whose files have seeds: [0, 1, 2]
        return "seeds"
    if below := [f"{outer}.{name}" for outer in kind.model_fields if name in fields_below(kind, outer)]:
        return " or ".join(below)
    return next(iter(get_close_matches(str(name), kind.model_fields, n=1)), None)


def fields_below(kind: type[Spec], name: str) -> set[str]:
    """The fields of what stands in a field: of a Spec, or of one of several."""
    given = kind.model_fields[name].annotation
    parts = [given, *get_args(given)]
    return {inner for part in parts if isinstance(part, type) and issubclass(part, Spec) for inner in part.model_fields}


Kind = TypeVar("Kind", bound=Spec)


ONE_VALUE = ("int_type", "float_type", "bool_type", "string_type")
"""pydantic's types of errors where a field is no list."""


def validate_spec(kind: type[Kind], tree: Any) -> Kind:
    """Returns `tree` as a Spec of that kind. Raises UserError (one line) for the first invalid field."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        where, what = first_error(error)
        raise UserError(f"{where}: {what}" if where else what) from None


def first_error(error: ValidationError) -> tuple[str, str]:
    """Returns path and message of the error to mend first: an unknown field may be why one is missing."""
    errors = list(all_errors(error))
    return next(((where, what) for where, what, kind in errors if kind == UNKNOWN), errors[0][:2])


def all_errors(error: ValidationError) -> Iterator[tuple[str, str, str]]:
    """Yields path, message, and pydantic's type of each error, also of those nested in a plug-in's configuration."""
    for each in error.errors():
        place = [str(part) for part in each["loc"]]
        inner = each.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            for deeper, what, kind in all_errors(inner):
                yield ".".join([*place, deeper] if deeper else place), what, kind
        elif each["type"] == UNKNOWN:
            yield ".".join([*place, each.get("ctx", {}).get("field", "")]), each["msg"], UNKNOWN
        elif each["type"] == "missing" and isinstance(each["loc"][-1], int):
            given = list(each["input"])
            yield ".".join(place[:-1]), f"needs more than {len(given)} values (it is {given})", each["type"]
        elif each["type"] == "missing":
            yield ".".join(place), "is missing; set it in a YAML or on the command line", each["type"]
        elif isinstance(each["input"], list) and each["type"] in ONE_VALUE:
            what = f"takes one value (it is {each['input']!r}); premed sweep tries several"
            yield ".".join(place), what, each["type"]
        else:
            what = each["msg"].removeprefix("Value error, ").replace("\n", " ")
            stated = isinstance(inner, ValueError) or each["type"] == "extra_forbidden"
            yield ".".join(place), what if stated else f"{what} (it is {each['input']!r})", each["type"]


def preset(data: Any, field: str, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """Expands a preset name into the fields it stands for (`size: tiny`); a field given explicitly takes precedence."""
    if not isinstance(data, dict) or field not in data:
        return data
    if not isinstance(data[field], str) or data[field] not in presets:
        raise ValueError(f"{field}: {data[field]!r} is not one of {', '.join(presets)}")
    return {**presets[data[field]], **{name: value for name, value in data.items() if name != field}}


def runtime_field(default: Any, **constraints: Any) -> Any:
    """A field that says where or how something runs and does not change the result: the digest leaves it out."""
    return Field(default, json_schema_extra={"digest": False}, **constraints)


def added_field(default: Any, **constraints: Any) -> Any:
    """A field that was added after the first release: the digest leaves out the default, so that older stages count."""
    return Field(default, json_schema_extra={"digest": "unless default"}, **constraints)


def is_added(field: FieldInfo) -> bool:
    """Whether it is an `added_field`."""
    return (field.json_schema_extra or {}) == {"digest": "unless default"}


def scoring_field(default: Any, **constraints: Any) -> Any:
    """A field that changes how a prediction is scored, and not how an encoder is pre-trained (`without_scoring`)."""
    return Field(default, json_schema_extra={"scoring": True}, **constraints)


def without_scoring(spec: Spec) -> Spec:
    """Returns `spec` with its scoring fields, nested ones too, at their defaults: what a pre-training depends on."""

    def reset(value: Any) -> Any:
        if isinstance(value, Spec):
            return without_scoring(value)
        return tuple(map(reset, value)) if isinstance(value, tuple) else value

    fields = type(spec).model_fields.items()
    return spec.model_copy(
        update={
            name: field.default if (field.json_schema_extra or {}) == {"scoring": True} else reset(getattr(spec, name))
            for name, field in fields
        }
    )


def with_versions(tree: Any, value: Any) -> Any:
    """Returns `tree`, what was dumped of a Spec, with the `version` of each Spec in it that is not the first."""
    if isinstance(value, Spec) and isinstance(tree, dict):
        later = {} if value.version == 1 else {"version": value.version}
        return {name: with_versions(each, getattr(value, name)) for name, each in tree.items()} | later
    if isinstance(value, tuple) and isinstance(tree, list):
        return [with_versions(*each) for each in zip(tree, value, strict=True)]
    return tree


def canonical(value: Any) -> str:
    """Returns JSON with sorted keys and without the runtime fields: equal text means an equal result."""
    return _ENCODER.encode(_digested(value))


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digested(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):  # most values, of large data sets
        return value
    if isinstance(value, Spec):
        unused = value.unused_fields()
        for name, field in type(value).model_fields.items():
            when = (field.json_schema_extra or {}).get("digest")  # type: ignore[union-attr]
            if when is False or (when == "unless default" and getattr(value, name) == field.default):
                unused = unused | {name}
        fields = {name: _digested(getattr(value, name)) for name in type(value).model_fields if name not in unused}
        return {**fields, "version": value.version}
    if isinstance(value, dict):
        return {str(name): _digested(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_digested(item) for item in value]
    if isinstance(value, (set, frozenset)):
        raise TypeError("a set has no order that a digest could rely on: use a tuple")
    return str(value)
