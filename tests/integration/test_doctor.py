"""premed doctor and a real Ray: with a token it is in order, and without one on all addresses it is an error.

make test-cluster, or pytest -m cluster
"""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from integration.clusters import cluster

from premed.execution.machine import versions

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1000)]


def report(**environment):
    """Exit code, and what --json prints."""
    none = {"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nonexistent"}
    command = [sys.executable, "-m", "premed", "doctor", "--json"]
    for _ in range(5):
        done = subprocess.run(command, env=os.environ | none | environment, capture_output=True, text=True)
        result = json.loads(done.stdout)
        if not any("is not known; run premed doctor again" in each["what"] for each in result["findings"]):
            break  # else this machine was too busy for an answer
    return done.returncode, result


def of(findings, start):
    return [each["what"] for each in findings if each["where"].startswith(start)]


def test_a_cluster_with_a_token_answers_those_who_have_it():
    with cluster("--num-cpus=1") as head:
        for address, kind in ((head.gcs, "Ray's head"), (head.dashboard, "Ray's dashboard")):
            _, result = report(RAY_ADDRESS=address, **head.environment)
            ray = result["services"][0]
            assert ray["answers"] and ray["asks_for_secret"] and ray["version"] == versions()["ray"], result
            (ear,) = [each for each in result["listening"] if each["port"] == int(address.rpartition(":")[2])]
            assert ear["kind"] == kind and ear["asks_for_secret"]
            assert of(result["findings"], "RAY_ADDRESS") == [] == of(result["findings"], f"port {ear['port']} ")
            code, result = report(RAY_ADDRESS=address)
            assert code == 2 and of(result["findings"], "RAY_ADDRESS")[0].startswith("requires a token and none is set")
            wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
            assert (
                "refuses the one that is set"
                in of(report(RAY_ADDRESS=address, **wrong)[1]["findings"], "RAY_ADDRESS")[0]
            )


def test_a_cluster_that_strangers_reach_is_an_error():
    with cluster("--num-cpus=1", host="0.0.0.0", RAY_AUTH_MODE="disabled") as head:
        client = next(option for option in head_command(head) if option.startswith("--ray-client-server-port="))
        client = f"ray://127.0.0.1:{client.partition('=')[2]}"
        wait_for(int(client.rpartition(":")[2]))
        for address in (head.gcs, head.dashboard, client):
            code, result = report(RAY_ADDRESS=address.replace("0.0.0.0", "127.0.0.1"))
            ray = result["services"][0]
            told = of(result["findings"], f"port {address.rpartition(':')[2]} on")
            assert code == 2 and ray["answers"] and ray["asks_for_secret"] is False and len(told) == 1, result
            assert "asks for no token: whoever reaches it can run code here; start Ray with RAY_AUTH" in told[0]


def wait_for(port):
    """Ray's client server begins to listen, address by address, after Ray has said that it runs."""
    for _ in range(120):
        places = [tuple(each.laddr) for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        if any(at == port and not str(host).startswith("127.") for host, at in places):
            return
        time.sleep(0.5)
    raise TimeoutError(f"nobody listens on port {port}")


def head_command(head):
    return [str(word) for word in head.nodes[0].args]
