"""What tasks may reach: one nftables table for all tasks, one set element per task.

Through libnftables (the `nftables` module), in this process. Everything about a task is an element
of `tasks` (and of `published` per port), so rules never change while tasks come and go; the last
element's removal takes the table with it. Changes are transactions, and processes take turns by a
lock on the network namespace itself.

* A packet from a task with another source address than the task's dies before anything sees it;
  so does one to 127.0.0.0/8 (CVE-2020-8558; route_localnet is on for published ports) and any IPv6
  (CVE-2020-13401).
* Tasks reach neither each other, nor 169.254.0.0/16, nor the host (its gateway answers pings).
  Egress is masqueraded.
* Another table that drops forwarded packets (Docker's policy) still does: accepting is not final.

A task's packets need `forwarding` on its own interface, and their answers on the one they arrive
at. That one is switched on where it is off, for IPv4 and per interface, instead of turning the
whole host into a router: what is not an answer to a task is dropped on these interfaces. The set
`opened` in the kernel records them; they are switched off again with the last task.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fargatelite.errors import HostUnsupported, NetworkFailed
from fargatelite.names import INTERFACE_PREFIX
from fargatelite.network.slot import PortPublication, Slot

__all__ = ["TABLE", "admit", "expel", "is_in_force", "list_admitted"]

TABLE = "inet fargatelite"

_OURS = f'"{INTERFACE_PREFIX}*"'
_PUBLISHED = "inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service"
_TO_PUBLISHED = "dnat ip to meta l4proto . ip daddr . th dport map @published"
_RULES = f"""
add table {TABLE}
add set {TABLE} tasks {{ type ifname . ipv4_addr; }}
add set {TABLE} opened {{ type ifname; }}
add map {TABLE} published {{ type {_PUBLISHED}; }}
add chain {TABLE} arriving {{ type filter hook prerouting priority raw; policy accept; }}
add chain {TABLE} input {{ type filter hook input priority filter; policy accept; }}
add chain {TABLE} forward {{ type filter hook forward priority filter; policy accept; }}
add chain {TABLE} translate {{ type nat hook prerouting priority dstnat; policy accept; }}
add chain {TABLE} translate_local {{ type nat hook output priority -100; policy accept; }}
add chain {TABLE} leaving {{ type nat hook postrouting priority srcnat; policy accept; }}
add rule {TABLE} arriving iifname != {_OURS} return
add rule {TABLE} arriving meta nfproto != ipv4 drop
add rule {TABLE} arriving iifname . ip saddr != @tasks drop
add rule {TABLE} arriving ip daddr 127.0.0.0/8 drop
add rule {TABLE} input iifname != {_OURS} return
add rule {TABLE} input ct state established,related accept
add rule {TABLE} input ip daddr %(gateway)s icmp type echo-request accept
add rule {TABLE} input drop
add rule {TABLE} forward iifname {_OURS} oifname {_OURS} drop
add rule {TABLE} forward iifname {_OURS} ip daddr 169.254.0.0/16 drop
add rule {TABLE} forward iifname {_OURS} accept
add rule {TABLE} forward oifname {_OURS} ct state established,related accept
add rule {TABLE} forward oifname {_OURS} ct status dnat accept
add rule {TABLE} forward oifname {_OURS} drop
add rule {TABLE} forward iifname @opened drop
add rule {TABLE} translate iifname != {_OURS} {_TO_PUBLISHED}
add rule {TABLE} translate_local {_TO_PUBLISHED}
add rule {TABLE} leaving oifname {_OURS} ip saddr 127.0.0.0/8 masquerade
add rule {TABLE} leaving iifname {_OURS} oifname != {_OURS} masquerade
"""

_thread_lock = threading.Lock()
_kept: tuple[tuple[int, int], Any] | None = None
"""Process and namespace of the newest context, and the context; under the lock."""


def _open_context() -> Any:
    """A libnftables context, bound to the calling thread's network namespace.

    Raises: HostUnsupported without libnftables.
    """
    try:
        import nftables

        context = nftables.Nftables()
    except (ImportError, OSError) as error:
        raise HostUnsupported("libnftables is missing: apt-get install libnftables1") from error
    context.set_json_output(True)
    context.set_numeric_proto_output(True)
    return context


def _context_for(namespace: int) -> Any:
    """The kept context when it is of that namespace (and not of a forked parent), else a new one.

    Kept because closing its socket after a change waits for an RCU grace period, 11 ms here
    (nft_rcv_nl_event in the kernel). Its socket keeps the namespace and with it the inode number.
    """
    global _kept
    key = (os.getpid(), os.fstat(namespace).st_ino)
    if _kept is None or _kept[0] != key:
        _kept = (key, _open_context())
    return _kept[1]


def admit(slot: Slot, interfaces: Sequence[str], publish: Sequence[PortPublication] = ()) -> None:
    """Lets the task's traffic through, and opens `interfaces` to its answers; may be repeated.

    Raises: NetworkFailed, also when a published address and port is another task's.
    """
    elements = [f'add element {TABLE} tasks {{ "{slot.host_interface}" . {slot.address} }}']
    elements += [
        f"add element {TABLE} published {{ {port.protocol.value} . {port.host_address} . "
        f"{port.host_port} : {slot.address} . {port.container_port} }}"
        for port in publish
    ]
    closed = [name for name in interfaces if _read_forwarding(name) == "0"]
    elements += [f'add element {TABLE} opened {{ "{name}" }}' for name in closed]
    with _locked() as context:
        rules = "" if _exists(context) else _RULES % {"gateway": slot.gateway}
        code, _, error = context.cmd(rules + "\n".join(elements))
        if code != 0 and _NO_NFTABLES in error:
            raise HostUnsupported(
                "this kernel has no nftables: load the module nf_tables, or use a kernel with "
                "CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"
            )
        if code != 0:
            action = f"set the firewall up for {slot.host_interface}"
            if publish and "exist" in error.lower():
                action += ": a published port is taken by another task"
            raise NetworkFailed(f"cannot {action}: {error.strip()}", path=TABLE)
        for name in closed:
            _write_forwarding(name, "1")


def expel(slot: Slot) -> None:
    """Removes all that `admit` added for the task, with the last one the table; may be repeated.

    Raises: NetworkFailed.
    """
    with _locked() as context:
        if not _exists(context):
            return
        admitted = _elements(context, "set", "tasks")
        own = [key for key in admitted if slot.address in key]
        if len(own) == len(admitted):
            for (name,) in _elements(context, "set", "opened"):
                _write_forwarding(name, "0")
            _run(context, f"delete table {TABLE}")
            return
        commands = [f'delete element {TABLE} tasks {{ "{key[0]}" . {key[1]} }}' for key in own]
        commands += [
            f"delete element {TABLE} published {{ {' . '.join(key[:3])} }}"
            for key in _elements(context, "map", "published")
            if key[3] == slot.address
        ]
        if commands:
            _run(context, "\n".join(commands))


def list_admitted() -> list[tuple[str, str]]:
    """(host interface, address) of every task in the firewall, for gc. Raises: NetworkFailed."""
    with _locked() as context:
        if not _exists(context):
            return []
        return sorted((key[0], key[1]) for key in _elements(context, "set", "tasks"))


def is_in_force(slot: Slot) -> bool:
    """Whether the task is still in the firewall: `nft flush ruleset` by others removes it.

    CVE-2025-54388: a reload by firewalld dropped isolation. If False, admit the task again.
    """
    return (slot.host_interface, slot.address) in list_admitted()


_NO_NFTABLES = "cache initialization failed: Invalid argument"
"""libnftables' words where netfilter's netlink knows no nf_tables."""


def _exists(context: Any) -> bool:
    code, output, error = context.cmd("list tables inet")
    if code != 0 and _NO_NFTABLES in error:
        return False  # so nothing of ours is to be removed
    if code != 0:
        raise NetworkFailed(f"cannot list nftables tables: {error.strip()}")
    family, name = TABLE.split()
    return any(
        item.get("table", {}).get("name") == name and item["table"]["family"] == family
        for item in json.loads(output or '{"nftables": []}')["nftables"]
    )


def _elements(context: Any, kind: str, name: str) -> list[tuple[str, ...]]:
    """Keys of a set's elements as strings; of a map's, key and value in one tuple."""
    output = _run(context, f"list {kind} {TABLE} {name}")
    for item in json.loads(output)["nftables"]:
        if kind in item:
            return [_flatten(element) for element in item[kind].get("elem", [])]
    return []


def _flatten(element: Any) -> tuple[str, ...]:
    """libnftables-json(5): a concatenation is {"concat": [...]}, a map's element [key, value]."""
    if isinstance(element, dict):
        if "concat" in element:
            return tuple(part for item in element["concat"] for part in _flatten(item))
        if "elem" in element:
            return _flatten(element["elem"]["val"])
    if isinstance(element, list):
        return tuple(part for item in element for part in _flatten(item))
    return (str(element),)


def _run(context: Any, commands: str) -> str:
    code, output, error = context.cmd(commands)
    if code != 0:
        raise NetworkFailed(
            f"nftables refused {commands.splitlines()[0]!r}: {error.strip()}", path=TABLE
        )
    return str(output)


@contextlib.contextmanager
def _locked() -> Iterator[Any]:
    """A context, for one process at a time per network namespace.

    The lock is flock(2) on the namespace's own file.

    Without it the last task's `delete table` could take along a task that was added meanwhile.
    """
    with _thread_lock:
        descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _context_for(descriptor)
        finally:
            os.close(descriptor)


def _forwarding(name: str) -> Path:
    return Path("/proc/sys/net/ipv4/conf", name, "forwarding")


def _read_forwarding(name: str) -> str:
    try:
        return _forwarding(name).read_text().strip()
    except FileNotFoundError:
        return ""  # the interface went away since the routes were read


def _write_forwarding(name: str, value: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # it went away, and its setting with it
        _forwarding(name).write_text(value)
