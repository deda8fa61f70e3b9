"""`premed doctor`: versions, this machine, where state lies, whether Ray and MLflow answer, and who else may use them.

Every question has a limit of ten seconds, and all are asked side by side. Nothing is started or changed, and neither
torch nor Ray nor MLflow is imported. An error is what would stop a run, or lets strangers run code here.
"""

import os
import urllib.parse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from premed.errors import Finding, UserError
from premed.execution import connection, endpoints, machine
from premed.execution.connection import (
    TOKEN_REMEDY,
    cluster_address,
    knock,
    ray_token,
    refuse_missing_token,
    refuse_no_loopback,
    refuse_unfit_folder,
    sent_token,
)
from premed.execution.endpoints import (
    CLIENT,
    DASHBOARD,
    HEAD,
    MLFLOW,
    Answer,
    ask_client,
    ask_dashboard,
    ask_database,
    ask_file,
    ask_head,
    ask_mlflow,
    is_loopback,
    late,
    listening,
    reachable,
    within,
)
from premed.paths import expand_path, home, sqlite_file, storage
from premed.tracking.client import POSTGRES, certificates, credentials, locate_store, masked, resolve_uri, with_driver
from premed.tracking.provenance import commit

PORTS = {8265: DASHBOARD, 6379: HEAD, 10001: CLIENT, 5000: MLFLOW}
"""What listens where by default."""
ASK = {DASHBOARD: ask_dashboard, HEAD: ask_head, CLIENT: ask_client, MLFLOW: ask_mlflow}
SHUT = {
    DASHBOARD: "start Ray with RAY_AUTH_MODE=token (`ray get-auth-token --generate`) and --dashboard-host=127.0.0.1",
    HEAD: "start Ray with RAY_AUTH_MODE=token (`ray get-auth-token --generate`)",
    CLIENT: "start Ray with RAY_AUTH_MODE=token (`ray get-auth-token --generate`)",
    MLFLOW: "start it with --app-name basic-auth, or with --host 127.0.0.1",
}
"""What keeps strangers out."""

SIGNERS = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
"""By what MLflow identifies itself in ways of its own."""


def examine() -> dict[str, Any]:
    """All that it finds, as `--json` prints it; `findings` are errors and notes, each with a remedy."""
    versions = machine.versions()
    findings = [
        Finding("error", name, f"is not installed; pip install {name}")
        for name, number in versions.items()
        if number == "absent" and name != "premed"
    ]
    questions: dict[Any, Callable[[], Any]] = {}
    services, wrong = named_services(questions)
    findings += wrong
    ports = PORTS | {port: kind for service in services for port, kind in service.pop("ports").items()}
    found = listening(ports)
    for address, port in found:
        questions[address, port] = partial(ask_port, ports[port], f"{reachable(address)}:{port}")
    answers = within(questions | {"gpus": machine.gpus})
    gpus, more = machine.or_silent(answers.get("gpus"))
    hardware, few = machine.hardware()
    findings += [*few, *more]
    for service in services:
        if service["name"] in questions:
            findings += judge_service(service, answers.get(service["name"], late()), versions)
    ears = []
    for address, port in found:
        ear, wrong = judge_port(address, port, ports[port], answers.get((address, port), late()))
        ears.append(ear)
        findings += wrong
    folders, wrong = state()
    findings += wrong
    errors = sum(finding.severity == "error" for finding in findings)
    return {
        "versions": versions | ({"commit": revision} if (revision := commit()) else {}),
        "machine": hardware | {"gpus": gpus},
        "folders": folders,
        "services": services,
        "listening": ears,
        "findings": [finding._asdict() for finding in findings],
        "num_errors": errors,
        "num_notes": len(findings) - errors,
    }


def ask_port(kind: str, where: str) -> Answer:
    """What listens at HOST:PORT of this machine, if it is of that kind. Any user's program may: it gets no secret."""
    return ASK[kind](f"http://{where}", own_machine=True) if kind in (DASHBOARD, MLFLOW) else ASK[kind](where)


# ---- the Ray and the MLflow that this environment names


