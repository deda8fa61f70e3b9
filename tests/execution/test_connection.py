"""connection.py: what is wrong with RAY_ADDRESS, RAY_AUTH_MODE and RAY_TMPDIR is one line, at once."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
from support.stores import free_port

from premed.errors import UserError
from premed.execution import connection

VARIABLES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR")


@pytest.fixture(autouse=True)
def unset(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "is a dashboard's, to which `premed submit` sends jobs; unset it"),
        ("https://head", "is a dashboard's"),
        ("headnode", "is no address of a cluster: write HOST:PORT"),
        ("localhost:abc", "is no address of a cluster"),
        ("localhost:70000", "is no address of a cluster"),
        (":6379", "is no address of a cluster"),
        ("no-such-host.invalid:6379", "there is no host no-such-host.invalid"),
        ("127.0.0.1:{free}", "does not answer (Connection refused): start that cluster or unset the variable"),
        ("ray://127.0.0.1:{free}", "does not answer (Connection refused)"),
    ],
)
def test_an_address_that_is_none_or_does_not_answer_is_named(address, words, monkeypatch):
    address = address.format(free=free_port())
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as refused:
        connection.connect()
    assert str(refused.value).startswith(f"RAY_ADDRESS={address}") and words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_head_that_swallows_packets_is_given_up_within_its_patience(monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE", 0.5)
    with socket.socket() as head, socket.socket() as first, socket.socket() as second:
        head.bind(("127.0.0.1", 0))
        head.listen(0)  # its queue is full with the connections that it never accepts
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(head.getsockname())
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(UserError, match="does not answer"):
            connection.connect()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("address", "taken"), [("", "local"), ("local", "local"), ("auto", "auto"), (" 10.0.0.7:6379 ", "10.0.0.7:6379")]
)
def test_an_address_is_taken_as_it_is_and_none_is_this_machine(address, taken, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert connection.cluster_address() == taken


def test_processes_of_a_ray_of_ones_own_have_the_settings_of_malloc_and_the_command_stays_as_it_was(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    with connection.malloc_of_workers():
        env = subprocess.run(["env"], capture_output=True, text=True).stdout.splitlines()
    assert {"MALLOC_ARENA_MAX=1", "GLIBC_TUNABLES=glibc.malloc.check=0"} <= {*env}
    assert "MALLOC_ARENA_MAX" not in os.environ


def test_a_token_that_is_not_there_is_missed_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for named in (None, str(tmp_path / "absent"), str(tmp_path)):
        if named:
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", named)
        with pytest.raises(UserError, match=f"{named or 'RAY_AUTH_MODE=token'}.* holds no token; run `ray get-auth-"):
            connection.connect()
    (tmp_path / "token").write_bytes(b"\xff\x00 no text")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UserError, match="holds no token"):
        connection.connect()
    (tmp_path / "token").write_text("abc\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    connection.refuse_missing_token()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    connection.refuse_missing_token()


def test_ray_has_a_token_where_the_home_can_hold_none(tmp_path, monkeypatch):
    connection.provide_token()
    assert "RAY_AUTH_TOKEN" not in os.environ  # it is in ~/.ray
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    connection.provide_token()
    assert len(connection.ray_token()) == 64


def test_a_folder_for_ray_that_is_too_long_or_cannot_be_is_refused(tmp_path, monkeypatch):
    longest = connection.LONGEST_SOCKET - len(connection.SOCKET)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * (longest - 4))
    with pytest.raises(UserError, match=f"is too long for Ray's sockets; name a folder of at most {longest} bytes"):
        connection.connect()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * (longest - 4))  # which Ray takes then
    with pytest.raises(UserError, match=f"^TMPDIR=.* sockets; set RAY_TMPDIR to a folder of at most {longest} bytes"):
        connection.connect()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", "file/below")
    with pytest.raises(UserError, match=r"RAY_TMPDIR=file/below cannot be created \(Not a directory\)"):
        connection.connect()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x"), "AF_UNIX path"),
        (RuntimeError("Failed to start GCS.\n  more\n"), "(Failed to start GCS); "),
        (ValueError("bad"), "(bad); "),
        (AssertionError(), "(AssertionError); "),
        (ConnectionError("nobody"), "could not be used (nobody)"),
    ],
)
def test_whatever_ray_raises_is_one_line(error, words):
    message = str(connection.explained(error, "local"))
    assert words in message and "\n" not in message
    assert "RAY_ADDRESS=h:1" in str(connection.explained(error, "h:1"))


def test_a_ray_of_ones_own_gets_a_token_that_nobody_else_may_read(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())  # which provide_token changes
    file, old_mask = tmp_path / ".ray/auth_token", os.umask(0o022)
    try:
        connection.provide_token()
        token = file.read_text()
        assert len(token) >= 32 and file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
        assert connection.ray_token() == token
        file.chmod(0o644)  # as Ray writes it
        connection.provide_token()
        assert file.read_text() == token and file.stat().st_mode & 0o777 == 0o600
        file.write_text("")
        connection.provide_token()
        assert len(connection.ray_token() or "") >= 32
    finally:
        os.umask(old_mask)


def test_who_sets_ray_auth_mode_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ | {"RAY_AUTH_MODE": "disabled"})
    connection.provide_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and not (tmp_path / ".ray").exists()


LISTENING = """
import os, psutil
from premed.execution.connection import connect
os.environ["RAY_raylet_start_wait_time_s"] = "120"
connect()
import ray

