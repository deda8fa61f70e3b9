"""Small real servers for what asks ports: HTTP and gRPC with given answers, and one that never answers."""

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from support.stores import come_up, free_port

from premed.execution.endpoints import CHECK_ALIVE, PING

RAY = {"/api/version": (200, '{"version": "4", "ray_version": "2.60.0"}')}
RAY |= {"401": (401, "Unauthorized: Missing authentication token")}
FLOW = {"/version": (200, "3.17.2"), "/api/2.0/mlflow/experiments/search": (200, "{}")}
FLOW |= {"401": (401, "You are not authenticated. Please see https://www.mlflow.org/docs/latest/auth/index.html")}
REPLY = b"\n\x00\x12\x062.60.0\x1a\x01\x01"  # CheckAliveReply(status, ray_version, raylet_alive)
METHODS = {CHECK_ALIVE[0]: REPLY, PING[0]: b"\x08\x06\x12\x02{}"}


@contextmanager
def http_server(
    pages: Mapping[str, tuple[int, str]],
    secret: str = "",
    host: str = "127.0.0.1",
    received: list[str] | None = None,
    tls: ssl.SSLContext | None = None,
    silent: Container[str] = (),
) -> Iterator[int]:
    """Yields its port. pages: status and text by path. secret: the header without which status and text are those of
    the page `401`. received: gets the header Authorization of each request. tls: for HTTPS. silent: paths that it takes
    requests for, and never answers."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if received is not None:
                received.append(self.headers.get("Authorization", ""))
            path = self.path.partition("?")[0]
            if path in silent:
                over.wait()
            status, text = pages.get(path, (404, "no such page"))
            if secret and self.headers.get("Authorization") != secret:
                status, text = pages["401"]
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        over.set()
        server.shutdown()
        server.server_close()


@contextmanager
def grpc_server(
    replies: Mapping[str, bytes], token: str = "", host: str = "127.0.0.1", received: list[str] | None = None
) -> Iterator[int]:
    """Yields its port. replies: by method. token: without which it says UNAUTHENTICATED. received: as http_server."""

    class Methods(grpc.GenericRpcHandler):
        def service(self, details):
            reply = replies.get(details.method)
            if reply is None:
                return None

            def answer(request, context):
                sent = str(dict(context.invocation_metadata()).get("authorization", ""))
                if received is not None:
                    received.append(sent)
                if token and sent != f"Bearer {token}":
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
                return reply

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Methods()])
    port = server.add_insecure_port(f"{host}:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@contextmanager
def silent_server() -> Iterator[int]:
    """Yields the port of a server that takes connections and never says anything."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        yield server.getsockname()[1]


class MLflowServer:
    """MLflow's own server on a database, on a port that it keeps over its starts."""

    def __init__(self, folder, database):
        self.folder, self.database, self.port = folder, database, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--artifacts-destination", f"{self.folder}/artifacts"]
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"MLFLOW_BACKEND_STORE_URI": self.database},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        come_up(self.process, self.port)

    def signal(self, number):
        os.killpg(self.process.pid, number)
