"""`premed ui` tells its addresses, and opens one where there is a desktop (`test_demo`), once the server answers."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import webbrowser

import pytest
from typer.testing import CliRunner

from premed.cli import browser, services
from premed.cli.app import app
from premed.tracking import saved_views


class Unable(http.server.BaseHTTPRequestHandler):
    """Answers every request with status 501."""

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    """One that takes connections and answers nothing until it is served."""
    with http.server.HTTPServer(("127.0.0.1", 0), Unable) as server:
        yield server
        server.shutdown()


def base_of(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_addresses_are_told_and_one_is_opened_once_the_server_answers(server, monkeypatch, capsys):
    """That it takes connections is not enough: MLflow's does, long before it answers."""
    opened, asked = [], []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append((url, capsys.readouterr().err)))

    def pause(seconds):
        asked.append((list(opened), capsys.readouterr().err))
        threading.Thread(target=server.serve_forever, daemon=True).start()

    monkeypatch.setattr(browser.time, "sleep", pause)
    answers = browser.answers
    monkeypatch.setattr(browser, "answers", lambda base: bool(asked) and answers(base))
    url = f"{base_of(server)}/#/experiments/1/runs?a=b"
    assert browser.tell_when_served(os.getppid(), base_of(server), url, ["chest  here", "base"])
    assert asked == [([], "")] and opened == [(url, "chest  here\nbase\n")]


def test_an_error_is_an_answer_and_an_open_port_is_none(server, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        assert not browser.answers(f"http://127.0.0.1:{silent.getsockname()[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert browser.answers(base_of(server))  # with status 501


def test_it_ends_with_the_server_that_never_answered():
    """The process that it waits for ends, and it says nothing."""
    telling = f"[{sys.executable!r}, '-m', 'premed.cli.browser', str(os.getpid()), 'http://127.0.0.1:9', '', 'never']"
    code = f"import os, subprocess; child = subprocess.Popen({telling}); print(child.pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)  # until both ended
    assert done.stdout.strip().isdigit() and done.stderr == ""


def ui(monkeypatch, uri, *options):
    """What `premed ui` prints, opens and starts on that store, with one task's view in it."""
    started = []
    monkeypatch.setattr("premed.tracking.client.require_store", lambda: (uri, None))
    monkeypatch.setattr("premed.tracking.run_store.RunStore", lambda *_: None)
    views = [saved_views.TaskView("chest", "/#/experiments/1/runs"), saved_views.TaskView("brain", "/#/2")]
    monkeypatch.setattr(saved_views, "save_views", lambda store: views)
    monkeypatch.setattr(services, "has_desktop", lambda: True)
    monkeypatch.setattr(services.subprocess, "Popen", lambda command: started.append(command[4:]))
    monkeypatch.setattr(services.os, "execve", lambda program, command, _: started.append(command[-3]))
    output = CliRunner().invoke(app, ["ui", *options])
    return output.output, started


def test_the_newest_task_is_opened_and_each_task_s_address_told_once_there_is_an_answer(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    base = f"http://127.0.0.1:{port}"
    said, (told, served) = ui(monkeypatch, "sqlite:////runs.db", "--port", port)
    assert said == "starting MLflow: its addresses follow once it answers\n" and served == "sqlite:////runs.db"
    lines = [f"chest  {base}/#/experiments/1/runs", f"brain  {base}/#/2", f"{base}  (Ctrl-C ends it)"]
    assert told == [base, f"{base}/#/experiments/1/runs", *lines]
    _, (told, _) = ui(monkeypatch, "sqlite:////runs.db", "--port", port, "--no-open")
    assert told == [base, "", *lines]


def test_of_a_server_the_addresses_are_printed_and_nothing_is_started(monkeypatch):
    result, started = ui(monkeypatch, "http://mlflow.ward:80")
    assert started == [] and "chest  http://mlflow.ward:80/#/experiments/1/runs\n" in result


def test_a_port_that_another_server_has_is_refused(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = str(server.getsockname()[1])
        with pytest.raises(Exception, match=f"--port {port}: cannot be used .*; name another, as in --port 5001"):
            services.require_free(int(port))
