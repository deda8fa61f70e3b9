"""`premed ui` opens a browser where there is a desktop (`test_demo`), once the server answers."""

import socket
import webbrowser

import pytest
from typer.testing import CliRunner

from premed.cli import browser, services
from premed.cli.app import app
from premed.tracking import saved_views


def test_a_page_opens_once_its_server_takes_connections(monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}/#/experiments/1/runs?a=b"
        assert not browser.open_when_served(url, patience=0.05) and opened == []
        server.listen()
        assert browser.open_when_served(url) and opened == [url]


def ui(monkeypatch, uri, *options):
    """What `premed ui` prints, opens and starts on that store, with one task's view in it."""
    started = []
    monkeypatch.setattr("premed.tracking.client.require_store", lambda: (uri, None))
    monkeypatch.setattr("premed.tracking.run_store.RunStore", lambda *_: None)
    views = [saved_views.TaskView("chest", "/#/experiments/1/runs"), saved_views.TaskView("brain", "/#/2")]
    monkeypatch.setattr(saved_views, "save_views", lambda store: views)
    monkeypatch.setattr(services, "has_desktop", lambda: True)
    monkeypatch.setattr(services.subprocess, "Popen", lambda command: started.append(command[-1]))
    monkeypatch.setattr(services.os, "execv", lambda program, command: started.append(command[-3]))
    output = CliRunner().invoke(app, ["ui", *options])
    return output.output, started


def test_the_ui_is_opened_at_the_newest_task_and_each_task_s_address_is_printed(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    result, started = ui(monkeypatch, "sqlite:////runs.db", "--port", port)
    assert started == [f"http://127.0.0.1:{port}/#/experiments/1/runs", "sqlite:////runs.db"]
    assert f"chest  http://127.0.0.1:{port}/#/experiments/1/runs\nbrain  http://127.0.0.1:{port}/#/2\n" in result
    assert ui(monkeypatch, "sqlite:////runs.db", "--port", port, "--no-open")[1] == ["sqlite:////runs.db"]


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
