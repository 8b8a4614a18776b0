"""A private "host" with a "world" behind it, and task namespaces owned by their own user namespace.

Nothing of the machine's own network is touched: every namespace is made here and ends here.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from fargatelite.names import new_task_id
from fargatelite.network.connect import connect, disconnect
from fargatelite.network.firewall import TABLE
from fargatelite.network.namespaces import run_in_namespace
from fargatelite.network.slot import PortPublication, Slot, slot_for
from fargatelite.security_groups import SecurityGroup

T = TypeVar("T")
OPEN_DOOR = [
    f"insert rule {TABLE} {chain} accept"
    for chain in ("arriving", "input", "egress", "forward", "leaving")
]
"""Commands that take the firewall's say away."""
SUBNET = "10.213.0.0/20"
HOST_ADDRESS, WORLD_ADDRESS, IMDS = "198.51.100.1", "198.51.100.2", "169.254.169.254"
CLONE_NEWNET = 0x40000000


def new_namespace() -> int:
    """A descriptor of a new network namespace."""
    found: list[int] = []

    def work() -> None:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
        found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


class Net:
    """The private host; `on_host` and `on_world` run a function there."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.host, self.world = new_namespace(), new_namespace()
        stack.callback(os.close, self.host)
        stack.callback(os.close, self.world)
        self.count = 0
        self.ip(self.host, "link set lo up")
        self.ip(
            self.host, f"link add up0 mtu 1400 type veth peer name up1 netns /dev/fd/{self.world}"
        )
        for namespace, name, address in (
            (self.host, "up0", HOST_ADDRESS),
            (self.world, "up1", WORLD_ADDRESS),
        ):
            self.ip(namespace, f"addr add {address}/24 dev {name}")
            self.ip(namespace, f"link set {name} up")
        self.ip(self.host, f"route add default via {WORLD_ADDRESS}")
        self.ip(self.world, "link set lo up")
        self.ip(self.world, f"addr add {IMDS}/32 dev lo")

    def ip(self, namespace: int, arguments: str, *passed: int) -> str:
        def work() -> str:
            command = ["ip", *arguments.split()]
            result = subprocess.run(
                command, capture_output=True, text=True, pass_fds=[self.host, self.world, *passed]
            )
            assert result.returncode == 0, (arguments, result.stderr)
            return result.stdout

        return run_in_namespace(namespace, work)

    def on_host(self, work: Callable[[], T]) -> T:
        return run_in_namespace(self.host, work)

    def on_world(self, work: Callable[[], T]) -> T:
        return run_in_namespace(self.world, work)

    def add_neighbour(self) -> int:
        """A namespace on another interface of the host, which takes the host for its router."""
        neighbour = new_namespace()
        self._stack.callback(os.close, neighbour)
        self.ip(
            self.host,
            f"link add near0 type veth peer name near1 netns /dev/fd/{neighbour}",
            neighbour,
        )
        for namespace, name, address in (
            (self.host, "near0", "198.18.0.1"),
            (neighbour, "near1", "198.18.0.2"),
        ):
            self.ip(namespace, f"addr add {address}/24 dev {name}")
            self.ip(namespace, f"link set {name} up")
        self.ip(neighbour, "route add default via 198.18.0.1")
        return neighbour

    def bare_task(self) -> tuple[Slot, int]:
        """A slot and a namespace as the shim makes them, not connected."""
        process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._stack.callback(process.stdout.close)
        self._stack.callback(process.wait)
        self._stack.callback(process.stdin.close)
        assert process.stdout.readline() == b"ready\n"
        namespace = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._stack.callback(os.close, namespace)
        slot = slot_for(self.count, new_task_id(), SUBNET)
        self.count += 1
        return slot, namespace

    def task(
        self,
        *publish: PortPublication,
        groups: Sequence[SecurityGroup] = (),
        network_mbit: int = 0,
    ) -> tuple[Slot, int]:
        """A connected task."""
        slot, namespace = self.bare_task()
        self._stack.callback(lambda: self.on_host(lambda: disconnect(slot)))
        self.on_host(
            lambda: connect(
                slot, namespace, publish=publish, groups=groups, network_mbit=network_mbit
            )
        )
        return slot, namespace

    def reconnect(self, slot: Slot, namespace: int, groups: Sequence[SecurityGroup]) -> None:
        """Another task with that slot, in the same namespace."""
        self.on_host(lambda: connect(slot, namespace, groups=groups))

    def forwarding(self, interface: str) -> str:
        path = Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding")
        return self.on_host(lambda: path.read_text().strip())

    def drop_table(self) -> None:
        """Takes the defence away, to show that an attempt works without it."""
        from fargatelite.network import firewall

        def work() -> None:
            with firewall._locked() as context:
                # By rules of somebody else before ours: what goes away is restored (guard.py).
                firewall._run(context, "\n".join(OPEN_DOOR))

        self.on_host(work)


@pytest.fixture
def net() -> Iterator[Net]:
    with ExitStack() as stack:
        yield Net(stack)
