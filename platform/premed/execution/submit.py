"""`premed submit`: runs a command as a Ray job.

From the root of a checkout all of it is uploaded, except what .gitignore and .rayignore name, and the job runs that
code, as with `ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- python -m premed …`. From
elsewhere the YAMLs that the command names are uploaded (with their bases), and the premed in use as a module: the
cluster runs the same code, and needs premed's dependencies but no premed. Data are never uploaded.
"""

import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO
from zipfile import ZipFile

import yaml

import premed
from premed.config.safe_yaml import parse_yaml
from premed.errors import Left, StageFailed, UserError
from premed.execution.runtime_env import read_runtime_env
from premed.safety.files import MOST_YAML, read_text
from premed.tracking.provenance import commit

PACKAGE = Path(premed.__file__).parent
CHECKOUT = PACKAGE.parent.parent  # of a premed that runs from one
NOT_A_JOB = {"submit", "ui"}
LIMIT = 100 * 2**20  # bytes, the most that a cluster's dashboard takes in one request
POLL = 0.5  # seconds between two checks of a job whose log has ended


@dataclass(frozen=True)
class RayJob:
    """A Ray job: the command's arguments, and a runtime environment whose folders are on this machine."""

    words: list[str]
    runtime_env: dict[str, Any]

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "premed", *self.words])


def command(words: Sequence[str], known: Collection[str]) -> list[str]:
    """`words` with the name of their command first. Raises UserError for one that cannot be a job."""
    first = words[0]
    if first in NOT_A_JOB:
        raise UserError(f"submit: {first} cannot be a job; run it on this machine")
    if first in known:
        return list(words)
    if first.startswith("-") or not (is_yaml(first) or "=" in first):
        raise UserError(f"submit: {first} is not a command; name one of {', '.join(sorted(set(known) - NOT_A_JOB))}")
    return ["run", *words]


def is_yaml(word: str) -> bool:
    return "=" not in word and word.endswith((".yaml", ".yml"))


# ---- what is uploaded


@contextmanager
def packed(words: Sequence[str], runtime_env: Path | None, env: Sequence[str]) -> Iterator[RayJob]:
    """Yields a command's job; its files exist while the context lasts.

    runtime_env: a YAML file as Ray's; None: in a checkout cluster/runtime_env.yaml, else none. env: NAME=VALUE,
    overriding that file. Raises UserError if a file cannot be read or is wrong, or one that
    the command names is not uploaded.
    """
    here = Path.cwd()
    from_checkout = here == CHECKOUT and PACKAGE == CHECKOUT / "platform" / "premed"
    if runtime_env is None and from_checkout:
        runtime_env = CHECKOUT / "cluster" / "runtime_env.yaml"
    settings = read_runtime_env(runtime_env) if runtime_env else {}
    settings["env_vars"] = {**(settings.get("env_vars") or {}), **variables(env)}
    if git_commit := commit():
        settings["env_vars"].setdefault("PREMED_COMMIT", git_commit)  # .git is not uploaded
    if from_checkout:
        job = RayJob(below(CHECKOUT, words), settings | {"working_dir": str(CHECKOUT)})
        refuse_left_out(job, yamls(words), CHECKOUT)
        yield job
        return
    with TemporaryDirectory() as folder:
        files = yamls(words)
        root = here
        if not all(file.is_relative_to(here) for file in files):
            root = Path(os.path.commonpath([file.parent for file in files]))
        for file in files:
            to = Path(folder) / file.relative_to(root)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
        modules = [*(settings.get("py_modules") or ()), str(PACKAGE)]
        excludes = [*(settings.get("excludes") or ()), "__pycache__"]
        job = RayJob(
            below(root, words), settings | {"working_dir": folder, "py_modules": modules, "excludes": excludes}
        )
        refuse_left_out(job, files, root)
        yield job


def below(root: Path, words: Sequence[str]) -> list[str]:
    """The words with their YAMLs as paths below `root`, the job's folder: this machine's may not be the cluster's."""
    return [os.path.relpath(word, root) if is_yaml(word) else word for word in words]


def refuse_left_out(job: RayJob, files: Sequence[Path], root: Path) -> None:
    """Raises UserError for a file below `root`, of those that the command names, that the upload would not hold.

    Ray leaves out what .gitignore, .rayignore and `excludes` name, and folders called venv, .venv, .git, __pycache__.
    """
    uploaded = {file["name"] for file in upload(job)["files"]}
    for file in files:
        if os.path.relpath(file, root) not in uploaded:
            why = "it is ignored, or in a folder that Ray leaves out, such as venv"
            why = why if file.is_relative_to(root) else f"it is outside of {root.name}/"
            raise UserError(f"{file}: would not be uploaded ({why}); move it")


def variables(env: Sequence[str]) -> dict[str, str]:
    """Environment variables, from `NAME=VALUE`. Raises UserError for anything else."""
    for item in env:
        if not item.partition("=")[0] or "=" not in item:
            raise UserError(f"--env {item}: is not NAME=VALUE")
    return dict(item.split("=", 1) for item in env)


def yamls(words: Sequence[str]) -> list[Path]:
    """The absolute paths of the YAMLs that the words name, and of their bases (a sweep has several, with bases too)."""
    files: list[Path] = []
    left = [Path(os.path.abspath(word)) for word in words if is_yaml(word)]
    while left:
        file = left.pop(0)
        if file in files:
            continue
        files.append(file)
        with suppress(yaml.YAMLError, AttributeError, TypeError):  # the job reports what is wrong in it
            try:
                bases = parse_yaml(read_text(file, MOST_YAML)).get("base") or []
            except OSError as error:
                raise UserError(f"{file}: cannot be read ({error.strerror}); check the path") from None
            bases = [bases] if isinstance(bases, str) else bases
            left += [Path(os.path.abspath(file.parent / base)) for base in bases]
    return files


