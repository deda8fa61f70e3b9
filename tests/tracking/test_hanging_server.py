"""MLflow's own server, stopped in mid-training: it takes connections and never answers."""

import os
import shutil
import signal
import time

import pytest
import yaml
from support.commands import shell
from support.experiments import SCRATCH, forked, tree, until
from support.servers import MLflowServer
from support.stores import stop

pytest_plugins = ["support.experiment_fixtures"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def server(empty_database, tmp_path):
    made = MLflowServer(tmp_path, f"sqlite:///{shutil.copy(empty_database, tmp_path / 'server.db')}")
    yield made
    made.signal(signal.SIGCONT)
    stop(made.process)


def test_a_second_ctrl_c_leaves_at_once_and_a_new_command_is_told_in_a_line(server, home, chest, tmp_path):
    long = {"finetune": {"epochs": 10**4}, "test": False}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree(chest, SCRATCH, long)))
    process, output = forked(home, "run", tmp_path / "tiny.yaml", uri=server.uri)
    until(output, "checkpoint saved")
    server.signal(signal.SIGSTOP)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.5)  # else it counts as the first once more
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130 and time.monotonic() - began < 5
    assert "premed: left at once; what was not saved yet is lost" in output.read()

    code, _, err = shell(f"premed run {tmp_path}/tiny.yaml", MLFLOW_TRACKING_URI=server.uri)
    words = "does not answer (it accepts connections, and sent no answer for 10 s): restart it or unset the variable"
    assert code == 2 and err.splitlines()[-1] == f"premed: MLFLOW_TRACKING_URI={server.uri} {words}"
