"""`premed init`: the first step, from a folder of images to a YAML."""

from pathlib import Path
from typing import Annotated

import typer

from premed.cli.options import Json, loading, print_result, redirect_prints
from premed.planning.output import settle


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="of images: any layout that is read, or one like it")
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="[default: FOLDER's name.yaml, here]")] = None,
    as_json: Json = False,
) -> None:
    """Look at a folder of images and write the YAML that compares strategies on it, for this machine.

    It reads headers and a sample of the images, says what it found, and gives a reason for every number.
    """
    settle(folder, out)
    with loading():
        from premed.cli.progress import ProgressPrinter
        from premed.events import FilesRead
        from premed.planning import init
        from premed.reporting import console

    with ProgressPrinter() as show, redirect_prints(as_json):
        result = init.run(folder, out, lambda done, total: show(FilesRead(done, total)))
    print_result(result, as_json, console.show_plan)
