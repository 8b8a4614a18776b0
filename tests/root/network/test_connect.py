"""Every rule is shown by real packets, in a private host's namespace."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
import time

import pytest

from fargatelite.errors import NetworkFailed
from fargatelite.network import firewall, rtnetlink
from fargatelite.network.connect import (
    connect,
    disconnect,
    leftover_addresses,
    leftover_interfaces,
)
from fargatelite.network.namespaces import run_in_namespace
from fargatelite.network.slot import METADATA_ADDRESS, PortPublication, Protocol
from tests.fixtures.patience import patient

from .conftest import HOST_ADDRESS, IMDS, WORLD_ADDRESS, Net

pytestmark = [pytest.mark.root, pytest.mark.vm]


def listen(namespace: int, address: str, port: int) -> socket.socket:
    def work() -> socket.socket:
        server = socket.create_server((address, port))
        server.settimeout(5)
        return server

    return run_in_namespace(namespace, work)


def reach(namespace: int, address: str, port: int, timeout_s: float = 5) -> None:
    def work() -> None:
        socket.create_connection((address, port), timeout=timeout_s).close()

    run_in_namespace(namespace, work)


def accept_from(server: socket.socket) -> str:
    connection, (address, _) = server.accept()
    connection.close()
    return str(address)


def udp(namespace: int, address: str, port: int) -> socket.socket:
    def work() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind((address, port))
        opened.settimeout(5)
        return opened

    return run_in_namespace(namespace, work)


def test_host_reaches_task_and_task_reaches_world(net: Net) -> None:
    slot, task = net.task()
    with listen(task, "0.0.0.0", 80) as server:
        reach(net.host, slot.address, 80)
        assert accept_from(server) == slot.gateway
        reach(task, "127.0.0.1", 80)
        assert accept_from(server) == "127.0.0.1"
    with listen(net.world, WORLD_ADDRESS, 443) as server:
        reach(task, WORLD_ADDRESS, 443)
        assert accept_from(server) == HOST_ADDRESS  # masqueraded
    assert "mtu 1400" in net.ip(task, "link show eth1")
    assert slot.mac in net.ip(task, "link show eth1")


def test_there_is_no_ipv6(net: Net) -> None:
    slot, task = net.task()
    assert "inet6" not in net.ip(task, "addr show eth1")
    assert "inet6" not in net.ip(net.host, f"addr show {slot.host_interface}")


def test_tasks_do_not_reach_each_other(net: Net) -> None:
    (_, first), (slot, second) = net.task(), net.task()
    with listen(second, "0.0.0.0", 80):
        with pytest.raises(TimeoutError):
            reach(first, slot.address, 80, 0.3)
        net.drop_table()
        reach(first, slot.address, 80)


def test_task_does_not_reach_the_host(net: Net) -> None:
    slot, task = net.task()
    with listen(net.host, "0.0.0.0", 22):
        for address in (slot.gateway, HOST_ADDRESS):
            with pytest.raises(TimeoutError):
                reach(task, address, 22, 0.3)
        net.drop_table()
        for address in (slot.gateway, HOST_ADDRESS):
            reach(task, address, 22)


def test_gateway_answers_pings(net: Net) -> None:
    slot, task = net.task()

    def ping() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as opened:
            opened.settimeout(5)
            opened.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FD, 1, 1), (slot.gateway, 0))
            return opened.recv(100)[20]

    assert run_in_namespace(task, ping) == 0


def test_link_local_services_of_the_host_are_out_of_reach(net: Net) -> None:
    _, task = net.task()
    with listen(net.world, IMDS, 80):
        reach(net.host, IMDS, 80)  # it is there
        with pytest.raises(TimeoutError):
            reach(task, IMDS, 80, 0.3)


def test_spoofed_source_dies(net: Net) -> None:
    (_, task), (other, _) = net.task(), net.task()
    net.ip(task, f"addr add {other.address}/32 dev eth1")
    with udp(net.world, WORLD_ADDRESS, 53) as server, udp(task, other.address, 5353) as spoofed:
        spoofed.sendto(b"spoofed", (WORLD_ADDRESS, 53))
        with udp(task, "0.0.0.0", 5354) as honest:
            honest.sendto(b"honest", (WORLD_ADDRESS, 53))
        assert server.recvfrom(100)[0] == b"honest"
        net.drop_table()
        spoofed.sendto(b"spoofed", (WORLD_ADDRESS, 53))
        # Without the table nothing is masqueraded either: the false address arrives.
        assert server.recvfrom(100) == (b"spoofed", (other.address, 5353))


def test_hosts_loopback_is_out_of_reach(net: Net) -> None:
    """CVE-2020-8558: a frame to 127.0.0.1 from a device with route_localnet."""
    slot, task = net.task()

    def send(payload: bytes) -> None:
        from_address = socket.inet_aton(slot.address)
        udp_part = struct.pack("!HHHH", 9, 5300, 8 + len(payload), 0) + payload
        fields = (0x45, 0, 20 + len(udp_part), 1, 0, 64, 17)
        header = struct.pack("!BBHHHBBH", *fields, 0) + from_address + socket.inet_aton("127.0.0.1")
        total = sum(struct.unpack("!10H", header))
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        header = header[:10] + struct.pack("!H", checksum) + header[12:]
        to_mac = bytes.fromhex(host_mac.replace(":", ""))
        frame = to_mac + bytes.fromhex(slot.mac.replace(":", "")) + b"\x08\x00" + header + udp_part
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
            opened.bind(("eth1", 0))
            opened.send(frame)

    host_mac = (
        net.ip(net.host, f"link show {slot.host_interface}").split("link/ether ")[1].split()[0]
    )
    with udp(net.host, "127.0.0.1", 5300) as server:
        run_in_namespace(task, lambda: send(b"guarded"))
        net.drop_table()
        run_in_namespace(task, lambda: send(b"unguarded"))
        assert server.recvfrom(100)[0] == b"unguarded"


def test_published_port_answers_on_loopback(net: Net) -> None:
    slot, task = net.task(
        PortPublication(host_port=18080, container_port=80),
        PortPublication(host_port=18053, container_port=53, protocol=Protocol.UDP),
    )
    with listen(task, "0.0.0.0", 80) as server:
        reach(net.host, "127.0.0.1", 18080)
        assert accept_from(server) == slot.gateway
    with udp(task, "0.0.0.0", 53) as server, udp(net.host, "0.0.0.0", 0) as client:
        client.sendto(b"question", ("127.0.0.1", 18053))
        question, sender = server.recvfrom(100)
        server.sendto(b"answer to " + question, sender)
        assert client.recvfrom(100) == (b"answer to question", ("127.0.0.1", 18053))


def test_port_published_outside_answers_the_world(net: Net) -> None:
    publication = PortPublication(host_address=HOST_ADDRESS, host_port=8080, container_port=80)
    slot, task = net.task(publication)
    with listen(task, "0.0.0.0", 80) as server:
        reach(net.world, HOST_ADDRESS, 8080)
        assert accept_from(server) == WORLD_ADDRESS
        net.ip(net.world, f"route add {slot.address} via {HOST_ADDRESS}")
        with pytest.raises(TimeoutError):
            reach(net.world, slot.address, 80, 0.3)  # only what is published


def test_port_taken_is_refused_and_leaves_nothing(net: Net) -> None:
    publication = PortPublication(host_port=18080, container_port=80)
    net.task(publication)
    slot, task = net.bare_task()
    with pytest.raises(NetworkFailed, match=r"127\.0\.0\.1:18080/tcp .* the task at 10\."):
        net.on_host(lambda: connect(slot, task, publish=[publication]))
    assert slot.host_interface not in net.on_host(leftover_interfaces)
    assert len(net.on_host(leftover_addresses)) == 1


def test_opened_host_forwards_nothing_for_others(net: Net) -> None:
    neighbour = net.add_neighbour()
    net.task()
    assert (net.forwarding("up0"), net.forwarding("near0")) == ("1", "1")
    with udp(net.world, WORLD_ADDRESS, 99) as server, udp(neighbour, "0.0.0.0", 0) as client:
        client.sendto(b"guarded", (WORLD_ADDRESS, 99))
        net.drop_table()
        client.sendto(b"unguarded", (WORLD_ADDRESS, 99))
        assert server.recvfrom(100)[0] == b"unguarded"


def test_nothing_is_left(net: Net) -> None:
    assert net.forwarding("up0") == "0"
    (first, _), (second, _) = net.task(), net.task(PortPublication(host_port=1, container_port=1))
    assert net.on_host(leftover_interfaces) == sorted([first.host_interface, second.host_interface])
    assert net.on_host(lambda: firewall.is_in_force(first))
    for _ in range(2):
        net.on_host(lambda: disconnect(first))
        assert net.on_host(leftover_addresses) == [(second.host_interface, second.address)]
        assert net.forwarding("up0") == "1"
    assert not net.on_host(lambda: firewall.is_in_force(first))
    for _ in range(2):
        net.on_host(lambda: disconnect(second))
        assert net.on_host(leftover_interfaces) == []
        assert net.on_host(leftover_addresses) == []
        assert net.forwarding("up0") == "0"
        routes = net.ip(net.host, "route show table all")
        assert "10.213" not in routes


def test_reconnect_replaces_a_leftover(net: Net) -> None:
    slot, task = net.task()
    net.on_host(lambda: rtnetlink.remove_link(slot.host_interface))
    net.on_host(lambda: connect(slot, task))
    with listen(task, "0.0.0.0", 80):
        reach(net.host, slot.address, 80)


def test_many_threads_at_once(net: Net) -> None:
    tasks = [net.bare_task() for _ in range(6)]
    failures: list[NetworkFailed] = []
    done: list[int] = []

    def live(index: int) -> None:
        slot, task = tasks[index]
        try:
            for _ in range(10):
                net.on_host(lambda: connect(slot, task))
                net.on_host(lambda: disconnect(slot))
            done.append(index)
        except NetworkFailed as error:
            failures.append(error)

    threads = [threading.Thread(target=live, args=(index,)) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(done) == 6
    assert net.on_host(leftover_addresses) == []


def test_the_metadata_address_is_the_tasks_own(net: Net) -> None:
    (_, first), (_, second) = net.task(), net.task()
    with listen(first, METADATA_ADDRESS, 51679):
        reach(first, METADATA_ADDRESS, 51679)
        with pytest.raises(OSError):
            reach(second, METADATA_ADDRESS, 51679)


def test_one_task_does_not_use_up_connection_tracking(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each datagram from another port is a connection in the host's one table."""

    def send_from_ports(task: int, count: int) -> None:
        def work() -> None:
            for _ in range(count):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    sender.sendto(b"x", (WORLD_ADDRESS, 5400))

        run_in_namespace(task, work)

    def arrived(server: socket.socket) -> int:
        # On a busy host a link that has just come up loses its first ARP request (the kernel gives
        # it its queue later); the next one comes after a second.
        server.settimeout(patient(1.5))
        count = 0
        with contextlib.suppress(TimeoutError):
            while server.recv(1):
                count += 1
        return count

    with udp(net.world, WORLD_ADDRESS, 5400) as server:
        monkeypatch.setattr(firewall, "_connections_bound", lambda: 20)
        slot, task = net.task()
        _, other = net.task()
        send_from_ports(task, 60)
        assert arrived(server) == 20
        send_from_ports(other, 10)
        assert arrived(server) == 10, "its own count"
        # Somebody's `nft flush` takes the bound away for a moment only.
        net.on_host(lambda: nft("delete", "chain", *firewall.TABLE.split(), "counted"))
        deadline = time.monotonic() + patient(10)
        while "ct count over 20" not in net.on_host(
            lambda: nft("list", "table", *firewall.TABLE.split())
        ):
            assert time.monotonic() < deadline
        # Without the bound all of it arrives.
        net.on_host(lambda: nft("insert", "rule", *firewall.TABLE.split(), "counted", "accept"))
        send_from_ports(task, 60)
        assert arrived(server) == 60
    net.on_host(lambda: disconnect(slot))
    assert (slot.host_interface, slot.address) not in net.on_host(leftover_addresses)


def nft(*command: str) -> str:
    """Somebody else's nft."""
    return subprocess.run(["nft", *command], capture_output=True, text=True, check=False).stdout
