"""Security groups, by real packets between tasks, the host and the world."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from fargatelite.network import firewall, rules
from fargatelite.network.connect import disconnect, readmit
from fargatelite.network.namespaces import run_in_namespace
from fargatelite.network.slot import PortPublication
from fargatelite.security_groups import GroupDefinition, SecurityGroup, define_groups

from .conftest import HOST_ADDRESS, IMDS, WORLD_ADDRESS, Net
from .test_connect import listen, reach, udp

pytestmark = [pytest.mark.root, pytest.mark.vm]

CLOSED_S = 0.3
OPEN_S = 10.0  # a busy machine answers late
ALL = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}


def tcp(port: int, to_port: int | None = None, **more: Any) -> dict[str, Any]:
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": to_port or port, **more}


def of_group(name: str) -> dict[str, Any]:
    return {"UserIdGroupPairs": [{"GroupName": name}]}


def of_range(*cidrs: str) -> dict[str, Any]:
    return {"IpRanges": [{"CidrIp": cidr} for cidr in cidrs]}


def groups(**definitions: dict[str, Any]) -> dict[str, SecurityGroup]:
    named = [group | {"name": name} for name, group in definitions.items()]
    return define_groups(msgspec.convert(named, tuple[GroupDefinition, ...]))


def is_open(namespace: int, address: str, port: int, within_s: float = CLOSED_S) -> bool:
    try:
        reach(namespace, address, port, within_s)
    except TimeoutError:
        return False
    return True


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline


def elements(net: Net) -> frozenset[rules.Element]:
    def read() -> frozenset[rules.Element]:
        with firewall._locked() as context:
            found = firewall._read(context)
            return frozenset() if found is None else found.elements

    return net.on_host(read)


def test_a_group_reference_lets_that_group_in_and_nobody_else(net: Net) -> None:
    made = groups(lb={}, web={"ingress": [tcp(80, **of_group("lb"))]}, other={})
    slot, web = net.task(groups=[made["web"]])
    _, balancer = net.task(groups=[made["lb"]])
    _, stranger = net.task(groups=[made["other"]])
    _, groupless = net.task()
    with listen(web, "0.0.0.0", 80), listen(web, "0.0.0.0", 81):
        assert is_open(balancer, slot.address, 80, OPEN_S)
        assert not is_open(balancer, slot.address, 81)
        assert not is_open(stranger, slot.address, 80)
        assert not is_open(groupless, slot.address, 80)
        assert is_open(net.host, slot.address, 80, OPEN_S)  # the host's own, as ever


def test_a_reference_means_whoever_is_in_the_group_now(net: Net) -> None:
    made = groups(lb={}, web={"ingress": [tcp(80, **of_group("lb"))]})
    slot, web = net.task(groups=[made["web"]])
    first_slot, first = net.task(groups=[made["lb"]])
    with listen(web, "0.0.0.0", 80):
        assert is_open(first, slot.address, 80, OPEN_S)
        _, second = net.task(groups=[made["lb"]])  # starts later
        assert is_open(second, slot.address, 80, OPEN_S)
        net.on_host(lambda: disconnect(first_slot))
        members = {item.key for item in elements(net) if item.name.startswith("members_")}
        assert (first_slot.address,) not in members
        assert is_open(second, slot.address, 80, OPEN_S)


def test_ranges_ports_and_protocols(net: Net) -> None:
    made = groups(
        client={},
        server={
            "ingress": [
                tcp(8000, 8002, **of_range("10.213.0.0/20")),
                tcp(9000, **of_range("192.0.2.0/24", "192.0.2.128/25")),
                {"IpProtocol": "17", "FromPort": 53, "ToPort": 53, **of_range("10.213.0.0/20")},
            ]
        },
    )  # fmt: skip
    slot, server = net.task(groups=[made["server"]])
    _, client = net.task(groups=[made["client"]])
    for port, expected in ((7999, False), (8000, True), (8002, True), (8003, False), (9000, False)):
        with listen(server, "0.0.0.0", port):
            within_s = OPEN_S if expected else CLOSED_S
            assert is_open(client, slot.address, port, within_s) is expected, port
    with udp(server, "0.0.0.0", 53) as named, udp(server, "0.0.0.0", 54) as other:
        with udp(client, "0.0.0.0", 0) as asking:
            asking.sendto(b"closed", (slot.address, 54))
            asking.sendto(b"question", (slot.address, 53))
            question, sender = named.recvfrom(100)
            named.sendto(b"answer to " + question, sender)  # no rule of either lets it: stateful
            assert asking.recv(100) == b"answer to question"
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(100)


def test_icmp_by_type(net: Net) -> None:
    echo = {"IpProtocol": "icmp", "FromPort": 8, "ToPort": -1, **of_range("0.0.0.0/0")}
    made = groups(client={}, pinged={"ingress": [echo]})
    slot, _ = net.task(groups=[made["pinged"]])
    other, _ = net.task(groups=[made["client"]])
    _, client = net.task(groups=[made["client"]])
    net.ip(client, "link set lo up")

    def ping(address: str) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as opened:
            opened.settimeout(CLOSED_S)
            opened.sendto(bytes.fromhex("0800f7fd00010001"), (address, 0))
            try:
                return opened.recv(100)[20] == 0
            except TimeoutError:
                return False

    assert run_in_namespace(client, lambda: ping(slot.address))
    assert not run_in_namespace(client, lambda: ping(other.address))


def test_egress_is_what_the_groups_let_out(net: Net) -> None:
    made = groups(
        none={"egress": []},
        https={"egress": [tcp(443, **of_range("198.51.100.0/24"))]},
        web={"ingress": [ALL]},
    )
    slot, web = net.task(groups=[made["web"]])
    _, mute = net.task(groups=[made["none"]])
    _, https = net.task(groups=[made["https"]])
    _, both = net.task(groups=[made["none"], made["https"]])
    with listen(net.world, WORLD_ADDRESS, 443), listen(net.world, WORLD_ADDRESS, 80):
        assert not is_open(mute, WORLD_ADDRESS, 443)
        for task in (https, both):
            assert is_open(task, WORLD_ADDRESS, 443, OPEN_S)
            assert not is_open(task, WORLD_ADDRESS, 80)
    with listen(web, "0.0.0.0", 443):
        assert not is_open(https, slot.address, 443)  # let in, but not let out
    with listen(mute, "0.0.0.0", 80):
        mute_address = net.ip(mute, "-o -4 addr show eth1").split("inet ")[1].split("/")[0]
        assert is_open(net.host, mute_address, 80, OPEN_S)  # its answers are no egress


def test_host_and_link_local_only_by_single_addresses(net: Net) -> None:
    ranges = {"IpProtocol": "-1", **of_range("198.51.100.0/24", "169.254.0.0/16")}
    made = groups(
        wide={"egress": [ALL, ranges]},
        named={"egress": [tcp(5432, **of_range(f"{HOST_ADDRESS}/32", f"{IMDS}/32"))]},
    )
    _, wide = net.task(groups=[made["wide"]])
    _, named = net.task(groups=[made["named"]])
    for namespace, address in ((net.host, HOST_ADDRESS), (net.world, IMDS)):
        with listen(namespace, address, 5432), listen(namespace, address, 22):
            assert not is_open(wide, address, 5432)
            assert is_open(named, address, 5432, OPEN_S)
            assert not is_open(named, address, 22)


def test_published_ports_of_a_grouped_task(net: Net) -> None:
    made = groups(web={"ingress": [tcp(80, **of_range(f"{WORLD_ADDRESS}/32"))]}, closed={})
    outside = PortPublication(host_address=HOST_ADDRESS, host_port=8080, container_port=80)
    shut = PortPublication(host_address=HOST_ADDRESS, host_port=8081, container_port=80)
    _, web = net.task(outside, groups=[made["web"]])
    _, closed = net.task(shut, groups=[made["closed"]])
    with listen(web, "0.0.0.0", 80), listen(closed, "0.0.0.0", 80):
        assert is_open(net.world, HOST_ADDRESS, 8080, OPEN_S)
        assert not is_open(net.world, HOST_ADDRESS, 8081)


@pytest.mark.parametrize(
    "command",
    ["flush ruleset", "flush table {}", "delete table {}", "flush chain {} group_ingress",
     "flush set {} grouped", "flush map {} ingress1", "flush set {} MEMBERS"],
)  # fmt: skip
def test_what_somebody_flushes_is_restored(net: Net, command: str) -> None:
    made = groups(lb={}, web={"ingress": [tcp(80, **of_group("lb"))]}, other={})
    slot, web = net.task(groups=[made["web"]])
    _, balancer = net.task(groups=[made["lb"]])
    _, stranger = net.task(groups=[made["other"]])
    before = elements(net)
    members = "members_" + made["lb"].group_id.removeprefix("sg-")

    def remove() -> None:
        with firewall._locked() as context:
            text = command.format(firewall.TABLE).replace("MEMBERS", members)
            code, _, error = context.cmd(text)
            assert code == 0, error

    net.on_host(remove)
    until(lambda: elements(net) == before and net.on_host(lambda: firewall.is_in_force(slot)))
    with listen(web, "0.0.0.0", 80):
        assert is_open(balancer, slot.address, 80, OPEN_S)
        assert not is_open(stranger, slot.address, 80)


def test_an_opened_interface_is_known_after_a_flush(net: Net) -> None:
    (slot, _) = net.task()
    assert net.forwarding("up0") == "1"

    def remove() -> None:
        with firewall._locked() as context:
            assert context.cmd("flush ruleset")[0] == 0

    net.on_host(remove)
    until(lambda: net.on_host(lambda: firewall.is_in_force(slot)))
    net.on_host(lambda: disconnect(slot))
    assert net.forwarding("up0") == "0"


def test_what_was_lost_while_nobody_looked_is_restored(net: Net) -> None:
    """The supervisor is gone, somebody flushes, another supervisor takes the tasks over."""
    from fargatelite.network import guard

    made = groups(web={"ingress": [tcp(80, **of_group("web"))]})
    slot, _ = net.task(groups=[made["web"]])

    def lose() -> None:
        guard.forget(slot)
        with firewall._locked() as context:
            assert context.cmd(f"flush table {firewall.TABLE}")[0] == 0
        assert not firewall.is_in_force(slot)
        readmit(slot, (), [made["web"]])

    net.on_host(lose)
    until(lambda: net.on_host(lambda: firewall.is_in_force(slot)))


def test_the_next_task_with_an_address_inherits_no_connection(net: Net) -> None:
    made = groups(lb={}, web={"ingress": [tcp(80, **of_group("lb"))]}, other={})
    slot, web = net.task(groups=[made["web"]])
    client_slot, client = net.task(groups=[made["lb"]])
    with listen(web, "0.0.0.0", 80) as server:

        def connect_once() -> socket.socket:
            return socket.create_connection((slot.address, 80), 5)

        with run_in_namespace(client, connect_once) as connection:
            accepted, _ = server.accept()
            net.on_host(lambda: disconnect(client_slot))
            net.reconnect(client_slot, client, [made["other"]])
            connection.send(b"still here?")
            accepted.settimeout(CLOSED_S)
            with accepted, pytest.raises(TimeoutError):
                accepted.recv(100)


def test_nothing_is_left_and_a_group_costs_elements_only(net: Net) -> None:
    made = groups(lb={}, web={"ingress": [tcp(80, **of_group("lb"))]})

    def count_rules() -> int:
        def read() -> int:
            with firewall._locked() as context:
                found = firewall._read(context)
                return 0 if found is None else sum(found.rules.values())

        return net.on_host(read)

    slots = [net.task(groups=[made["web"], made["lb"]])[0]]
    rules_of_one = count_rules()
    slots += [net.task(groups=[made["web"], made["lb"]])[0] for _ in range(3)]
    assert count_rules() == rules_of_one
    for slot in slots:
        net.on_host(lambda slot=slot: disconnect(slot))
        assert not {item for item in elements(net) if slot.address in item.key}
    assert count_rules() == 0
