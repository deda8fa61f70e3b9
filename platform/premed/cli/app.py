"""The commands: each parses its arguments and calls the package that does the work, which it imports only then."""

import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from premed.cli import bench, data, init, plan, services, streams
from premed.cli import run as running
from premed.cli.options import (
    Json,
    Reference,
    What,
    loading,
    print_outcomes,
    print_result,
    redirect_prints,
    tell_written,
    train_settings,
)
from premed.errors import Left, StageFailed, UserError, brief
from premed.events import WarningIssued
from premed.inference.refusals import refuse_export, refuse_options, refuse_prediction
from premed.paths import settle_user_home
from premed.reporting.refusals import refuse_figures, refuse_page
from premed.tracking.client import require_store
from premed.training import stopping


class Commands(TyperGroup):
    """The commands. What a KeyboardInterrupt says gets to `main`; typer keeps its exit code alone."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Left(str(stop) or "stopped") from None


app = typer.Typer(
    cls=Commands,
    help="Does self-supervised pre-training on my own medical images help, which kind, and how sure can I be?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.command()(init.init)


@app.command()
def run(
    what: What,
    measure: Annotated[bool, typer.Option("--estimate", help="train nothing; measure what it takes here")] = False,
    as_json: Json = False,
) -> None:
    """Pre-train (or reuse it), fine-tune, test once; print the scores and where they are.

    Lists fan out: 'pretext=\\[none,mae]' 'finetune.label_fraction=\\[0.05,1.0]' 'seeds=\\[0,1,2]' are twelve
    experiments that share one pre-training ('vary=\\[pretrain]': one for each seed); 'seeds=auto': as many as it takes.

    premed run mine.yaml 'pretext=\\[none,mae]' 'seeds=\\[0,1,2]'
    """
    (running.estimate if measure else running.run)(what, as_json)


@app.command()
def sweep(
    what: Annotated[
        list[str], typer.Argument(metavar="SWEEP.yaml", help="the sweep, more YAMLs over its base, then key=value")
    ],
    as_report: Annotated[bool, typer.Option("--report", help="run nothing; print the results so far")] = False,
    as_json: Json = False,
) -> None:
    """Search over any fields with Ray Tune and Optuna, scored on val; the same command resumes a stopped sweep.

    Each pre-training is trained once, however many trials share it. docs/sweeps.md shows one.
    """
    from premed.tuning.sweep_file import load_sweep

    files = [item for item in what if "=" not in item]
    if not files:
        raise UserError("sweep: no YAML file is given; name the sweep's file first")
    with loading(what):
        loaded = load_sweep(files[0], files[1:], [item for item in what if "=" in item])
        from premed.cli.live_table import LiveTable
        from premed.reporting.sweep import terminal
        from premed.tuning import sweep

    with LiveTable() as show, redirect_prints(as_json):
        for note in loaded.notes():
            show(WarningIssued(note))
        result = sweep.report(loaded) if as_report else sweep.run(loaded, show)
    print_result(result, as_json, terminal.show)
    if result.all_failed and not as_report:
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="where phantoms, runs and the report go")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Chest X-rays, abdominal CT and brain MRI, made up on the spot: does MAE help? On 2 Ray workers."""
    with loading():
        from premed.cli import demo

    with redirect_prints(as_json):
        result = demo.run(folder.absolute())
    demo.open_page(result["report"])
    print_outcomes(result["outcomes"], as_json, result, demo.show)


