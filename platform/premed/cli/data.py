"""`premed data …`: commands on images, without training."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from premed.cli.options import Json, What, load_first_experiment, loading, print_result, redirect_prints, tell_written
from premed.errors import UserError
from premed.paths import writing
from premed.reporting.refusals import refuse_page

PHANTOMS = ("brats", "btcv", "chestxray14", "images", "msd", "nnunet")
app = typer.Typer(help="Phantoms, a check of the data, and the prepared cache.", no_args_is_help=True)


@app.command()
def prepare(what: What, as_json: Json = False) -> None:
    """Prepare an experiment's images (all three parts) in the cache, so that training starts at once."""
    with loading(what):
        experiment = load_first_experiment(what)
        from premed.cli.progress import ProgressPrinter
        from premed.execution import runner
    with ProgressPrinter() as show, redirect_prints(as_json):
        result = runner.prepare(experiment, show)
    line = f"{result['num_images']} images prepared in {result['where']} ({result['megabytes']:.0f} MB)"
    print_result(result, as_json, lambda _: print(line))


@app.command()
def check(
    what: What,
    as_json: Json = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="one page with the findings and a contact sheet")
    ] = None,
) -> None:
    """Find what is wrong with an experiment's images, labels and listings before any training.

    Errors are what a run would refuse, or what would make its numbers wrong: exit code 2. Notes alone: exit code 0.
    Every image is opened, those of the test part too (unless test=false).
    """
    if html is not None:
        refuse_page(html)
    with loading(what):
        experiment = load_first_experiment(what)
        from premed.cli.progress import ProgressPrinter
        from premed.execution import runner
        from premed.reporting import console

    with ProgressPrinter() as show, redirect_prints(as_json):
        result = runner.check(experiment, show, html)
    print_result(result, as_json, console.show_findings)
    tell_written(html)
    if any(each["num_errors"] for each in (result, *result.get("sources", ()))):
        raise typer.Exit(2)


@app.command()
def phantom(
    task: Annotated[str, typer.Argument(help="brats, btcv, chestxray14, images, msd or nnunet")],
    folder: Annotated[Path, typer.Argument(help="an empty or new folder")],
    num: Annotated[int | None, typer.Option(min=1, help="patients or cases [default: the task's]")] = None,
    seed: int = 0,
    size: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="voxels along an edge [default: brats 96, btcv 128, chestxray14, images 64; else about 35 × 50 × 36]",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="of files, for images: png or dicom (X-rays), nifti (CT volumes) [default: png]"),
    ] = None,
) -> None:
    """Write made-up images in a data set's own layout."""
    if task not in PHANTOMS:
        raise UserError(f"{task}: has no phantoms; choose one of {', '.join(PHANTOMS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise UserError(f"{folder} {what}; name a new folder")
    if kind is not None and task != "images":
        raise UserError(f"--kind {kind}: is for the task images, and {task} has one kind of files; leave it out")
    from premed.data.phantoms import abdomen, brain, thorax
    from premed.data.phantoms.writers import write_chestxray14, write_msd, write_nnunet

    ct, mri = size or 128, size or 96
    writers: dict[str, Callable[[], object]] = {
        "brats": lambda: brain.write_brats(folder, num or 20, seed, shape=(mri, mri, mri * 155 // 240)),
        "btcv": lambda: abdomen.write_btcv(folder, num or 30, seed, shape=(ct, ct, max(ct // 2, 48))),
        "chestxray14": lambda: write_chestxray14(folder, num or 100, seed, size=size or 64),
        "images": lambda: thorax.write_images(folder, num or 100, seed, kind or "png", size or 64),
        "msd": lambda: write_msd(folder, num or 100, seed, shape=(size,) * 3 if size else None),
        "nnunet": lambda: write_nnunet(folder, num or 100, seed, shape=(size,) * 3 if size else None),
    }
    with writing(folder, "make room, or name a folder that you may write to"):
        writers[task]()
    print(folder)
