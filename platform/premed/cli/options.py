"""What all commands share: how their arguments are read and how their answers are told."""

import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer

from premed.config.spec import validate_spec
from premed.errors import UserError

What = Annotated[
    list[str], typer.Argument(help="YAML files, then key=value by dotted path; later ones override earlier")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout, everything else on stderr")]


def experiments_of(what: list[str]) -> Any:
    """YAML files come first, overrides after them."""
    from premed.config.expand import load_all

    files = [item for item in what if "=" not in item]
    return load_all(files, [item for item in what if "=" in item])


def experiment_of(what: list[str]) -> Any:
    """The first, where there are several: the data are the same for all."""
    return experiments_of(what)[0]


def tell_all(outcomes: list[dict[str, Any]], as_json: bool) -> None:
    """The answer of several experiments; exit code 1 where one failed."""
    from premed.reporting import console

    tell({"outcomes": outcomes}, as_json, lambda told: console.show_outcomes(told["outcomes"]))
    if any("failure" in outcome for outcome in outcomes):
        raise typer.Exit(1)


def train_of(**fields: Any) -> Any:
    """The part of an experiment that says on what to compute."""
    from premed.config.settings import Train

    try:
        return validate_spec(Train, fields)
    except UserError as error:
        raise UserError(f"--{error}") from None


def quiet(as_json: bool) -> Any:
    """Whatever a library prints meanwhile goes to stderr, if stdout is to hold one JSON object."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def tell(what: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """The answer, a dict or a dataclass, on stdout: one JSON object, or as people read it."""
    if as_json:
        print(json.dumps(defined(what), allow_nan=False))
    else:
        show(what)


def defined(value: Any) -> Any:
    """`value` as JSON takes it: dataclasses as dicts, and null for numbers that JSON has no word for."""
    if is_dataclass(value) and not isinstance(value, type):
        return defined(asdict(value))
    if isinstance(value, dict):
        return {name: defined(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [defined(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
