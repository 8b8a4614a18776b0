"""What tasks may reach: one nftables table for all tasks, elements of its sets per task.

Through libnftables (the `nftables` module), in this process. rules.py has the rules, which never
change while tasks come and go, and what a task adds to the sets; the last task's removal takes the
table with it. Changes are transactions, and processes take turns by a lock on the network namespace
itself.

* A packet from a task with another source address than the task's dies before anything sees it;
  so does one to 127.0.0.0/8 (CVE-2020-8558; route_localnet is on for published ports) and any IPv6
  (CVE-2020-13401).
* Tasks reach neither each other, nor 169.254.0.0/16, nor the host (its gateway answers pings),
  unless security groups say so. Egress is masqueraded.
* A task has an eighth of the host's connection tracking at most: a full table refuses everybody.
* Another table that drops forwarded packets (Docker's policy) still does: accepting is not final.

A task's packets need `forwarding` on its own interface, and their answers on the one they arrive
at. That one is switched on where it is off, for IPv4 and per interface, instead of turning the
whole host into a router: what is not an answer to a task is dropped on these interfaces. The set
`opened` in the kernel records them; they are switched off again with the last task.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fargatelite.errors import HostUnsupported, NetworkFailed
from fargatelite.network import bandwidth, rules
from fargatelite.network.nft import open_context
from fargatelite.network.rules import TABLE, Element, Snapshot
from fargatelite.network.slot import PortPublication, Slot
from fargatelite.security_groups import SecurityGroup

__all__ = [
    "TABLE",
    "Admission",
    "Opening",
    "admit",
    "can_bound_bandwidth",
    "can_bound_connections",
    "expel",
    "is_in_force",
    "list_admitted",
    "restore",
]


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """A task as the firewall has it."""

    slot: Slot
    publish: tuple[PortPublication, ...] = ()
    groups: tuple[SecurityGroup, ...] = ()
    network_mbit: int = 0
    """What it may send and receive; 0: no bound."""

    def elements(self) -> list[Element]:
        """All that it adds to the sets."""
        return [
            *rules.elements_of(self.slot, self.publish, self.groups),
            *bandwidth.bandwidth_elements(self.slot.address, self.network_mbit),
        ]


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """What the host had not before a task was admitted."""

    interfaces: tuple[str, ...]
    """Those that had to be opened to answers."""
    has_new_rules: bool
    """Whether there was nothing of ours in the kernel: then nothing of it can have been lost."""


logger = logging.getLogger(__name__)

_thread_lock = threading.Lock()
_kept: tuple[tuple[int, int], Any] | None = None
"""Process and namespace of the newest context, and the context; under the lock."""


def _context_for(namespace: int) -> Any:
    """The kept context when it is of that namespace (and not of a forked parent), else a new one.

    Kept because closing its socket after a change waits for an RCU grace period, 11 ms here
    (nft_rcv_nl_event in the kernel). Its socket keeps the namespace and with it the inode number.
    """
    global _kept
    key = (os.getpid(), os.fstat(namespace).st_ino)
    if _kept is None or _kept[0] != key:
        context = open_context()
        context.set_numeric_proto_output(True)
        _kept = (key, context)
    return _kept[1]


def admit(task: Admission, interfaces: Sequence[str]) -> Opening:
    """Lets the task's traffic through, and opens `interfaces` to its answers; may be repeated.

    Raises: NetworkFailed, also when a published address and port is another task's; HostUnsupported
    for a bandwidth that this kernel cannot bound.
    """
    slot = task.slot
    wanted = task.elements()
    closed = [name for name in interfaces if _read_forwarding(name) == "0"]
    wanted += [Element(name="opened", key=(name,)) for name in closed]
    with _locked() as context:
        chains = _list_chains(context)
        commands = [] if chains.issuperset(rules.BASE_CHAINS) else rules.base_rules(slot.gateway)
        for group in task.groups:
            for chain, needed in rules.group_rules(group).items():
                commands += [] if chain in chains else needed
        if task.network_mbit and f"send_{task.network_mbit}" not in chains:
            _bound_bandwidth(context, task.network_mbit)
        commands += [f"add element {TABLE} {item.text()}" for item in wanted]
        code, _, error = context.cmd("\n".join(commands))
        if code != 0 and _NO_NFTABLES in error:
            raise HostUnsupported(
                "this kernel has no nftables: load the module nf_tables, or use a kernel with "
                "CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"
            )
        if code != 0:
            raise _refused_admission(context, slot, wanted, error)
        if not chains.issuperset(rules.BASE_CHAINS):
            _count_connections(context)
        for name in closed:
            _write_forwarding(name, "1")
    return Opening(interfaces=tuple(closed), has_new_rules=not chains)


def _refused_admission(
    context: Any, slot: Slot, wanted: Sequence[Element], error: str
) -> NetworkFailed:
    """libnftables may underline another element of the transaction than the one that clashed, so
    the clash is looked up."""
    found = _read(context)
    taken = (
        {}
        if found is None
        else {item.key: item.value or "" for item in found.elements if item.name == "published"}
    )
    for item in wanted:
        if item.name == "published" and taken.get(item.key, item.value) != item.value:
            holder = taken[item.key].split(" . ")[0]
            protocol, address, port = item.key
            return NetworkFailed(
                f"cannot publish {address}:{port}/{protocol} for {slot.host_interface}: it is "
                f"published for the task at {holder}: stop that task, or name another port",
                errno=errno.EADDRINUSE,
                path=TABLE,
            )
    return NetworkFailed(
        f"cannot set the firewall up for {slot.host_interface}: {error.strip()}", path=TABLE
    )


def _bound_bandwidth(context: Any, mbit: int) -> None:
    """Apart from the base rules, so that a kernel without `limit` says so by itself."""
    commands = [f"add table {TABLE}", *bandwidth.bandwidth_rules(mbit)]
    code, _, error = context.cmd("\n".join(commands))
    if code != 0:
        raise HostUnsupported(
            f"cannot bound the bandwidth of a task (nft: {error.strip()}): load the module "
            "nft_limit (CONFIG_NFT_LIMIT, Linux 5.7), or set task_network_mbit = 0"
        )


def can_bound_connections() -> bool:
    """Whether this kernel can count a task's connections; nothing is changed."""
    return _would_take(rules.count_rules(_CONNECTIONS))


