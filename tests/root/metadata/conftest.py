"""Network namespaces with a metadata address, and sources that answer from memory."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fargatelite.metadata.faults import FaultInjector
from fargatelite.metadata.routes import Credentials, Protection
from fargatelite.metadata.server import Handle, MetadataServer, open_endpoint
from fargatelite.metadata.shapes import MetadataContainer, MetadataTask
from fargatelite.metadata.stats import Reading
from fargatelite.names import new_task_id, runtime_id
from fargatelite.network.namespaces import run_in_namespace
from fargatelite.network.slot import METADATA_ADDRESS
from tests.fixtures.patience import patient

CLONE_NEWNET = 0x40000000


class TaskSource:
    """A task as its supervisor would know it."""

    def __init__(self, faults: FaultInjector | None) -> None:
        self.runtime_id = runtime_id(new_task_id(), 0)
        self.credentials_id: str | None = str(uuid.uuid4())
        self.faults = faults

    def describe(self) -> MetadataTask:
        return MetadataTask(
            cluster_arn="arn:aws:ecs:eu-central-1:123456789012:cluster/default",
            task_arn=f"arn:aws:ecs:eu-central-1:123456789012:task/default/{self.runtime_id[:32]}",
            family="web",
            revision=1,
            desired_status="RUNNING",
            known_status="RUNNING",
            containers=(
                MetadataContainer(
                    runtime_id=self.runtime_id,
                    name="app",
                    image="app:1",
                    desired_status="RUNNING",
                    known_status="RUNNING",
                ),
            ),
            cpu_units=256,
            memory_mib=512,
            is_fault_injection_enabled=self.faults is not None,
        )

    def readings(self, name: str) -> tuple[Reading | None, Reading] | None:
        return None

    def credentials(self) -> Credentials | None:
        return Credentials(
            role_arn="arn:aws:iam::123456789012:role/app",
            access_key_id="ASIAEXAMPLE",
            secret_access_key="secret-" + self.runtime_id,
            token="token",
            expires_at_ns=4_000_000_000_000_000_000,
        )

    def protection(self) -> Protection | None:
        return None

    def protect(self, is_enabled: bool, expires_in_minutes: int) -> Protection | None:
        return None


class Task:
    """A served namespace; `get` and `send` speak from inside of it."""

    def __init__(self, netns_fd: int, server: MetadataServer, *, can_inject: bool) -> None:
        self.netns_fd = netns_fd
        self.sources: list[TaskSource] = []

        def make(faults: FaultInjector) -> TaskSource:
            self.sources.append(TaskSource(faults if can_inject else None))
            return self.sources[0]

        self.handle: Handle = server.add_task(open_endpoint(netns_fd), make)
        self.source = self.sources[0]

    def connect(self, port: int = 80) -> socket.socket:
        return run_in_namespace(
            self.netns_fd,
            lambda: socket.create_connection((METADATA_ADDRESS, port), timeout=patient(5)),
        )

    def raw(self, data: bytes) -> bytes:
        with self.connect() as client:
            client.sendall(data)
            return b"".join(iter(lambda: client.recv(65536), b""))

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        got = self.raw(head.encode() + data)
        status, _, answered = got.partition(b"\r\n\r\n")
        return int(status.split()[1]), json.loads(answered)


def new_namespace() -> int:
    """A namespace whose lo is up and has the metadata address."""
    found: list[int] = []

    def work() -> None:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
        found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        for line in ("link set lo up", f"addr add {METADATA_ADDRESS}/32 dev lo"):
            subprocess.run(["ip", *line.split()], check=True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    served = MetadataServer()
    try:
        yield served
    finally:
        served.close()


@pytest.fixture
def new_task(server: MetadataServer) -> Iterator[Callable[..., Task]]:
    opened: list[int] = []

    def make(*, can_inject: bool = False) -> Task:
        opened.append(new_namespace())
        return Task(opened[-1], server, can_inject=can_inject)

    try:
        yield make
    finally:
        server.close()
        for netns_fd in opened:
            os.close(netns_fd)
