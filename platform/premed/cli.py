"""The commands. Nothing else: each one hands over at once, and imports what it needs when it is called."""

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from premed.spec import StageFailed, UserError

app = typer.Typer(
    help="Does self-supervised pre-training on my own medical images help, which kind, and how sure can I be?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Phantoms, a check of the data, and the prepared cache.", no_args_is_help=True)
app.add_typer(data, name="data")

What = Annotated[
    list[str], typer.Argument(help="YAML files, then key=value by dotted path; later ones override earlier")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout, everything else on stderr")]


@app.command()
def run(what: What, as_json: Json = False) -> None:
    """Pre-train (or reuse it), fine-tune, test once; print the scores and where they are."""
    experiment = experiment_of(what)
    from premed import console, launch

    with console.Presenter() as show, quiet(as_json):
        outcome = launch.run(experiment, show)
    tell(outcome, as_json, lambda told: console.outcomes([told]))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="where phantoms, runs and pictures go")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Chest X-rays and brain MRI made up on the spot: from scratch against MAE, on 2 Ray workers, in minutes."""
    from premed import console
    from premed import demo as demonstration

    with quiet(as_json):
        outcomes = demonstration.run(folder.absolute())
    tell({"outcomes": outcomes}, as_json, lambda told: console.outcomes(told["outcomes"]))
    if not as_json:
        print(f"pictures: {folder}/pictures\nruns:     PREMED_HOME={os.environ['PREMED_HOME']} premed ui")


@app.command()
def compare(
    task: Annotated[str | None, typer.Option(help="one task [default: all that the store has]")] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="what the others are set against [default: none]")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="may differ between runs, as finetune.lr; may be repeated")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="only runs that have it; may be repeated")
    ] = None,
    part: Annotated[str | None, typer.Option(help="test or val [default: test where runs have it]")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="all numbers, one line per row and class")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="one page: tables, charts, cases, pictures, links to the runs")
    ] = None,
    ui: Annotated[
        str | None, typer.Option(metavar="URL", help="the MLflow UI the page links to [default: the server in use]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Strategies side by side, over seeds: mean, interval, difference to a baseline, cost, classes.

    Intervals are for a new patient and a new seed; docs/compare.md says what each column means.
    """
    if part not in (None, "test", "val"):
        raise UserError(f"--part {part}: is neither test nor val")
    from premed import compare as comparison
    from premed import report, scoreboard

    if html is not None:
        report.refuse(html, ui)
    with quiet(as_json):
        store = comparison.store_in_use()
        asked: dict[str, Any] = {"task": task, "baseline": baseline, "allow": allow or (), "where": where or ()}
        outcome = comparison.compare(store, part=part, **asked)
    if csv is not None:
        scoreboard.write_csv(outcome, csv)
    if html is not None:
        report.write(outcome, store, html, ui)
    tell(outcome, as_json, scoreboard.show)


@data.command()
def prepare(what: What, as_json: Json = False) -> None:
    """Build the prepared cache of an experiment's images (all three parts), so that training starts at once."""
    experiment = experiment_of(what)
    from premed import console, launch

    with console.Presenter() as show, quiet(as_json):
        told = launch.prepare(experiment, show)
    line = f"{told['num_images']} images prepared in {told['where']} ({told['megabytes']:.0f} MB)"
    tell(told, as_json, lambda _: print(line))


@data.command()
def check(
    what: What,
    as_json: Json = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="one page with the findings and a contact sheet")
    ] = None,
) -> None:
    """Find what is wrong with an experiment's images, labels and listings before any training.

    Errors are what a run would refuse or what would make its numbers false: exit code 2. Notes are what one should
    know: exit code 0. Every image is opened, those of the test part too (unless test=false).
    """
    experiment = experiment_of(what)
    from premed import console, launch

    with console.Presenter() as show, quiet(as_json):
        told = launch.check(experiment, show, html)
    tell(told, as_json, console.findings)
    if told["num_errors"]:
        raise typer.Exit(2)


@data.command()
def phantom(
    task: Annotated[str, typer.Argument(help="brats, btcv, chestxray14 or msd")],
    folder: Annotated[Path, typer.Argument(help="an empty or new folder")],
    num: Annotated[int | None, typer.Option(min=1, help="patients or cases [default: the task's]")] = None,
    seed: int = 0,
    size: Annotated[
        int | None,
        typer.Option(
            min=16, help="voxels along an edge [default: brats 96, btcv 128, chestxray14 64; msd has its own]"
        ),
    ] = None,
) -> None:
    """Write made-up images in a data set's own layout."""
    from premed import abdomen, brain, phantoms

    ct, mri = size or 128, size or 96
    writers: dict[str, Callable[[], object]] = {
        "brats": lambda: brain.write_brats(folder, num or 20, seed, shape=(mri, mri, mri * 155 // 240)),
        "btcv": lambda: abdomen.write_btcv(folder, num or 30, seed, shape=(ct, ct, max(ct // 2, 48))),
        "chestxray14": lambda: phantoms.write_chestxray14(folder, num or 100, seed, size=size or 64),
        "msd": lambda: phantoms.write_msd(folder, num or 100, seed),
    }
    if task not in writers:
        raise UserError(f"{task}: there are phantoms for {', '.join(writers)}")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder")
    writers[task]()
    print(folder)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="on 127.0.0.1")] = 5000,
) -> None:
    """The MLflow UI on the store in use."""
    from premed.home import home

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    if uri.startswith("http"):
        print(f"the store in use is a server with its own UI: {uri}")
        return
    if uri.startswith("sqlite") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UserError(f"{uri.removeprefix('sqlite:///')} is not there yet: run something first, or set PREMED_HOME")
    print(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", file=sys.stderr)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(
        sys.executable, [*command, "--backend-store-uri", uri, "--artifacts-destination", str(home() / "artifacts")]
    )


def experiment_of(what: list[str]) -> Any:
    """YAML files come first, overrides after them."""
    from premed.experiment import load

    files = [item for item in what if "=" not in item]
    return load(files, [item for item in what if "=" in item])


def quiet(as_json: bool) -> Any:
    """Whatever a library prints meanwhile goes to stderr, if stdout is to hold one JSON object."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def tell(what: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """The answer on stdout: one JSON object, or as people read it."""
    if as_json:
        print(json.dumps(defined(what), allow_nan=False))
    else:
        show(what)


def defined(value: Any) -> Any:
    """`value` with null for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {name: defined(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [defined(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Exit code 0: done; 1: failed midway (what was reached stays); 2: something the user can mend; 130: Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
    try:
        code, told = app(standalone_mode=False) or 0, ""
    except UserError as error:
        code, told = 2, str(error)
    except StageFailed as error:
        code, told = 1, str(error)
    except KeyboardInterrupt:
        code, told = 130, ""
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own: a wrong option, a missing argument
            raise
        code, told = 2, error.format_message()  # type: ignore[attr-defined]
    if code == 130:
        told = "stopped; the same command goes on from the last checkpoint"
    if told:
        print(f"premed: {told}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
