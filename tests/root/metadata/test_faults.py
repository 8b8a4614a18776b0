"""A black-hole port really drops, and stops dropping."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from fargatelite.network.namespaces import run_in_namespace

from .conftest import Task

pytestmark = [pytest.mark.root, pytest.mark.vm]
NewTask = Callable[..., Task]
_PORT = {"Port": 8080, "Protocol": "tcp"}


def _reach(task: Task, port: int = 8080) -> bool:
    def work() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.3).close()
        except TimeoutError:
            return False
        return True

    return run_in_namespace(task.netns_fd, work)


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_a_blackhole_drops_until_it_is_stopped(new_task: NewTask, direction: str) -> None:
    task = new_task(can_inject=True)
    path = f"/api/{task.source.runtime_id}/fault/v1/network-blackhole-port"
    body = {**_PORT, "TrafficType": direction}

    def serve(port: int) -> socket.socket:
        return run_in_namespace(task.netns_fd, lambda: socket.create_server(("127.0.0.1", port)))

    with serve(8080), serve(8081):
        assert _reach(task)
        assert task.ask("POST", f"{path}/status", body) == (200, {"Status": "not-running"})
        for _ in range(2):
            assert task.ask("POST", f"{path}/start", body) == (200, {"Status": "running"})
        assert task.ask("POST", f"{path}/status", body) == (200, {"Status": "running"})
        assert not _reach(task)
        assert _reach(task, 8081)
        for _ in range(2):
            assert task.ask("POST", f"{path}/stop", body) == (200, {"Status": "stopped"})
        assert _reach(task)
        spared = {**body, "SourcesToFilter": ["127.0.0.0/8", "fd00::1"]}
        assert task.ask("POST", f"{path}/start", spared) == (200, {"Status": "running"})
        assert _reach(task)
        assert task.ask("POST", f"{path}/stop", body) == (200, {"Status": "stopped"})


def test_the_endpoint_is_never_cut_off(new_task: NewTask) -> None:
    task = new_task(can_inject=True)
    path = f"/api/{task.source.runtime_id}/fault/v1/network-blackhole-port"
    for direction in ("ingress", "egress"):
        body = {"Port": 80, "Protocol": "tcp", "TrafficType": direction}
        assert task.ask("POST", f"{path}/start", body)[0] == 200
        assert task.ask("POST", f"{path}/status", body) == (200, {"Status": "running"})


def test_a_task_without_enable_fault_injection(new_task: NewTask) -> None:
    task = new_task()
    path = f"/api/{task.source.runtime_id}/fault/v1/network-blackhole-port/start"
    status, body = task.ask("POST", path, {**_PORT, "TrafficType": "egress"})
    arn = task.source.describe().task_arn
    assert (status, body) == (
        400,
        {"Error": f"enableFaultInjection is not enabled for task: {arn}"},
    )


@pytest.mark.parametrize(
    ("fault", "body", "error"),
    [
        ("network-blackhole-port", None, "required request body is missing"),
        ("network-blackhole-port", {}, "required parameter Port is missing"),
        (
            "network-blackhole-port",
            {"Port": 1, "Protocol": "icmp", "TrafficType": "egress"},
            "invalid value icmp for parameter Protocol",
        ),
        (
            "network-blackhole-port",
            {**_PORT, "TrafficType": "egress", "SourcesToFilter": ["x; flush ruleset"]},
            "invalid value x; flush ruleset for parameter SourcesToFilter",
        ),
        (
            "network-packet-loss",
            {"LossPercent": 101, "Sources": ["1.2.3.4"]},
            "invalid value 101 for parameter LossPercent",
        ),
        (
            "network-latency",
            {"DelayMilliseconds": 1},
            "required parameter JitterMilliseconds is missing",
        ),
    ],
)
def test_refusals_are_the_agents(
    new_task: NewTask, fault: str, body: dict[str, object] | None, error: str
) -> None:
    task = new_task(can_inject=True)
    path = f"/api/{task.source.runtime_id}/fault/v1/{fault}/start"
    assert task.ask("POST", path, body) == (400, {"Error": error})


def test_latency_says_what_is_missing(new_task: NewTask) -> None:
    task = new_task(can_inject=True)
    path = f"/api/{task.source.runtime_id}/fault/v1/network-latency/start"
    asked = {"DelayMilliseconds": 1, "JitterMilliseconds": 0, "Sources": ["1.2.3.4"]}
    status, body = task.ask("POST", path, asked)
    assert status == 500
    assert "netem" in body["Error"]
