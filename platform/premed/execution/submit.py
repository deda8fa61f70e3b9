"""Submit: a command as a Ray job.

From the root of a checkout all of it travels, less what .gitignore and .rayignore name, and the job runs that code, as
with `ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- python -m premed …`. From anywhere else
the YAMLs that the command names travel (with their bases), and beside them the premed in use, as a module: the cluster
runs the same code, and needs what premed needs but no premed. Data never travel.
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
from premed.config.loader import read
from premed.errors import Left, StageFailed, UserError
from premed.tracking.provenance import commit

PACKAGE = Path(premed.__file__).parent
CHECKOUT = PACKAGE.parent.parent  # of a premed that runs from one
NOT_A_JOB = {"submit", "ui"}
LIMIT = 100 * 2**20  # bytes of one request that a cluster's dashboard takes
LOOK = 0.5  # seconds between two looks at a job whose log has ended


@dataclass(frozen=True)
class Job:
    """What is sent: the words of the command there, and Ray's runtime environment with folders of this machine."""

    words: list[str]
    runtime_env: dict[str, Any]

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "premed", *self.words])


def command(words: Sequence[str], known: Collection[str]) -> list[str]:
    """`words` with the command that they mean first; UserError where that makes no job."""
    first = words[0]
    if first in NOT_A_JOB:
        raise UserError(f"submit: {first} makes no job; it runs here")
    if first in known:
        return list(words)
    if first.startswith("-") or not (is_yaml(first) or "=" in first):
        raise UserError(f"submit: {first} is no command; name one of {', '.join(sorted(set(known) - NOT_A_JOB))}")
    return ["run", *words]


def is_yaml(word: str) -> bool:
    return "=" not in word and word.endswith((".yaml", ".yml"))


# ---- what travels


@contextmanager
def packed(words: Sequence[str], runtime_env: Path | None, env: Sequence[str]) -> Iterator[Job]:
    """The job of a command of premed's, for as long as its files lie ready.

    runtime_env: a file as Ray's; None is a checkout's own, or nothing. env: NAME=VALUE, over what the file says.
    UserError where a file cannot be read, or one that the command names would stay behind.
    """
    here = Path.cwd()
    from_checkout = here == CHECKOUT and PACKAGE == CHECKOUT / "platform" / "premed"
    if runtime_env is None and from_checkout:
        runtime_env = CHECKOUT / "cluster" / "runtime_env.yaml"
    settings = read(runtime_env) if runtime_env else {}
    settings["env_vars"] = {**(settings.get("env_vars") or {}), **variables(env)}
    if found := commit():
        settings["env_vars"].setdefault("PREMED_COMMIT", found)  # the history stays here
    if from_checkout:
        job = Job(list(words), settings | {"working_dir": str(CHECKOUT)})
        gone = {file["name"] for file in upload(job)["files"]}
        for file in named(words):
            if os.path.relpath(file, CHECKOUT) not in gone:
                raise UserError(f"{file}: does not travel (outside of {CHECKOUT.name}/, or ignored); put it elsewhere")
        yield job
        return
    with TemporaryDirectory() as folder:
        files = named(words)
        root = here
        if not all(file.is_relative_to(here) for file in files):
            root = Path(os.path.commonpath([file.parent for file in files]))
        for file in files:
            to = Path(folder) / file.relative_to(root)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
        moved = [str(Path(os.path.abspath(word)).relative_to(root)) if is_yaml(word) else word for word in words]
        modules = [*(settings.get("py_modules") or ()), str(PACKAGE)]
        excludes = [*(settings.get("excludes") or ()), "__pycache__"]
        yield Job(moved, settings | {"working_dir": folder, "py_modules": modules, "excludes": excludes})


def variables(env: Sequence[str]) -> dict[str, str]:
    for item in env:
        if not item.partition("=")[0] or "=" not in item:
            raise UserError(f"--env {item}: is not NAME=VALUE")
    return dict(item.split("=", 1) for item in env)


def named(words: Sequence[str]) -> list[Path]:
    """The YAMLs that the words name and their bases (a sweep's are several, with bases of their own), absolute."""
    found: list[Path] = []
    left = [Path(os.path.abspath(word)) for word in words if is_yaml(word)]
    while left:
        file = left.pop(0)
        if file in found:
            continue
        found.append(file)
        with suppress(yaml.YAMLError, AttributeError, TypeError):  # whoever reads it there says what is wrong
            try:
                bases = yaml.safe_load(file.read_text(encoding="utf-8")).get("base") or []
            except OSError as error:
                raise UserError(f"{file}: cannot be read ({error.strerror}); check the path") from None
            bases = [bases] if isinstance(bases, str) else bases
            left += [Path(os.path.abspath(file.parent / base)) for base in bases]
    return found