@ray.remote(num_cpus=0)
class Worker:
    def pid(self):
        return os.getpid()

worker = Worker.remote()
ray.get(worker.pid.remote())
own = [psutil.Process(), *psutil.Process().children(recursive=True)]
print(sum(" ".join(each.cmdline()).startswith("ray-dashboard-") for each in own))
print(sorted({each.laddr.ip for one in own for each in one.net_connections("inet") if each.status == "LISTEN"}))
ray.shutdown()
"""


IMPORTED = """
import pkgutil, sys
import premed
for each in pkgutil.walk_packages(premed.__path__, "premed."):
    if each.name != "premed.tuning.tune" and "__main__" not in each.name:
        __import__(each.name)
        assert "ray" not in sys.modules, each.name
"""


@pytest.mark.slow
def test_nothing_imports_ray_before_its_settings_are_made():
    """Ray reads where it may listen when it is imported."""
    subprocess.run([sys.executable, "-c", IMPORTED], check=True, timeout=240)


@pytest.mark.slow
def test_a_ray_of_ones_own_listens_on_loopback_alone_and_serves_no_dashboard(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command, environment["HOME"] = [sys.executable, "-c", LISTENING], str(tmp_path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    dashboard, addresses = map(eval, done.stdout.splitlines()[-2:])
    assert dashboard == 0
    assert addresses and all(each in ("127.0.0.1", "::1", "::ffff:127.0.0.1") for each in addresses), done
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600


CONNECTING = (
    "from premed.execution.connection import connect; print('began', flush=True); connect(); print('connected')"
)


@pytest.mark.slow
def test_a_command_killed_while_ray_starts_leaves_nothing_and_the_next_one_connects(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray")}
    environment |= {"RAY_raylet_start_wait_time_s": "120"}
    arguments = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CONNECTING], **arguments) as command:
        assert command.stdout.readline() == "began\n"
        started = []
        while not any("gcs_server" in each.name() for each in started):
            time.sleep(0.05)
            started = psutil.Process(command.pid).children(recursive=True)
        command.kill()
    following = subprocess.run([sys.executable, "-c", CONNECTING], **arguments, timeout=240)
    assert following.stdout.splitlines() == ["began", "connected"] and following.returncode == 0, following.stderr
    assert psutil.wait_procs(started, timeout=30)[1] == []
    shutil.rmtree(environment["RAY_TMPDIR"])


IMPORTING = """
from premed.execution.connection import connect
connect()
import ray

@ray.remote(num_cpus=0)
def where():
    import statistics, premed
    return statistics.__file__, premed.__file__

import premed
statistics, package = ray.get(where.remote())
assert package == premed.__file__
print(statistics)
"""


@pytest.mark.slow
def test_workers_import_nothing_that_lies_where_the_command_was_started(tmp_path):
    """A statistics.py of the user's, which MLflow would import, ended its process again and again."""
    (tmp_path / "statistics.py").write_text("raise RuntimeError('of the user')")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONSAFEPATH": "1", "PYTHONPATH": str(connection.CODE)}
    arguments = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 240}
    done = subprocess.run([sys.executable, "-c", IMPORTING], **arguments)
    assert done.returncode == 0 and not done.stdout.startswith(str(tmp_path)), done.stderr
