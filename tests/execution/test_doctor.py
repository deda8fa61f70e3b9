"""doctor.py and machine.py: what is wrong here is found, each with a remedy, by real ports, folders and disks."""

import base64
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys

import psutil
import pytest
from support.commands import STRANGER, in_namespace
from support.servers import FLOW, METHODS, RAY, grpc_server, http_server, silent_server
from support.stores import free_port

from premed.execution import doctor, endpoints, machine

VARIABLES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR")
VARIABLES += ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PREMED_DATA", "NETRC")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A machine on which nothing listens that the doctor asks by default, and a home of its own."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(doctor, "PORTS", {})


def findings():
    return [tuple(each.values()) for each in doctor.examine()["findings"]]


def found_of(where):
    """The one finding whose place begins so."""
    (only,) = [(severity, what) for severity, place, what in findings() if place.startswith(where)]
    return only


def test_a_machine_in_order_has_no_errors_and_nothing_is_left_on_it(tmp_path):
    report = doctor.examine()
    assert report["num_errors"] == 0, report["findings"]
    assert {"python", "premed", "torch", "ray", "mlflow", "optuna"} <= report["versions"].keys()
    assert report["versions"]["python"] == sys.version.split()[0]
    assert 0 < report["machine"]["cpus"] <= os.cpu_count()
    assert 0 < report["machine"]["memory_free_gb"] < report["machine"]["memory_gb"]
    home = report["folders"][0]
    assert home["name"] == "PREMED_HOME" and not home["exists"]
    assert home["total_gb"] == pytest.approx(shutil.disk_usage(tmp_path).total / 1e9)
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_answers_has_its_version_and_one_of_another_is_an_error(monkeypatch):
    ours = machine.versions()["ray"]
    reply = lambda number: b"\n\x00\x12" + bytes([len(number)]) + number.encode() + b"\x1a\x01\x01"  # noqa: E731
    with grpc_server({endpoints.CHECK_ALIVE[0]: reply(ours)}) as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        report = doctor.examine()
        assert report["services"][0]["answers"] and report["services"][0]["version"] == ours
        assert report["services"][0]["asks_for_secret"] is False and report["num_errors"] == 0
        (ear,) = report["listening"]
        assert (ear["port"], ear["kind"], ear["address"]) == (port, "Ray's head", "127.0.0.1")
    with grpc_server({endpoints.CHECK_ALIVE[0]: reply("2.9.3")}) as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert found_of("RAY_ADDRESS")[1] == f"runs Ray 2.9.3 and this premed has {ours}; install the same on both"


def test_a_token_that_is_missing_or_wrong_is_an_error(monkeypatch):
    with http_server(RAY, secret="Bearer abc") as port:
        monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{port}")
        assert found_of("RAY_ADDRESS")[1].startswith("requires a token and none is set; set RAY_AUTH_MODE=token")
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        assert found_of("RAY_ADDRESS")[1].startswith("requires a token and refuses the one that is set; ")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
        assert findings() == []
    with http_server(FLOW, secret="Basic xyz") as port:
        monkeypatch.delenv("RAY_ADDRESS")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        assert found_of("MLFLOW")[1].startswith("requires a password and none is set; set MLFLOW_TRACKING_USERNAME")
        monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes")  # by a plug-in of MLflow's: premed cannot ask with it
        assert found_of("MLFLOW") == ("note", "requires a password; whether MLFLOW_TRACKING_AUTH has it was not asked")


@pytest.mark.parametrize("kind", ["dashboard", "head", "client"])
@pytest.mark.parametrize("mode", [None, "", "disabled"])
def test_a_token_that_ray_does_not_send_is_not_sent_by_the_doctor(kind, mode, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    received = list[str]()
    serve = grpc_server(METHODS, "abc", received=received)
    if kind == "dashboard":
        serve = http_server(RAY, "Bearer abc", received=received)
    with serve as port:
        scheme = {"dashboard": "http://", "head": "", "client": "ray://"}[kind]
        monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{port}")
        what = "requires a token and Ray sends none without RAY_AUTH_MODE=token; set RAY_AUTH_MODE=token, and RAY"
        assert found_of("RAY_ADDRESS")[1].startswith(what)
    assert set(received) == {""}


@pytest.mark.parametrize("kind", ["dashboard", "head", "client", "mlflow"])
def test_a_program_that_happens_to_listen_on_a_port_gets_no_secret(kind, monkeypatch, tmp_path):
    secrets = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "abc", "NETRC": str(tmp_path / "netrc")}
    secrets |= {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "word"}
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password word")
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    received = list[str]()
    serve = grpc_server(METHODS, "another", received=received)
    if kind in ("dashboard", "mlflow"):
        serve = http_server(RAY if kind == "dashboard" else FLOW, "Bearer another", received=received)
    with serve as port:
        names = {"dashboard": endpoints.DASHBOARD, "head": endpoints.HEAD, "client": endpoints.CLIENT}
        monkeypatch.setattr(doctor, "PORTS", {port: names.get(kind, endpoints.MLFLOW)})
        (ear,) = doctor.examine()["listening"]
    assert ear["asks_for_secret"] and set(received) == {""}


