"""Ray clusters that outlive commands, for tests: one process per node, killed by its number in the end.

make test-cluster, or pytest -m cluster
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from support.stores import free_port

BIN = Path(sys.executable).parent
ONLY_OURS = ("PYTHONPATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "PREMED_HOME")
PATIENT = {  # where other work keeps a machine busy, a process that is slow is not dead
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_failure_threshold": "20",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_gcs_server_request_timeout_seconds": "120",
    "RAY_memory_monitor_refresh_ms": "0",  # nor is it for us to die where others fill the memory
}


@dataclass
class Cluster:
    """A head, and whatever nodes were added. `dashboard` takes jobs; `environment` holds the token."""

    folder: Path
    dashboard: str
    gcs: str
    environment: dict[str, str]
    nodes: list[subprocess.Popen] = field(default_factory=list)

    def command(self, *words: Any, cwd: Path | None = None, **more: Any) -> subprocess.Popen:
        """`premed …` as on a laptop that was told of the cluster and has its token; out and err in one."""
        return subprocess.Popen(
            [sys.executable, "-m", "premed", *map(str, words)],
            cwd=cwd or self.folder,
            env=os.environ | self.environment | {"RAY_ADDRESS": self.dashboard} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def premed(self, *words: Any, cwd: Path | None = None, **more: Any) -> tuple[int, str]:
        """Exit code and what it said."""
        process = self.command(*words, cwd=cwd, **more)
        output, _ = process.communicate()
        return process.returncode, output

    def ray(self, *words: str) -> str:
        """What `ray … --address` says."""
        command = [BIN / "ray", *words, "--address", self.dashboard]
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def listed(self, what: str) -> list[dict[str, Any]]:
        """placement_groups, actors, nodes or jobs: what `ray list` shows, without the seconds that its imports take."""
        return json.loads(self.ask(f"api/v0/{what}?limit=1000"))["data"]["result"]["result"]

    def ask(self, path: str) -> bytes:
        """What the dashboard answers."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(f"{self.dashboard}/{path}", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def node(self, *options: str, inside: Sequence[str] = (), **more: str) -> subprocess.Popen:
        """Starts one more node. options: `ray start`'s. inside: the words before a command that runs elsewhere, as in a
        network namespace. more: environment.
        """
        self.nodes.append(ray_start(self, f"--address={self.gcs}", *options, inside=inside, **more))
        return self.nodes[-1]

    def wait_for(self, number: int) -> None:
        """Until so many nodes are there."""
        for _ in range(600):
            with suppress(OSError):  # of a dashboard that is not ready, or busy
                if sum(node["state"] == "ALIVE" for node in self.listed("nodes")) >= number:
                    return
            time.sleep(0.5)
            if any(process.poll() is not None for process in self.nodes):
                logs = [*self.folder.glob("node*.log"), *self.folder.glob("*/session_latest/logs/raylet.*")]
                raise RuntimeError("\n".join(f"{log}:\n{log.read_text()[-5000:]}" for log in logs))
        raise TimeoutError(f"{number} nodes did not come up")


@contextmanager
def cluster(*options: str, inside: Sequence[str] = (), host: str = "127.0.0.1", **more: str) -> Iterator[Cluster]:
    """A head with a token, in a folder of its own, on free ports, its dashboard on `host`; else as `Cluster.node`."""
    folder = Path(tempfile.mkdtemp(prefix="premed-"))  # Ray's sockets have no room for a test's long path
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    port, gcs = free_port(), free_port()
    found = Cluster(folder, f"http://{host}:{port}", f"{host}:{gcs}", secret)
    head = ["--head", f"--port={gcs}", f"--dashboard-host={host}", f"--dashboard-port={port}"]
    head += [f"--ray-client-server-port={free_port()}"]
    try:
        found.nodes.append(ray_start(found, *head, *options, inside=inside, **more))
        come_up(found)
        yield found
    finally:
        for node in reversed(found.nodes):
            end(node)
        shutil.rmtree(folder, ignore_errors=True)


def ray_start(where: Cluster, *options: str, inside: Sequence[str] = (), **more: str) -> subprocess.Popen:
    """A node that lives as long as its process. `python` in a job is this one, and premed what came with the job."""
    environment = {name: value for name, value in os.environ.items() if name not in ONLY_OURS}
    environment |= PATIENT | where.environment | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | more
    ports = [f"--{name}={free_port()}" for name in ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")]
    ports += [f"--metrics-export-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
    number = len(where.nodes)
    with (where.folder / f"node{number}.log").open("w") as log:
        return subprocess.Popen(
            [*inside, BIN / "ray", "start", *options, *ports, "--block", "--disable-usage-stats"]
            + ([f"--temp-dir={where.folder / 'ray'}"] if "--head" in options else []),
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def come_up(cluster: Cluster) -> None:
    """Waits until the head takes jobs."""
    for _ in range(600):
        try:
            cluster.ask("api/jobs/")
            return
        except OSError:
            try:
                cluster.nodes[0].wait(0.5)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError((cluster.folder / "node0.log").read_text()) from None
    raise TimeoutError(f"the head did not come up: {(cluster.folder / 'node0.log').read_text()}")


def end(node: subprocess.Popen) -> None:
    """Kills a node's process and all that came of it."""
    try:
        started = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        started = []
    for process in started:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(started, timeout=30)
    node.wait()
