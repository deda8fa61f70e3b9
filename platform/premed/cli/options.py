"""What all commands share: options, loading of experiments, and printing of results."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from premed.config.spec import validate_spec
from premed.errors import UserError

What = Annotated[
    list[str], typer.Argument(help="YAML files, then key=value by dotted path; later ones override earlier")
]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="a run's id or its first characters, a stage's folder, models:/NAME@best or models:/NAME/3"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout, everything else on stderr")]


@contextmanager
def loading(what: Sequence[str] = ()) -> Iterator[None]:
    """Shows on a terminal that the first seconds of a command, which are those of imports, are under way."""
    from rich.console import Console
    from rich.markup import escape

    files = ", ".join(item for item in what if "=" not in item)
    with Console(stderr=True).status(f"reading {escape(files)}" if files else "starting"):
        yield


def load_command(what: list[str]) -> Any:
    """The experiments of YAML files and `key=value` overrides; lists fan out. With them, for `seeds: auto`, when seeds
    are enough; else None. Raises UserError."""
    from premed.config.expand import load_command

    files = [item for item in what if "=" not in item]
    return load_command(files, [item for item in what if "=" in item])


def load_experiments(what: list[str]) -> Any:
    """The experiments alone."""
    return load_command(what)[0]


def load_first_experiment(what: list[str]) -> Any:
    """The first experiment, for commands that look at the data alone: these are the same for all."""
    return load_experiments(what)[0]


def print_outcomes(
    outcomes: list[dict[str, Any]],
    as_json: bool,
    more: dict[str, Any] | None = None,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Prints the outcomes of several experiments; exits with code 1 if one failed.

    more: what else the JSON object has. show: prints it below the outcomes, for people.
    """
    from premed.reporting.outcomes import show_outcomes

    def show_all(result: dict[str, Any]) -> None:
        show_outcomes(result["outcomes"])
        if show is not None:
            show(result)

    print_result({**(more or {}), "outcomes": outcomes}, as_json, show_all)
    if any("failure" in outcome for outcome in outcomes):
        raise typer.Exit(1)


def train_settings(**fields: Any) -> Any:
    """`Train` settings from a command's options. Raises UserError that names the option."""
    from premed.config.settings import Train

    try:
        return validate_spec(Train, fields)
    except UserError as error:
        raise UserError(f"--{error}") from None


def redirect_prints(as_json: bool) -> Any:
    """With --json, a context in which what libraries print goes to stderr: stdout holds one JSON object."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def print_result(result: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Prints a result (a dict or a dataclass) on stdout: one JSON object, or by `show` for people."""
    if as_json:
        print(json.dumps(as_json_value(result), allow_nan=False))
    else:
        show(result)


def tell_written(*files: Path | None) -> None:
    """Says on stderr which files were written."""
    for file in files:
        if file is not None:
            print(f"written: {file}", file=sys.stderr)


def as_json_value(value: Any) -> Any:
    """`value` as JSON holds it: dataclasses as dicts, NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json_value(asdict(value))
    if isinstance(value, dict):
        return {name: as_json_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