def upload(job: Job) -> dict[str, Any]:
    """What a submission sends: `entrypoint`, `env_vars`, `files` (name, bytes), `megabytes` as packed.

    It is Ray's own client that packs them; only its wire is cut. UserError where that is more than a cluster takes.
    """
    with unheard():
        wire = cut_wire()
        wire.submit_job(entrypoint=job.entrypoint, runtime_env=job.runtime_env)
    files: list[dict[str, Any]] = []
    for package in wire.packages:
        with ZipFile(BytesIO(package)) as archive:
            files += [{"name": each.filename, "bytes": each.file_size} for each in archive.infolist()]
    files.sort(key=lambda file: file["name"])
    for package in wire.packages:
        if len(package) > LIMIT:
            most = sorted(files, key=lambda file: -file["bytes"])[:3]
            told = ", ".join(f"{file['name']} ({file['bytes'] / 1e6:.0f} MB)" for file in most)
            raise UserError(
                f"the upload is {len(package) / 1e6:.0f} MB and a cluster takes {LIMIT / 1e6:.0f}; name in .rayignore "
                f"what the job does not need (the largest: {told})"
            )
    megabytes = sum(map(len, wire.packages)) / 1e6
    return {
        "entrypoint": job.entrypoint,
        "env_vars": job.runtime_env.get("env_vars", {}),
        "files": files,
        "megabytes": megabytes,
    }


def cut_wire() -> Any:
    """Ray's client, to which every request is answered here: no package is there yet, all is well. It keeps them."""
    from ray.job_submission import JobSubmissionClient
    from requests import Response

    class CutWire(JobSubmissionClient):
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

    return CutWire()


@contextmanager
def unheard() -> Iterator[None]:
    """Ray tells much of its packing that is told better here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


# ---- the cluster


def submit(job: Job, address: str | None, follow: bool, log: TextIO) -> dict[str, Any]:
    """Sends the job to the cluster at `address` (else RAY_ADDRESS); with `follow`, its log until it ends.

    The job's name, status and exit code (0 where it is not waited for). UserError where no cluster is named, or it does
    not answer, or refuses; StageFailed where the job never started; Left where the user leaves.
    """
    upload(job)
    with unheard():
        with spoken(address) as client:
            name = client.submit_job(entrypoint=job.entrypoint, runtime_env=job.runtime_env)
            print(f"job {name} is sent; ray job stop {name} ends it", file=sys.stderr)
            if not follow:
                return {"job": name, "status": client.get_job_status(name).value, "exit_code": 0}
        try:
            return followed(client, name, log)
        except KeyboardInterrupt:
            raise Left(f"the job goes on; ray job logs --follow {name} shows it, ray job stop {name} ends it") from None
        except (OSError, RuntimeError) as error:
            raise Left(f"lost sight of the job ({first(error)}); ray job logs --follow {name} shows it") from None


@contextmanager
def spoken(address: str | None) -> Iterator[Any]:
    """A client of the cluster that was named, and of no other that happens to be on this machine.

    What goes wrong with it is a UserError.
    """
    from ray.exceptions import AuthenticationError, RayError
    from ray.job_submission import JobSubmissionClient

    asked_first = "RAY_API_SERVER_ADDRESS"  # an address that is given to Ray's client counts less
    address = address or os.environ.get(asked_first) or os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        raise UserError("no cluster is named: set RAY_ADDRESS, or --address http://HEAD:8265")
    before = {name: value for name, value in os.environ.items() if name == asked_first}
    os.environ[asked_first] = address
    try:
        yield JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(
            f"{address} refuses: {first(error)}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to its token's file"
        ) from None
    except (ConnectionError, TimeoutError, RayError) as error:
        raise UserError(f"{address} does not answer: start that cluster, or name another ({first(error)})") from None
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{address} takes no job: is it http://HEAD:8265? ({first(error)})") from None
    finally:
        del os.environ[asked_first]
        os.environ |= before


def followed(client: Any, name: str, log: TextIO) -> dict[str, Any]:
    """Copies the job's log as it grows; the job's name, status and exit code once it has ended."""
    import asyncio

    async def tail() -> None:
        async for lines in client.tail_job_logs(name):
            print(lines, end="", file=log, flush=True)

    asyncio.run(tail())
    while not (info := client.get_job_info(name)).status.is_terminal():
        time.sleep(LOOK)
    told = {"job": name, "status": info.status.value}
    if info.driver_exit_code is not None:  # -9 is a shell's 137
        return told | {
            "exit_code": info.driver_exit_code if info.driver_exit_code >= 0 else 128 - info.driver_exit_code
        }
    if info.status == "STOPPED":
        return told | {"exit_code": 130}
    raise StageFailed(f"job {name} did not start: {first(info.message)}")


def first(error: object) -> str:
    """Its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