def named_services(questions: dict[Any, Callable[[], Answer]]) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Ray and MLflow, each with name, address, and ports of this kind; adds what is to be asked to `questions`."""
    found, findings = [], []
    for name, describe in (("RAY_ADDRESS", ray), ("MLFLOW_TRACKING_URI", mlflow)):
        try:
            address, ports, question = describe()
        except UserError as error:
            findings.append(finding(name, error))
            continue
        except ValueError as error:  # of urllib: a port that is no number, say
            findings.append(Finding("error", name, f"{masked(os.environ[name])} is no address ({error}); correct it"))
            continue
        found.append({"name": name, "address": masked(address), "ports": ports})
        if question:
            questions[name] = question
    for check in (refuse_missing_token, refuse_no_loopback):
        try:
            check()
        except UserError as error:
            findings.append(finding("Ray", error))
    return found, findings


def ray() -> tuple[str, dict[int, str], Callable[[], Answer] | None]:
    """The address of Ray, its port on whichever machine, and how to ask it. Raises UserError for what is none."""
    given = os.environ.get("RAY_ADDRESS", "").strip()
    if given.startswith(("http://", "https://")):  # `premed submit` goes there
        port = urllib.parse.urlsplit(given).port or 80
        return given, {port: DASHBOARD}, lambda: ask_dashboard(given.rstrip("/"), sent_token())
    address = cluster_address()
    if address == "local":
        return "starts on this machine", {}, None
    if address == "auto":
        return address, {}, None
    where, kind = address.removeprefix("ray://"), CLIENT if address.startswith("ray://") else HEAD

    def question() -> Answer:
        try:
            knock(address)
        except UserError as error:
            return Answer("", problem=finding("RAY_ADDRESS", error).what)
        return ASK[kind](where, sent_token())

    return address, {int(where.rpartition(":")[2]): kind}, question


def mlflow() -> tuple[str, dict[int, str], Callable[[], Answer] | None]:
    """The same of MLflow: a server, or a database that is opened without MLflow."""
    uri, _ = locate_store()
    scheme = uri.partition(":")[0]
    if scheme in ("http", "https"):
        certificates()
        port = urllib.parse.urlsplit(uri).port or (443 if scheme == "https" else 80)
        return uri, {port: MLFLOW}, lambda: ask_mlflow(uri.rstrip("/"), credentials(uri))
    if scheme == "sqlite":
        if (named := sqlite_file(uri)) is None:
            raise UserError(f"MLFLOW_TRACKING_URI={uri} names no file: write sqlite:///path/to/mlflow.db")
        file = expand_path(named, "MLFLOW_TRACKING_URI").absolute()
        return uri, {}, partial(ask_file, file) if os.path.exists(file) else None  # the first run makes it
    if scheme.partition("+")[0] in POSTGRES:
        return uri, {}, partial(ask_database, with_driver(uri, "MLFLOW_TRACKING_URI="))
    return resolve_uri(uri)[0], {}, None


def judge_service(service: dict[str, Any], answer: Answer, versions: dict[str, str]) -> list[Finding]:
    """Completes a named service by its answer; what is wrong with it."""
    name, findings = service["name"], []
    where = f"{name}={service['address']}"
    service |= {"answers": not answer.problem, "version": answer.version, "asks_for_secret": no(answer.is_open)}
    if answer.problem:
        remedy = (
            "" if ";" in answer.problem or "unset" in answer.problem else "; start it, correct or unset the variable"
        )
        return [Finding("error", where, f"{answer.problem}{remedy}")]
    if answer.is_open is False and not answer.is_accepted:
        given = "and refuses the one that is set" if answer.is_accepted is False else "and none is set"
        if name == "RAY_ADDRESS":
            if answer.is_accepted is None and ray_token():
                given = "and Ray sends none without RAY_AUTH_MODE=token"
            findings.append(Finding("error", where, f"requires a token {given}; {TOKEN_REMEDY}"))
        elif signer := next((name for name in SIGNERS if os.environ.get(name)), None):
            findings.append(Finding("note", where, f"requires a password; whether {signer} has it was not asked"))
        else:
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            findings.append(Finding("error", where, f"requires a password {given}; {remedy}"))
    ours = versions["ray" if name == "RAY_ADDRESS" else "mlflow"]
    if name == "RAY_ADDRESS" and answer.version and answer.version != ours:
        what = f"runs Ray {answer.version} and this premed has {ours}; install the same on both"
        findings.append(Finding("error", where, what))
    if name != "RAY_ADDRESS" and major(answer.version) < major(ours) and answer.version:
        what = f"runs MLflow {answer.version}, which may lack what {ours} asks of it; update the server"
        findings.append(Finding("note", where, what))
    return findings


def major(number: str) -> int:
    """The first number of a version; 0 if there is none."""
    first = number.partition(".")[0]
    return int(first) if first.isdecimal() else 0


def finding(name: str, error: UserError) -> Finding:
    """A UserError that begins with a variable, which need not end in a colon."""
    where, sep, what = str(error).partition(": ")
    if not sep or " " in where:
        where, _, what = str(error).partition(" ")
    return Finding(
        "error", where if where.startswith(("RAY", "MLFLOW", "PREMED", "TMPDIR", "/", "127")) else name, what
    )


# ---- who listens on this machine


def judge_port(address: str, port: int, kind: str, answer: Answer) -> tuple[dict[str, Any], list[Finding]]:
    """A port of this machine, and what is wrong with it: whoever reaches a Ray can run code on it."""
    ear = {
        "address": address,
        "port": port,
        "kind": answer.kind or endpoints.UNKNOWN,
        "version": answer.version,
        "asks_for_secret": no(answer.is_open),
    }
    where = f"port {port} on {address}"
    if answer == late() and not is_loopback(address):
        what = f"{answer.problem}, so that whether it is open to strangers is not known; run premed doctor again"
        return ear, [Finding("note", where, what)]
    if not answer.is_open or is_loopback(address):
        return ear, []
    if kind == MLFLOW:
        what = f"{kind} asks for no password: whoever reaches it can change and delete runs; {SHUT[kind]}"
        return ear, [Finding("note", where, what)]
    what = f"{kind} asks for no token: whoever reaches it can run code here; {SHUT[kind]}"
    return ear, [Finding("error", where, what)]


def no(value: bool | None) -> bool | None:
    return None if value is None else not value


# ---- where state lies


def state() -> tuple[list[dict[str, Any]], list[Finding]]:
    """The folders of premed and Ray, with the room on their disks."""
    found, findings, failed = [], [], []
    variable, temporary = connection.temporary_folder()
    places: dict[str, Callable[[], Path]] = {
        "PREMED_HOME": home,
        "train.storage": lambda: Path(storage(None)),
        variable: lambda: Path(temporary) / "ray",
    }
    for name, place in places.items():
        try:
            facts, wrong = machine.look_at(name, place())
            if name == variable:
                refuse_unfit_folder()
        except UserError as error:
            findings.append(finding(name, error))
            continue
        found.append(facts)
        if not any(Path(facts["path"]).is_relative_to(path) for path in failed):  # it is said of the folder above
            findings += wrong
        failed += [facts["path"]] if wrong else []
    data = os.environ.get("PREMED_DATA")
    if data and not os.path.isdir(data):
        findings.append(Finding("error", "PREMED_DATA", f"{data} is no folder; mount it, or correct the variable"))
    return found, findings