def test_a_password_is_sought_where_mlflow_s_client_finds_it(monkeypatch, tmp_path):
    (tmp_path / ".mlflow").mkdir()
    login = "mlflow_tracking_username = me\nmlflow_tracking_password = word\n"
    (tmp_path / ".mlflow" / "credentials").write_text(f"[mlflow]\n{login}")
    pages = FLOW | {"401": (401, "<html>a proxy's own words</html>")}
    with http_server(pages, secret=f"Basic {base64.b64encode(b'me:word').decode()}") as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        report = doctor.examine()
    assert report["num_errors"] == 0, report["findings"]
    assert report["services"][1]["asks_for_secret"] and report["services"][1]["version"] == "3.17.2"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("RAY_ADDRESS", "127.0.0.1:{free}", "does not answer (Connection refused): start that cluster or unset"),
        ("RAY_ADDRESS", "http://127.0.0.1:{free}", "Connection refused; start it, correct or unset the variable"),
        ("RAY_ADDRESS", "127.0.0.1:{silent}", "no answer in 0.5 s; start it, correct or unset the variable"),
        ("RAY_ADDRESS", "http://headnode:abc", "is no address (Port could not be cast"),
        ("MLFLOW_TRACKING_URI", "http://me:word@headnode:70000", "is no address (Port out of range"),
        ("RAY_ADDRESS", "headnode", "is no address of a cluster: write HOST:PORT"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:{free}", "Connection refused; start it"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:{silent}", "no answer in 0.5 s; start it"),
        ("MLFLOW_TRACKING_URI", "http://no-such-host.invalid", "; start it, correct or unset the variable"),
        ("MLFLOW_TRACKING_URI", "postgresql://me:word@127.0.0.1:{free}/runs", "cannot be opened (connection to server"),
        ("MLFLOW_TRACKING_URI", "postgresql://me:word@127.0.0.1:abc/runs", "invalid literal for int() with base 10"),
        ("MLFLOW_TRACKING_URI", "/some/folder", "is a folder, which MLflow no longer supports: write sqlite:////some"),
        ("MLFLOW_TRACKING_URI", "sqlite:///{folder}/broken.db", "cannot be read (file is not a database)"),
        ("PREMED_DATA", "{folder}/absent", "is no folder; mount it"),
        ("RAY_TMPDIR", "/tmp/" + "x" * 60, "is too long for Ray's sockets"),
        ("RAY_AUTH_MODE", "token", "holds no token; run `ray get-auth-token --generate`"),
        ("PREMED_HOME", "{folder}/broken.db/below", "cannot be created (Not a directory); name a folder"),
    ],
)
def test_what_an_address_or_a_folder_lacks_is_an_error_that_says_what_to_do(
    variable, value, words, monkeypatch, tmp_path
):
    monkeypatch.setattr(endpoints, "PATIENCE", 0.5)
    (tmp_path / "broken.db").write_text("no database, but some text" * 100)
    with silent_server() as silent:
        monkeypatch.setenv(variable, value.format(free=free_port(), silent=silent, folder=tmp_path))
        found = findings()
    assert [(severity, words in what) for severity, _, what in found] == [("error", True)], found
    assert "word" not in str(found).replace("password", "") and "\n" not in str(found)


def test_a_database_of_mlflow_is_in_order(monkeypatch, tmp_path):
    base = sqlite3.connect(tmp_path / "mlflow.db")
    base.execute("CREATE TABLE alembic_version (version_num TEXT)")
    base.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    report = doctor.examine()
    assert report["services"][1]["answers"] and report["num_errors"] == 0