def can_bound_bandwidth() -> bool:
    """Whether this kernel can bound what a task sends and receives; nothing is changed."""
    return _would_take(bandwidth.bandwidth_rules(1))


def _would_take(commands: Sequence[str]) -> bool:
    """One transaction, whose last command removes what the others made: no packet meets it."""
    tried = f"{TABLE}_try{os.getpid()}"
    text = "\n".join(command.replace(TABLE, tried) for command in commands)
    code, _, _ = open_context().cmd(f"add table {tried}\n{text}\ndelete table {tried}")
    return int(code) == 0


_can_count = True
"""Whether this kernel counts connections, as far as this process knows."""


def _connections_bound() -> int:
    """Connections that a task may have tracked: an eighth of what the host can, if that is known
    already (the module comes with the first rule that needs it)."""
    try:
        text = Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text()
    except FileNotFoundError:
        return _CONNECTIONS
    return max(_CONNECTIONS_AT_LEAST, int(text) // 8)


_CONNECTIONS = 8192  # an eighth of 65,536, the kernel's number for 1 to 4 GiB
_CONNECTIONS_AT_LEAST = 1024


def _count_connections(context: Any) -> None:
    global _can_count
    code, _, error = context.cmd("\n".join(rules.count_rules(_connections_bound())))
    if code != 0 and _can_count:
        _can_count = False
        logger.warning(
            "a task's connections are not bounded (nft: %s): load the module nft_connlimit",
            error.strip(),
        )


def restore(tasks: Sequence[Admission], opened: set[str]) -> list[str]:
    """Brings back whatever of the rules and of these tasks' elements is not there.

    `opened` has the interfaces that are known to have been opened, and learns of others. Returns
    what was missing, for a log. Raises: NetworkFailed.
    """
    if not tasks:
        return []
    groups = {group: None for task in tasks for group in task.groups}
    with _locked() as context:
        found = _read(context)
        if found is None:
            found = Snapshot(rules={}, elements=frozenset())
        opened.update(key[0] for key in found.of("opened"))
        commands, missing = [], []
        if found.lacks_rules(tuple(groups)):
            missing.append("rules")
            commands = rules.base_rules(tasks[0].slot.gateway)
            for group in groups:
                for needed in rules.group_rules(group).values():
                    commands += needed
        for mbit in sorted({task.network_mbit for task in tasks} - {0}):
            if bandwidth.lacks_bandwidth(found, mbit):
                missing.append("bandwidth")
                commands += bandwidth.bandwidth_rules(mbit)
        for task in tasks:
            lost = [item for item in task.elements() if item not in found.elements]
            if lost:
                missing.append(task.slot.host_interface)
            for group in task.groups if lost else ():
                commands += rules.group_rules(group)[""]
            commands += [f"add element {TABLE} {item.text()}" for item in lost]
        forgotten = opened.difference(key[0] for key in found.of("opened"))
        for name in sorted(forgotten):
            commands.append(f"add element {TABLE} {Element(name='opened', key=(name,)).text()}")
        if commands:
            _run(context, "\n".join(commands))
        if _can_count and found.lacks_counting():
            missing.append("connection counts")
            _count_connections(context)
    return missing


def expel(slot: Slot, known: Admission | None = None) -> None:
    """Removes all that the task has in the firewall, with the last one the table; may be repeated.

    `known`: as what it was admitted, by who knows it; else it is looked for among all tasks'.

    Connections of a task with security groups are forgotten, as the next task with its address must
    not be taken for it.

    Raises: NetworkFailed.
    """
    # A bandwidth's buckets are the kernel's own elements, there when something was sent.
    own = [] if known is None or known.network_mbit else known.elements()
    with _locked() as context:
        if own and _has_others(context, slot):
            # The table may be large, and to list it costs ten times this.
            code, _, _ = context.cmd(_deletion(own))
            if code != 0:
                own = _expel_found(context, slot)
        else:
            own = _expel_found(context, slot)
    if any(item.name == "grouped" for item in own):
        from fargatelite.network import tracking

        tracking.forget_connections(slot.address)


def _has_others(context: Any, slot: Slot) -> bool:
    code, output, _ = context.cmd(f"list set {TABLE} tasks")
    tasks = rules.parse_snapshot(output).of("tasks") if code == 0 else []
    return any(slot.address not in key for key in tasks)


def _deletion(own: Sequence[Element]) -> str:
    """A map's element goes by its key."""
    keys = (msgspec.structs.replace(item, value=None).text() for item in own)
    return "\n".join(f"delete element {TABLE} {key}" for key in keys)


def _expel_found(context: Any, slot: Slot) -> list[Element]:
    """Removes what the table has of the task, or the table; returns what there was."""
    found = _read(context)
    if found is None:
        return []
    own = found.of_address(slot.address)
    if all(slot.address in key for key in found.of("tasks")):
        for (name,) in found.of("opened"):
            _write_forwarding(name, "0")
        _run(context, f"delete table {TABLE}")
    elif own:
        _run(context, _deletion(own))
    return own


def list_admitted() -> list[tuple[str, str]]:
    """(host interface, address) of every task in the firewall, for gc. Raises: NetworkFailed."""
    with _locked() as context:
        found = _read(context)
        return [] if found is None else [(key[0], key[1]) for key in found.of("tasks")]


def is_in_force(slot: Slot) -> bool:
    """Whether the task is in the firewall, and the rules of all tasks are."""
    with _locked() as context:
        found = _read(context)
        if found is None or found.lacks_rules(()):
            return False
        return (slot.host_interface, slot.address) in found.of("tasks")


_NO_NFTABLES = "cache initialization failed: Invalid argument"
"""libnftables' words where netfilter's netlink knows no nf_tables."""


def _list_chains(context: Any) -> set[str]:
    """Chains of our table, none without it."""
    code, output, error = context.cmd("list chains inet")
    if code != 0 and _NO_NFTABLES in error:
        return set()  # so nothing of ours is to be removed
    if code != 0:
        raise NetworkFailed(f"cannot list nftables chains: {error.strip()}")
    name = TABLE.split()[1]
    listed = json.loads(output or '{"nftables": []}')["nftables"]
    found = (item["chain"] for item in listed if "chain" in item)
    return {str(chain["name"]) for chain in found if chain["table"] == name}


def _read(context: Any) -> Snapshot | None:
    """Our table as it is now, None without it."""
    code, output, error = context.cmd(f"list table {TABLE}")
    if code == 0:
        return rules.parse_snapshot(output)
    if _NO_NFTABLES in error or "No such file or directory" in error:
        return None
    raise NetworkFailed(f"cannot list the nftables table {TABLE}: {error.strip()}", path=TABLE)


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
