"""Endpoints that logs go to: moto for CloudWatch, and small real servers that can be slow."""

from __future__ import annotations

import gzip
import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from fargatelite import Task
from fargatelite.logdrivers.lines import LineAssembler

ROLE = "arn:aws:iam::000000000000:role/execution"
TIMEOUT_S = 60.0


def definition(image: str, *containers: dict[str, Any]) -> dict[str, Any]:
    return {
        "family": "test",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "512",
        "memory": "1024",
        "executionRoleArn": ROLE,
        "containerDefinitions": [
            {"image": image, "stopTimeout": 2, **container} for container in containers
        ],
    }


def shell(name: str, script: str, **more: Any) -> dict[str, Any]:
    command = {"entryPoint": ["/bin/sh", "-c"], "command": [script]}
    return {"name": name, **command, "stopTimeout": 2, **more}  # a shell that is pid 1 has no TERM


def awslogs(**options: str) -> dict[str, Any]:
    """A logConfiguration; `create_group` is awslogs-create-group."""
    named = {f"awslogs-{name.replace('_', '-')}": value for name, value in options.items()}
    for plain in ("mode", "max-buffer-size"):
        if f"awslogs-{plain}" in named:
            named[plain] = named.pop(f"awslogs-{plain}")
    base = {"awslogs-group": "app", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "ecs"}
    return {"logDriver": "awslogs", "options": base | named}


def local_lines(task: Task, container: str) -> list[str]:
    """Of the local log; pieces are joined."""
    lines = LineAssembler()
    records = [record for line in task.logs(container) for record in lines.feed(line)]
    return [record.text.decode() for record in [*records, *lines.flush()]]


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The URL of a moto server."""
    # Here: a guest of vagrant/ collects all of tests/root, and has no moto.
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


class CloudWatch:
    """What a user sees of CloudWatch Logs."""

    def __init__(self, url: str) -> None:
        self.client = botocore.session.get_session().create_client(
            "logs", region_name="us-east-1", endpoint_url=url
        )

    def messages(self, task: Task, container: str, group: str = "app") -> list[str]:
        """All events of a container's stream, in the order that the service gives them."""
        stream = f"ecs/{container}/{task.id}"
        found: list[str] = []
        arguments: dict[str, Any] = {"startFromHead": True}
        while True:
            page = self.client.get_log_events(logGroupName=group, logStreamName=stream, **arguments)
            found += [event["message"] for event in page["events"]]
            if not page["events"]:
                return found
            arguments["nextToken"] = page["nextForwardToken"]


@pytest.fixture
def cloudwatch(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudWatch]:
    """An empty CloudWatch that botocore finds by AWS_ENDPOINT_URL."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    made = CloudWatch(moto)
    for group in made.client.describe_log_groups()["logGroups"]:
        made.client.delete_log_group(logGroupName=group["logGroupName"])
    yield made
    made.client.close()


class Endpoint:
    """An HTTP server that keeps what is posted to it, and waits with its answers until `gate`."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.posts: list[tuple[dict[str, str], Any]] = []
        self.answers: list[int] = []
        """Statuses of the next answers to POST; 200 after them."""
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.end_headers()
                self.wfile.write(b"{}")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                is_stream = "CreateLogStream" in self.headers.get("X-Amz-Target", "")
                if not is_stream:
                    endpoint.waiting.set()
                    endpoint.gate.wait(TIMEOUT_S)
                status = endpoint.answers.pop(0) if endpoint.answers and not is_stream else 200
                if status == 200 and not is_stream:
                    endpoint.posts.append((dict(self.headers), body))
                self._answer(status)

            def do_OPTIONS(self) -> None:
                self._answer(200)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def events(self) -> list[str]:
        """Messages of all PutLogEvents."""
        return [
            event["message"] for _, body in self.posts for event in json.loads(body)["logEvents"]
        ]

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An endpoint in CloudWatch's place."""
    made = Endpoint()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for splunk.test, signed by itself, and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=splunk.test",
         "-addext", "subjectAltName=DNS:splunk.test", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture
def splunk(certificate: tuple[Path, Path]) -> Iterator[Endpoint]:
    """An HTTPS server in the place of a HEC."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    made = Endpoint(context)
    try:
        yield made
    finally:
        made.close()
