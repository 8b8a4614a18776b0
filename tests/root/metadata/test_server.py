"""The endpoint as containers reach it: inside its task's namespace and only there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fargatelite.errors import NetworkFailed
from fargatelite.metadata.server import MetadataServer
from fargatelite.metadata.shapes import MetadataTask
from fargatelite.network.namespaces import run_in_namespace
from tests.fixtures.patience import FACTOR, patient

from .conftest import Task, new_namespace

pytestmark = [pytest.mark.root, pytest.mark.vm]
NewTask = Callable[..., Task]


def test_every_path_answers_inside(new_task: NewTask) -> None:
    task = new_task()
    own = task.source.runtime_id
    for version in ("v3", "v4"):
        status, container = task.ask("GET", f"/{version}/{own}")
        assert (status, container["DockerId"]) == (200, own)
        status, shown = task.ask("GET", f"/{version}/{own}/task")
        assert (status, shown["Family"]) == (200, "web")
        assert task.ask("GET", f"/{version}/{own}/taskWithTags")[0] == 200
        assert task.ask("GET", f"/{version}/{own}/stats") == (200, None)
        assert task.ask("GET", f"/{version}/{own}/task/stats") == (200, {own: None})
    assert task.ask("GET", "/") == (404, "404 page not found")


def test_only_inside(new_task: NewTask) -> None:
    task = new_task()
    elsewhere = new_namespace()
    try:
        for port in (80, 51679):
            with pytest.raises(ConnectionRefusedError):
                run_in_namespace(
                    elsewhere, partial(socket.create_connection, ("169.254.170.2", port), 5)
                )
    finally:
        os.close(elsewhere)
    assert task.ask("GET", f"/v4/{task.source.runtime_id}")[0] == 200


def test_tasks_cannot_read_each_others(new_task: NewTask) -> None:
    first, second = new_task(), new_task()
    other = second.source
    status, text = first.ask("GET", f"/v4/{other.runtime_id}")
    assert status == 404
    assert text == (
        "V4 container metadata handler: unable to get container ID from request: "
        f"unable to get docker ID from v3 endpoint ID: {other.runtime_id}"
    )
    status, body = first.ask("GET", f"/v2/credentials/{other.credentials_id}")
    assert (status, body["code"]) == (400, "InvalidIdInRequest")
    # The same requests are good ones where they belong.
    assert second.ask("GET", f"/v4/{other.runtime_id}")[0] == 200
    assert second.ask("GET", f"/v2/credentials/{other.credentials_id}")[0] == 200


def test_where_ports_cannot_be_rewritten_they_are_translated(new_task: NewTask) -> None:
    """As Linux 7.3 wants it in a namespace that a user namespace owns."""
    task = new_task()
    rules = task.handle._rules
    rules._run("delete table inet fargatelite_task")
    with pytest.raises(ConnectionRefusedError):
        task.connect()
    for _ in range(2):
        rules.redirect_metadata_by_nat()
    assert task.ask("GET", f"/v4/{task.source.runtime_id}")[0] == 200

    def tracked() -> int:
        return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())

    def connect_elsewhere() -> None:
        with socket.create_server(("0.0.0.0", 80)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("127.0.0.1", port), timeout=patient(5)).close()

    before = run_in_namespace(task.netns_fd, tracked)
    assert before >= 1
    run_in_namespace(task.netns_fd, connect_elsewhere)
    assert run_in_namespace(task.netns_fd, tracked) <= before


def test_a_web_server_of_the_task_has_port_80(new_task: NewTask) -> None:
    task = new_task()

    def bind() -> socket.socket:
        return socket.create_server(("0.0.0.0", 80))

    with run_in_namespace(task.netns_fd, bind):
        assert task.ask("GET", f"/v4/{task.source.runtime_id}")[0] == 200


@pytest.mark.skipif(FACTOR > 1, reason="a slow machine asks at a rate that is allowed")
def test_more_than_the_burst_is_refused(new_task: NewTask) -> None:
    task, calm = new_task(), new_task()
    statuses = [task.ask("GET", "/v4/x")[0] for _ in range(150)]
    assert statuses[:60] == [404] * 60
    assert 429 in statuses
    assert calm.ask("GET", f"/v4/{calm.source.runtime_id}")[0] == 200


def test_slow_clients_hold_up_nobody_and_are_dropped(new_task: NewTask) -> None:
    task, other = new_task(), new_task()
    slow = [task.connect() for _ in range(20)]
    try:
        for client in slow:
            client.sendall(b"GET /v4")
        assert other.ask("GET", f"/v4/{other.source.runtime_id}")[0] == 200
        slow[0].settimeout(patient(10))
        assert slow[0].recv(1) == b""
    finally:
        for client in slow:
            client.close()
    assert task.ask("GET", f"/v4/{task.source.runtime_id}")[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"\0\0\r\n\r\n", 400, id="no request"),
        pytest.param(b"GET /" + b"a" * 20000, 431, id="endless line"),
        pytest.param(b"PUT / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n", 413, id="large body"),
        pytest.param(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411, id="chunked"),
    ],
)
def test_what_is_no_request_gets_an_answer(new_task: NewTask, data: bytes, status: int) -> None:
    assert new_task().raw(data).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(NetworkFailed("gone"), "failed to get task metadata", id="known"),
        pytest.param(RuntimeError("bug"), "internal error", id="a bug"),
    ],
)
def test_a_failing_source_is_a_500_for_its_own_task(
    new_task: NewTask, error: Exception, text: str
) -> None:
    task, other = new_task(), new_task()

    def fail() -> MetadataTask:
        raise error

    describe, task.source.describe = task.source.describe, fail  # type: ignore[method-assign]
    assert task.ask("GET", f"/v4/{task.source.runtime_id}/task") == (500, text)
    assert other.ask("GET", f"/v4/{other.source.runtime_id}/task")[0] == 200
    task.source.describe = describe  # type: ignore[method-assign]
    assert task.ask("GET", f"/v4/{task.source.runtime_id}/task")[0] == 200


def test_a_removed_task_is_not_served(new_task: NewTask, server: MetadataServer) -> None:
    task = new_task()
    server.remove_task(task.handle)
    server.remove_task(task.handle)
    with pytest.raises(ConnectionRefusedError):
        task.connect()


def test_errors_of_credentials(new_task: NewTask) -> None:
    task = new_task()
    status, body = task.ask("GET", "/v2/credentials")
    assert (status, body) == (
        400,
        {
            "code": "NoIdInRequest",
            "message": "CredentialsV2Request: No Credential ID in the request",
            "HTTPErrorCode": 400,
        },
    )
    task.source.credentials = lambda: None  # type: ignore[method-assign]
    status, body = task.ask("GET", f"/v2/credentials/{task.source.credentials_id}")
    assert (status, body["code"]) == (503, "CredentialsUninitialized")


def test_protection_outside_a_service(new_task: NewTask) -> None:
    task = new_task()
    path = f"/api/{task.source.runtime_id}/task-protection/v1/state"
    assert task.ask("GET", path)[1]["failure"]["Reason"] == "TASK_NOT_VALID"
    assert task.ask("PUT", path, {"ProtectionEnabled": True})[1]["failure"]["Reason"] == (
        "TASK_NOT_VALID"
    )
    assert task.ask("PUT", path, {"Unknown": 1})[0] == 400
    assert task.ask("PUT", path, {})[0] == 400
    assert task.ask("PUT", path, {"ProtectionEnabled": True, "ExpiresInMinutes": 0})[0] == 400


def test_botocores_own_provider_gets_the_credentials(new_task: NewTask) -> None:
    task = new_task()
    program = (
        "import json; from botocore.credentials import ContainerProvider as P;"
        "c = P().load().get_frozen_credentials();"
        "print(json.dumps([c.access_key, c.secret_key, c.token]))"
    )
    done = subprocess.run(
        ["nsenter", f"--net=/proc/self/fd/{task.netns_fd}", sys.executable, "-c", program],
        env={
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": (
                f"/v2/credentials/{task.source.credentials_id}"
            ),
            "PATH": os.environ["PATH"],
        },
        pass_fds=[task.netns_fd],
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=True,
    )
    assert json.loads(done.stdout) == ["ASIAEXAMPLE", "secret-" + task.source.runtime_id, "token"]