def outside():
    """An address of this machine that is not loopback."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET and not endpoints.is_loopback(each.address):
                return each.address
    pytest.skip("this machine has loopback alone")


@pytest.mark.parametrize("kind", ["dashboard", "head", "client"])
def test_a_ray_that_strangers_may_use_is_an_error_and_one_with_a_token_or_on_loopback_is_none(kind, monkeypatch):
    where = outside()
    ask = {"dashboard": endpoints.DASHBOARD, "head": endpoints.HEAD, "client": endpoints.CLIENT}[kind]

    def serve(host, token):
        if kind != "dashboard":
            return grpc_server(METHODS, token, host)
        return http_server(RAY, token and f"Bearer {token}", host)

    for host, token, severities in (
        ("0.0.0.0", "", ["error"]),
        (where, "", ["error"]),
        (where, "abc", []),
        ("127.0.0.1", "", []),
    ):
        with serve(host=host, token=token) as port:
            monkeypatch.setattr(doctor, "PORTS", {port: ask})
            report = doctor.examine()
            (ear,) = report["listening"]
            assert ear["kind"] == ask and ear["asks_for_secret"] == bool(token)
            assert [each["severity"] for each in report["findings"]] == severities
            assert all(
                "asks for no token: whoever reaches it can run code" in each["what"] for each in report["findings"]
            )


def test_an_mlflow_that_strangers_may_use_is_a_note(monkeypatch):
    with http_server(FLOW, host="0.0.0.0") as port:
        monkeypatch.setattr(doctor, "PORTS", {port: endpoints.MLFLOW})
        ((severity, where, what),) = findings()
        assert severity == "note" and where == f"port {port} on 0.0.0.0" and "basic-auth" in what


def test_ray_s_folder_of_another_user_a_full_disk_and_little_shared_memory_are_found():
    script = f"""
        mount -t tmpfs -o size=64m none /dev/shm
        mkdir -m 777 /mnt/full /mnt/tmp; mkdir -m 755 /mnt/tmp/ray
        mount -t tmpfs -o size=1m,mode=777 none /mnt/full
        {STRANGER} $PYTHON -m premed doctor --json
    """
    code, out, err = in_namespace(script, PREMED_HOME="/mnt/full", TMPDIR="/mnt/tmp")
    found = {each["where"]: (each["severity"], each["what"]) for each in json.loads(out)["findings"]}
    remedy = "set RAY_TMPDIR to a folder of your own, as /tmp/ray-$USER"
    assert code == 2 and found == {
        "/dev/shm": ("note", found["/dev/shm"][1]),
        "PREMED_HOME": ("error", "/mnt/full has 1 MB free on its disk; make room, or name a folder elsewhere"),
        "/mnt/tmp/ray": ("error", f"may not be written to; {remedy}"),
    }
    assert found["/dev/shm"][1].startswith("has 67 MB free")


NVIDIA = """#!/bin/sh
echo "{line}"
exit {code}
"""


@pytest.mark.parametrize(
    ("line", "code", "gpus", "words"),
    [
        ("NVIDIA H100 80GB HBM3, 81559, 81000, 580.65.06", 0, 1, None),
        ("NVIDIA A100-SXM4-40GB, [N/A], [N/A], 580.65.06", 0, 1, None),
        ("WARNING: infoROM is corrupted at gpu 0000:00:1E.0", 0, 0, None),
        ("Tesla V100, 32768, 32000, 470.57.02", 0, 1, "needs a driver from"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, 0, "couldn't communicate"),
    ],
)
def test_gpus_are_those_that_nvidia_smi_lists(line, code, gpus, words, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text(NVIDIA.format(line=line, code=code))
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    found, wrong = machine.gpus()
    assert len(found) == gpus and [words in each.what for each in wrong] == ([True] if words else [])
    if gpus and "81559" in line:
        assert found[0]["name"] == "NVIDIA H100 80GB HBM3" and found[0]["memory_gb"] == pytest.approx(
            81559 * 2**20 / 1e9
        )


def test_a_slow_or_broken_tool_is_told_from_a_gpu_that_cannot_be_used(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/no/such/interpreter\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    ((_, where, what),) = machine.gpus()[1]
    assert where == "nvidia-smi" and "cannot be run (No such file or directory); reinstall the driver" in what
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    monkeypatch.setattr(machine, "SECONDS", 0.2)
    assert machine.gpus() == ([], [("error", "nvidia-smi", machine.SILENT)])
    (tmp_path / "nvidia-smi").unlink()
    monkeypatch.setattr(machine, "DEVICES", (str(tmp_path),))  # there is a GPU, and torch takes longer to load
    assert machine.gpus() == ([], [("note", "torch", machine.SLOW)])
    for answer, severity, words in (
        (None, "note", machine.SLOW),
        (endpoints.Answer("", problem="odd"), "note", "could not be asked (odd); run nvidia-smi, or ask again"),
    ):
        assert [(each.severity, each.what) for each in machine.or_silent(answer)[1]] == [(severity, words)]


def test_a_port_that_strangers_reach_and_that_gives_no_answer_is_not_passed_over():
    for address, notes in (("0.0.0.0", 1), ("127.0.0.1", 0)):
        ear, found = doctor.judge_port(address, 6379, endpoints.HEAD, endpoints.late())
        assert ear["asks_for_secret"] is None and [each.severity for each in found] == ["note"] * notes
    assert (
        doctor.judge_port("0.0.0.0", 6379, endpoints.HEAD, endpoints.Answer(endpoints.UNKNOWN, problem="odd"))[1] == []
    )


def test_torch_s_cuda_is_what_torch_says_of_itself():
    import torch

    assert machine.torch_cuda() == (torch.version.cuda or "")


PROGRAM = """
import sys
from premed.cli import app
try:
    app.main()
except SystemExit as end:
    print(end.code, [name for name in ("torch", "ray", "mlflow", "pandas") if name in sys.modules], file=sys.stderr)
"""


def test_the_command_prints_it_and_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", PROGRAM, "doctor"], capture_output=True, text=True)
    assert "PREMED_HOME" in done.stdout and "note" in done.stdout.splitlines()[-1]
    assert done.stderr.strip() == f"{0 if done.stdout.splitlines()[-1].startswith('0 errors') else 2} []"