@app.command()
def compare(
    task: Annotated[str | None, typer.Option(help="one task [default: all that the store has]")] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="what the others are compared with [default: the strategy none]")
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
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="for a paper: charts, table.csv, table.tex, methods.txt")
    ] = None,
    ui: Annotated[
        str | None, typer.Option(metavar="URL", help="the MLflow UI the page links to [default: the server in use]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare strategies over seeds: mean, interval, difference to a baseline, cost, classes.

    Intervals are for a new patient and a new seed; docs/compare.md says what each column means.
    """
    if part not in (None, "test", "val"):
        raise UserError(f"--part {part}: write --part test or --part val")
    require_store()
    if html is not None:
        refuse_page(html, ui)
    if figures is not None:
        refuse_figures(figures)
    with loading():
        from premed.reporting.comparison import compare, page, terminal
        from premed.reporting.comparison import figures as drawn
        from premed.tracking.run_store import open_store

    with redirect_prints(as_json):
        store = open_store()
        selection: dict[str, Any] = {"task": task, "baseline": baseline, "allow": allow or (), "where": where or ()}
        result = compare.compare(store, part=part, **selection)
    if csv is not None:
        terminal.write_csv(result, csv)
    if html is not None:
        page.write(result, store, html, ui)
    files = drawn.write(result, store, figures) if figures is not None else []
    print_result(result, as_json, terminal.show)
    tell_written(csv, html, *files)


app.command()(plan.plan)


@app.command()
def predict(
    reference: Reference,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="files, folders of them, DICOM series")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="where the predictions are written")],
    masks: Annotated[bool, typer.Option("--masks", help="beside each label map, a mask of each region")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="compute on this machine's GPU")] = False,
    precision: Annotated[str, typer.Option(help="as train.precision: auto, fp32 or bf16")] = "auto",
    as_json: Json = False,
) -> None:
    """Segment or classify new images: NIfTI on each input's own grid, or a CSV of probabilities.

    An image that cannot be predicted is named and skipped; the exit code is then 1.
    """
    train = train_settings(gpu=gpu, precision=precision)
    with loading(), redirect_prints(as_json):
        refuse_prediction(reference, images, out)
        from premed.cli.progress import ProgressPrinter
        from premed.inference import predict
        from premed.reporting import console

    with ProgressPrinter() as show, redirect_prints(as_json):
        result = predict.run(reference, images, out, show, masks=masks, train=train)
    print_result(result, as_json, console.show_predictions)
    if result["failed"]:
        raise typer.Exit(1)


@app.command()
def export(
    reference: Reference,
    to: Annotated[Path, typer.Option(metavar="DIR", help="a new folder")],
    form: Annotated[str, typer.Option("--format", help="safetensors, onnx or monai (a bundle)")],
    check: Annotated[
        list[Path] | None,
        typer.Option(metavar="IMAGE", help="compare onnx and monai with torch on it; may be repeated"),
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="safetensors: this part alone; may be repeated")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="safetensors: all parts in one file")] = False,
    as_json: Json = False,
) -> None:
    """Write a trained network as files for other tools, with a description of how its images are prepared."""
    refuse_options(form, to, check=check or (), part=part or (), single_file=whole)
    with loading(), redirect_prints(as_json):
        refuse_export(reference)
        from premed.inference import export
        from premed.reporting import console

    with redirect_prints(as_json):
        result = export.run(reference, to, form, check=check or (), part=part or (), single_file=whole)
    print_result(result, as_json, console.show_export)


app.command()(bench.bench)
app.command()(services.fields)
app.command(context_settings={"allow_interspersed_args": False})(services.submit)
app.command()(services.doctor)
app.command()(services.ui)


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"premed {version('premed')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print it and exit", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Does self-supervised pre-training on my own medical images help, which kind, and how sure can I be?"""


def wrong_usage(error: Any) -> str:
    """What to do about a wrong option or command, from typer's own error."""
    option = getattr(error, "option_name", "")
    if "." in option:
        return f"{option}: fields are set without dashes, as {option.lstrip('-')}=VALUE"
    message = error.format_message()
    if message.startswith("No such command"):
        return f"{message} There are {', '.join(error.ctx.command.list_commands(error.ctx))}."
    if message.startswith("Missing argument") and error.ctx.info_name in ("run", "sweep"):
        example = f"premed {error.ctx.info_name} mine.yaml finetune.base_lr=1e-3"
        return f"{message} For example: {example} (premed init writes a YAML)"
    if message.startswith("Missing argument"):
        return f"{message} All of them: premed {error.ctx.info_name} --help"
    return message


def main() -> None:
    """Exit code 0: done; 1: failed midway (finished stages stay); 2: something the user can fix; 130: stopped."""
    try:
        streams.settle()
        settle_user_home()
        stopping.install()
        code, message = app(standalone_mode=False) or 0, ""
    except UserError as error:
        code, message = 2, str(error)
    except StageFailed as error:
        code, message = 1, str(error)
    except Left as error:
        code, message = 130, str(error)
    except KeyboardInterrupt:
        code, message = 130, "stopped"
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own: a wrong option, a missing argument
            raise
        code, message = 2, wrong_usage(error)
    if not message and (reason := streams.failure(sys.stdout)):
        code, message = 2, f"stdout: cannot be written ({reason}); write it elsewhere, or make room there"
    if message:
        print(f"premed: {brief(message)}", file=sys.stderr)
    if code == 130 and any(thread.name == "premed worker group" for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(code)  # a thread that is still in Ray's library would crash when the interpreter ends
    sys.exit(code)


if __name__ == "__main__":
    main()
