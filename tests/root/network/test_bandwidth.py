"""What a task may send and receive (`task_network_mbit`), measured by what arrives."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import pytest

from fargatelite.network import firewall
from fargatelite.network.connect import disconnect, leftover_addresses, readmit
from fargatelite.network.namespaces import run_in_namespace
from tests.fixtures.patience import patient

from .conftest import WORLD_ADDRESS, Net
from .test_connect import nft

pytestmark = [pytest.mark.root, pytest.mark.vm]

MBIT = 16
BYTES_PER_S = MBIT * 125_000
BURST = BYTES_PER_S
"""A second's worth may come at once."""
SIZE = 6 << 20


def receive_all(server: socket.socket) -> float:
    """Seconds from the first byte that a client sends to its last."""
    connection, _ = server.accept()
    with connection:
        connection.settimeout(patient(30))
        count = len(connection.recv(1))
        began = time.monotonic()
        while data := connection.recv(1 << 16):
            count += len(data)
        assert count == SIZE
        return time.monotonic() - began


def send_all(address: str, port: int) -> None:
    with socket.create_connection((address, port), patient(10)) as client:
        client.settimeout(patient(30))
        client.sendall(bytes(SIZE))


def transfer_s(source: int, target: int, address: str) -> float:
    """Seconds that SIZE bytes take from one namespace to another, by TCP."""
    server = run_in_namespace(target, lambda: socket.create_server((address, 5000)))
    with server:
        server.settimeout(patient(10))
        took: list[float] = []
        reader = threading.Thread(target=lambda: took.append(receive_all(server)))
        reader.start()
        run_in_namespace(source, lambda: send_all(address, 5000))
        reader.join()
    return took[0]


LEAST_S = (SIZE - BURST) / BYTES_PER_S
"""What the bound asks for; TCP, which loses packets to it, may take three times that."""


def ways(net: Net, task: int, address: str) -> dict[str, Callable[[], float]]:
    return {
        "sent": lambda: transfer_s(task, net.world, WORLD_ADDRESS),
        "received": lambda: transfer_s(net.host, task, address),
    }


@pytest.mark.parametrize("way", ["sent", "received"])
def test_a_task_is_held_to_it_and_others_are_not(net: Net, way: str) -> None:
    slot, bounded = net.task(network_mbit=MBIT)
    other, free = net.task()
    took = ways(net, bounded, slot.address)[way]()
    assert LEAST_S * 0.9 < took < LEAST_S * patient(3), took
    assert ways(net, free, other.address)[way]() < LEAST_S / 2


def test_each_task_has_its_own(net: Net) -> None:
    """Two tasks of one rate at once: each as fast as alone, not half."""
    tasks = [net.task(network_mbit=MBIT) for _ in range(2)]
    took: list[float] = []

    def run(address: str, task: int) -> None:
        took.append(ways(net, task, address)["received"]())

    threads = [threading.Thread(target=run, args=(slot.address, task)) for slot, task in tasks]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(took) > LEAST_S * 0.9
    assert time.monotonic() - began < 2 * LEAST_S * patient(1.5)


def test_a_flood_does_not_get_through(net: Net) -> None:
    """UDP, which does not care whether anything arrives."""
    _, task = net.task(network_mbit=MBIT)
    payload = bytes(1200)

    def flood() -> tuple[int, float]:
        began = time.monotonic()
        sent = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while sent < 3 * (BURST + BYTES_PER_S * (time.monotonic() - began)):
                assert time.monotonic() - began < patient(20)
                sent += sender.sendto(payload, (WORLD_ADDRESS, 5100))
        return sent, time.monotonic() - began

    def greet() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"first", (WORLD_ADDRESS, 5100))

    def listen() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
        opened.bind((WORLD_ADDRESS, 5100))
        return opened

    with run_in_namespace(net.world, listen) as server:
        server.settimeout(patient(10))
        run_in_namespace(task, greet)  # until the link knows its neighbours, nothing gets through
        assert server.recv(10) == b"first"
        sent, took = run_in_namespace(task, flood)
        server.settimeout(patient(0.5))  # a busy kernel delivers after sendto(2) has returned
        arrived = 0
        with contextlib.suppress(TimeoutError):
            while data := server.recv(2048):
                arrived += len(data)
    assert BURST * 0.5 < arrived < (BURST + BYTES_PER_S * took) * 1.1 < sent / 2


def test_who_takes_a_task_over_and_who_flushes_rules_leave_it_bounded(net: Net) -> None:
    slot, _ = net.task(network_mbit=MBIT)
    net.on_host(lambda: readmit(slot, network_mbit=MBIT))
    table = firewall.TABLE.split()

    def listed() -> str:
        return net.on_host(lambda: nft("list", "table", *table))

    for command in (
        ("flush", "ruleset"), ("delete", "chain", *table, "sending"),
        ("flush", "chain", *table, f"receive_{MBIT}"), ("flush", "map", *table, "receivers"),
    ):  # fmt: skip
        net.on_host(lambda command=command: nft(*command))
        deadline = time.monotonic() + patient(10)
        while (
            listed().count(f"{slot.address} : jump") != 2
            or listed().count(f"limit rate over {BYTES_PER_S} bytes/second") < 2
            or "ip saddr vmap @senders" not in listed()
        ):
            assert time.monotonic() < deadline, (command, listed())


def test_nothing_of_it_is_left(net: Net) -> None:
    first, task = net.task(network_mbit=MBIT)
    second, _ = net.task(network_mbit=2 * MBIT)
    ways(net, task, first.address)["sent"]()
    assert len(net.on_host(leftover_addresses)) == 2
    net.on_host(lambda: disconnect(first))
    listed = net.on_host(lambda: nft("list", "table", *firewall.TABLE.split()))
    assert first.address not in listed.replace(f"{first.address} ct count", "")
    assert second.address in listed
    net.on_host(lambda: disconnect(second))
    assert net.on_host(lambda: nft("list", "tables")) == ""
