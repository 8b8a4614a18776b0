"""A black-hole port really drops, and stops dropping."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from fargatelite.network.namespaces import run_in_namespace
from tests.fixtures.patience import patient

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


PEER, OTHER = "198.51.100.1", "198.51.100.3"


@pytest.fixture
def wired_task(new_task: NewTask) -> Iterator[Task]:
    """A task with an interface; PEER and OTHER are this host, and answer on port 8080."""
    task = new_task(can_inject=True)

    def wire() -> None:
        for line in (
            f"link add eth1 type veth peer name tstfault netns {os.getpid()}",
            "addr add 198.51.100.2/24 dev eth1",
            "link set eth1 up",
        ):
            subprocess.run(["ip", *line.split()], check=True)

    run_in_namespace(task.netns_fd, wire)
    for line in (f"addr add {PEER}/24 dev tstfault", f"addr add {OTHER}/24 dev tstfault"):
        subprocess.run(["ip", *line.split()], check=True)
    subprocess.run(["ip", "link", "set", "tstfault", "up"], check=True)
    try:
        yield task
    finally:
        subprocess.run(["ip", "link", "del", "tstfault"], check=True)


def _connect_s(task: Task, address: str, timeout_s: float) -> float:
    """Seconds that a handshake takes."""

    def work() -> float:
        started = time.monotonic()
        socket.create_connection((address, 8080), timeout=timeout_s).close()
        return time.monotonic() - started

    return run_in_namespace(task.netns_fd, work)


def _start(task: Task, fault: str, body: dict[str, object]) -> None:
    """Starts a fault of netem; without it the answer says so, which is all that can be tested."""
    path = f"/api/{task.source.runtime_id}/fault/v1/{fault}/start"
    status, answer = task.ask("POST", path, body)
    if status == 500 and not os.environ.get("FARGATELITE_TEST_GUEST"):
        assert "CONFIG_NET_SCH_NETEM" in answer["Error"]
        pytest.skip("this kernel has no netem")
    assert (status, answer) == (200, {"Status": "running"})


def test_latency_delays_the_chosen_until_it_is_stopped(wired_task: Task) -> None:
    base = f"/api/{wired_task.source.runtime_id}/fault/v1"
    asked = {
        "DelayMilliseconds": 900, "JitterMilliseconds": 0,
        "Sources": ["198.51.100.0/24"], "SourcesToFilter": [OTHER],
    }  # fmt: skip
    with socket.create_server(("", 8080)):
        undisturbed_s = _connect_s(wired_task, PEER, patient(5))
        _start(wired_task, "network-latency", asked)
        assert _connect_s(wired_task, PEER, patient(5)) >= 0.9
        assert _connect_s(wired_task, OTHER, patient(5)) < 0.9
        assert wired_task.ask("POST", f"{base}/network-latency/status") == (
            200, {"Status": "running"},
        )  # fmt: skip
        assert wired_task.ask("POST", f"{base}/network-packet-loss/status") == (
            200, {"Status": "not-running"},
        )  # fmt: skip
        loss = {"LossPercent": 5, "Sources": [PEER]}
        assert wired_task.ask("POST", f"{base}/network-packet-loss/start", loss) == (
            409, {"Error": "There is already one network latency fault running"},
        )  # fmt: skip
        for _ in range(2):
            assert wired_task.ask("POST", f"{base}/network-latency/stop") == (
                200, {"Status": "stopped"},
            )  # fmt: skip
        assert _connect_s(wired_task, PEER, patient(5)) < 0.9
    assert undisturbed_s < 0.9


def test_packets_are_lost_until_it_is_stopped(wired_task: Task) -> None:
    base = f"/api/{wired_task.source.runtime_id}/fault/v1/network-packet-loss"
    with socket.create_server(("", 8080)):
        _start(wired_task, "network-packet-loss", {"LossPercent": 100, "Sources": [PEER]})
        with pytest.raises(TimeoutError):
            _connect_s(wired_task, PEER, 0.5)
        _connect_s(wired_task, OTHER, patient(5))
        assert wired_task.ask("POST", f"{base}/status") == (200, {"Status": "running"})
        assert wired_task.ask("POST", f"{base}/stop") == (200, {"Status": "stopped"})
        _connect_s(wired_task, PEER, patient(5))


def test_a_share_of_flows_is_refused_and_not_ignored(new_task: NewTask) -> None:
    task = new_task(can_inject=True)
    path = f"/api/{task.source.runtime_id}/fault/v1/network-packet-loss/start"
    status, body = task.ask(
        "POST", path, {"LossPercent": 5, "Sources": ["1.2.3.4"], "FlowsPercent": 50}
    )
    assert status == 400
    assert "flowsPercent below 100 is not supported here" in body["Error"]
