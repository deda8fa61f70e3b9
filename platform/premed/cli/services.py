"""Commands around a run: jobs sent to a cluster, the state of this machine, the MLflow UI, the fields of a YAML."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from premed.cli import browser
from premed.cli.browser import has_desktop
from premed.cli.options import Json, load_experiments, print_result, redirect_prints
from premed.errors import Left, UserError


def submit(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="COMMAND…", help="a command with its arguments; `run` may be left out")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would be sent, and its size")] = False,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="of the cluster's dashboard [default: $RAY_ADDRESS]")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="for the job and its workers; may be repeated")
    ] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(metavar="FILE", help="[default: in a checkout cluster/runtime_env.yaml]")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="print the job's name and return")] = False,
    as_json: Json = False,
) -> None:
    """Run a command as a Ray job; follow its log and end with its exit code.

    From the root of a checkout, the checkout is sent (without what .gitignore and .rayignore name); from anywhere else
    the YAMLs and premed itself, and the cluster must have the packages that premed needs: docs/cluster.md.
    """
    from premed.execution import submit
    from premed.reporting import console

    words = submit.command(words, set(context.parent.command.list_commands(context)))  # type: ignore[union-attr]
    if words[0] == "run":
        load_experiments(
            [word for word in words[1:] if not word.startswith("-")]
        )  # a mistake is refused before anything is sent
    with submit.packed(words, runtime_env, env or ()) as job:
        if dry_run:
            print_result(submit.upload(job), as_json, console.show_upload)
            return
        result = submit.submit(job, address, follow=not no_wait, log=sys.stderr if as_json else sys.stdout)
    print_result(result, as_json, lambda result: print(result["job"]) if no_wait else None)
    if result["exit_code"] == 130:
        raise Left(f"job {result['job']} was stopped; submit the same command again to go on")
    raise typer.Exit(result["exit_code"])


def doctor(as_json: Json = False) -> None:
    """Look for what would stop a run here: versions, memory, GPUs, disks, Ray, MLflow, open ports. Exit code 2 if any.

    It takes a second or two, and up to ten more where something does not answer.
    """
    from premed.execution import doctor
    from premed.reporting import console

    with redirect_prints(as_json):
        result = doctor.examine()
    print_result(result, as_json, console.show_doctor)
    if result["num_errors"]:
        raise typer.Exit(2)


def ui(
    port: Annotated[int, typer.Option(help="on 127.0.0.1")] = 5000,
    browse: Annotated[bool, typer.Option("--open/--no-open", help="open it, where there is a desktop")] = True,
) -> None:
    """Serve the MLflow UI of the store in use; once it answers, print and open the address that compares strategies."""
    from premed.paths import home
    from premed.tracking.client import require_store
    from premed.tracking.run_store import RunStore
    from premed.tracking.saved_views import save_views

    uri, artifacts = require_store()
    is_server = uri.startswith("http")
    if not is_server:
        require_free(port)
        print("starting MLflow: its addresses follow once it answers", file=sys.stderr, flush=True)
    views = save_views(RunStore(uri, artifacts))
    base = uri if is_server else f"http://127.0.0.1:{port}"
    width = max((len(view.task) for view in views), default=0)
    lines = [f"{view.task:{width}}  {base}{view.path}" for view in views]
    address = base + (views[0].path if views else "")
    if is_server:
        print("\n".join([f"the store in use is a server with its own UI: {base}", *lines]))
        return
    opened = address if browse and has_desktop() else ""
    telling = [str(os.getpid()), base, opened, *lines, f"{base}  (Ctrl-C ends it)"]
    subprocess.Popen([sys.executable, "-P", browser.__file__, *telling])  # it waits until the server answers
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--artifacts-destination", str(home() / "artifacts")]
    # or a random.py of the user's, in the folder in which this was started, is imported for Python's own
    os.execve(sys.executable, command, os.environ | {"PYTHONSAFEPATH": "1"})


def require_free(port: int) -> None:
    """Raises UserError if something listens there: what answers would be another server."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"--port {port}: cannot be used ({error.strerror}); name another, as in --port 5001"
            ) from None


def fields(
    path: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="a section, a field or a plug-in: train, finetune.lr, pretext.mae"),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="as docs/fields.md has it")] = False,
    as_json: Json = False,
) -> None:
    """List the fields of a YAML: type, range, default, meaning."""
    from premed.config import fields
    from premed.reporting import console

    if markdown:
        print(fields.page(), end="")
        return
    print_result({"fields": fields.reference(path)}, as_json, lambda result: console.show_fields(result["fields"]))
