"""What a task's network is, as data, and the texts that its containers read about it.

Every number of a slot follows from its index and the subnet, so a slot file needs only the index
and the task id. The first address of the subnet is every task's gateway, slot i has number 2 + i.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum

from msgspec import Struct

from fargatelite.names import TaskId, interface_name

__all__ = [
    "MAX_SLOTS",
    "METADATA_ADDRESS",
    "TASK_INTERFACE",
    "UID_COUNT",
    "PortPublication",
    "Protocol",
    "Slot",
    "hosts_text",
    "resolv_conf_text",
    "slot_for",
]

MAX_SLOTS = 4093
"""A /20 without its network address, the gateway and the broadcast address."""

UID_COUNT = 65536
"""Ids of a task's user namespace; all of 16 bits, as images use any of them."""

METADATA_ADDRESS = "169.254.170.2"
"""On every task's own lo: where SDKs look for credentials and metadata (contract 4.5, 5)."""

TASK_INTERFACE = "eth1"
"""What Fargate's metadata calls the task's interface (contract 5.4)."""

_FIRST_UID = 0x70000000
"""Above the ranges of useradd (subuid from 100000), systemd-nspawn and DynamicUser."""


class Protocol(StrEnum):
    """ECS's names of transport protocols in portMappings (contract 2.3)."""

    TCP = "tcp"
    UDP = "udp"


class PortPublication(Struct, frozen=True, kw_only=True):
    """A port of the task that answers on an address of the host."""

    host_address: str = "127.0.0.1"
    """An IPv4 address of the host; loopback is reachable from the host only."""
    host_port: int
    container_port: int
    protocol: Protocol = Protocol.TCP


class Slot(Struct, frozen=True, kw_only=True):
    """A task's ids and addresses."""

    index: int
    task_id: TaskId
    uid_base: int
    """First host id of the task's user namespace; group ids are the same."""
    uid_count: int
    address: str
    prefix_length: int
    """Of the subnet: what the task is told. Its interface itself has a /32 (no neighbours)."""
    gateway: str
    mac: str
    host_interface: str
    task_interface: str
    subnet: str
    """All tasks' addresses of this run root, such as `10.213.0.0/20`."""


def slot_for(index: int, task_id: TaskId, subnet: str) -> Slot:
    """The slot with that index. Raises: ValueError when it is not within the subnet."""
    network = ipaddress.IPv4Network(subnet)
    if not 0 <= index < min(MAX_SLOTS, network.num_addresses - 3):
        raise ValueError(f"{subnet} has no slot {index}")
    address = network[2 + index]
    return Slot(
        index=index,
        task_id=task_id,
        uid_base=_FIRST_UID + index * UID_COUNT,
        uid_count=UID_COUNT,
        address=str(address),
        prefix_length=network.prefixlen,
        gateway=str(network[1]),
        # 0a:58 marks a locally administered address made from an IPv4 one, as CNI plugins do.
        mac="0a:58:" + ":".join(f"{byte:02x}" for byte in address.packed),
        host_interface=interface_name(task_id),
        task_interface=TASK_INTERFACE,
        subnet=subnet,
    )


def hosts_text(slot: Slot, hostname: str) -> str:
    """/etc/hosts of the task's containers (contract 4.4)."""
    return f"127.0.0.1 localhost\n{slot.address} {hostname}\n"


def resolv_conf_text(host_resolv_conf: str, upstream_resolv_conf: str | None = None) -> str:
    """/etc/resolv.conf of the task's containers, from the host's.

    A resolver on the host's loopback (127.0.0.53) is not the task's loopback: then the servers come
    from `upstream_resolv_conf`, the text of /run/systemd/resolve/resolv.conf. IPv6 servers are left
    out, since tasks have no IPv6. An answer without any nameserver line means that names cannot be
    resolved in the task.
    """
    servers = _servers(host_resolv_conf)
    if not servers and upstream_resolv_conf is not None:
        servers = _servers(upstream_resolv_conf)
    lines = [f"nameserver {server}" for server in servers]
    for source in (host_resolv_conf, upstream_resolv_conf or ""):
        kept = [
            " ".join(words)
            for words in map(str.split, source.splitlines())
            if words and words[0] in ("search", "domain", "options") and words[1:] != ["."]
        ]
        if kept:
            lines += kept
            break
    return "".join(f"{line}\n" for line in lines)


def _servers(resolv_conf: str) -> list[str]:
    """IPv4 nameservers that a task can reach, three at most as glibc reads (resolv.conf(5))."""
    found: list[str] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.IPv4Address(words[1])
        except ValueError:
            continue  # IPv6, or nonsense that the host's resolver skips as well
        if not address.is_loopback and not address.is_unspecified:
            found.append(str(address))
    return found[:3]