def upload(job: RayJob) -> dict[str, Any]:
    """What a submission sends: `entrypoint`, `env_vars`, `files` (name, bytes), `megabytes` as packed.

    Ray's own client packs them, without sending them. Raises UserError if that is more than a cluster takes.
    """
    with ray_warnings_off():
        client = recording_client()
        client.submit_job(entrypoint=job.entrypoint, runtime_env=job.runtime_env)
    files: list[dict[str, Any]] = []
    for package in client.packages:
        with ZipFile(BytesIO(package)) as archive:
            files += [{"name": each.filename, "bytes": each.file_size} for each in archive.infolist()]
    files.sort(key=lambda file: file["name"])
    for package in client.packages:
        if len(package) > LIMIT:
            largest = sorted(files, key=lambda file: -file["bytes"])[:3]
            names = ", ".join(f"{file['name']} ({file['bytes'] / 1e6:.0f} MB)" for file in largest)
            raise UserError(
                f"the upload is {len(package) / 1e6:.0f} MB and a cluster takes {LIMIT / 1e6:.0f}; name in .rayignore "
                f"what the job does not need (the largest: {names})"
            )
    megabytes = sum(map(len, client.packages)) / 1e6
    return {
        "entrypoint": job.entrypoint,
        "env_vars": job.runtime_env.get("env_vars", {}),
        "files": files,
        "megabytes": megabytes,
    }


def recording_client() -> Any:
    """A Ray client that sends nothing: it keeps the packages, and answers requests as a cluster that has none yet."""
    from ray.job_submission import JobSubmissionClient
    from requests import Response

    class RecordingClient(JobSubmissionClient):
        def __init__(self) -> None:
            self._default_metadata: dict[str, Any] = {}
            self.packages: list[bytes] = []

        def _do_request(self, method: str, endpoint: str, *, data: bytes | None = None, **more: Any) -> Response:
            response = Response()
            response.status_code = 404 if method == "GET" else 200
            response._content = json.dumps({"job_id": "", "submission_id": ""}).encode()
            if data is not None:
                self.packages.append(data)
            return response

    return RecordingClient()


@contextmanager
def ray_warnings_off() -> Iterator[None]:
    """Silences what Ray logs while it packs and sends; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


# ---- the cluster


def submit(job: RayJob, address: str | None, follow: bool, log: TextIO) -> dict[str, Any]:
    """Sends the job to the cluster at `address` (else RAY_ADDRESS); with `follow`, copies its log until it ends.

    Returns the job's name, status and exit code (0 without `follow`). Raises UserError if no cluster is named, or it
    does not answer, or refuses; StageFailed if the job never started; Left if the user detaches or it is out of reach.
    """
    upload(job)
    with ray_warnings_off():
        with job_client(address) as client:
            name = client.submit_job(entrypoint=job.entrypoint, runtime_env=job.runtime_env)
            print(f"job {name} was submitted; ray job stop {name} stops it", file=sys.stderr)
            if not follow:
                return {"job": name, "status": client.get_job_status(name).value, "exit_code": 0}
        try:
            return follow_log(client, name, log)
        except KeyboardInterrupt:
            raise Left(
                f"the job keeps running; ray job logs --follow {name} shows its log, ray job stop {name} ends it"
            ) from None
        except (OSError, RuntimeError) as error:
            raise Left(
                f"lost contact with the job ({brief(error)}); ray job logs --follow {name} shows its log"
            ) from None


@contextmanager
def job_client(address: str | None) -> Iterator[Any]:
    """Yields a client of the named cluster, never of another that happens to run on this machine.

    Raises the client's errors as UserError.
    """
    from ray.exceptions import AuthenticationError, RayError
    from ray.job_submission import JobSubmissionClient

    variable = "RAY_API_SERVER_ADDRESS"  # Ray's client prefers it to an argument
    address = address or os.environ.get(variable) or os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        raise UserError("no cluster is named: set RAY_ADDRESS, or --address http://HEAD:8265")
    before = {name: value for name, value in os.environ.items() if name == variable}
    os.environ[variable] = address
    try:
        yield JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(
            f"{address} refuses: {brief(error)}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to its token's file"
        ) from None
    except (ConnectionError, TimeoutError, RayError) as error:
        raise UserError(f"{address} does not answer: start that cluster, or name another ({brief(error)})") from None
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{address} does not accept the job: is it http://HEAD:8265? ({brief(error)})") from None
    finally:
        del os.environ[variable]
        os.environ |= before


def follow_log(client: Any, name: str, log: TextIO) -> dict[str, Any]:
    """Copies the job's log as it grows; returns the job's name, status and exit code once it has ended."""
    import asyncio

    async def tail() -> None:
        async for lines in client.tail_job_logs(name):
            print(lines, end="", file=log, flush=True)

    asyncio.run(tail())
    while not (info := client.get_job_info(name)).status.is_terminal():
        time.sleep(POLL)
    ended = {"job": name, "status": info.status.value}
    if info.driver_exit_code is not None:  # -9 is a shell's 137
        return ended | {
            "exit_code": info.driver_exit_code if info.driver_exit_code >= 0 else 128 - info.driver_exit_code
        }
    if info.status == "STOPPED":
        return ended | {"exit_code": 130}
    raise StageFailed(f"job {name} did not start: {brief(info.message)}")


def brief(error: object) -> str:
    """The first line of a message, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
